/* The inner loops of armv6m.h. High registers hold sums: they can be added to, and nothing else. */
    .syntax unified
    .cpu cortex-m0plus
    .thumb

    .macro function name
    .section .text.\name, "ax", %progbits
    .balign 4
    .global \name
    .type \name, %function
    .thumb_func
\name:
    .endm

/* Four signed bytes at r0 times the words at r1, added to r12. 21 cycles. */
    .macro four_bytes
    ldmia r0!, {r2}
    ldmia r1!, {r4, r5, r6, r7}
    sxtb r3, r2
    muls r4, r3
    add r12, r4
    lsls r3, r2, #16
    asrs r3, r3, #24
    muls r5, r3
    add r12, r5
    lsls r3, r2, #8
    asrs r3, r3, #24
    muls r6, r3
    add r12, r6
    asrs r2, r2, #24
    muls r7, r2
    add r12, r7
    .endm

/* r0 w, r1 x, r2 n. End of x in lr. */
    function sf_v6m_dot8
    push {r4, r5, r6, r7, lr}
    lsls r2, r2, #2
    adds r2, r2, r1
    mov lr, r2
    movs r2, #0
    mov r12, r2
1:
    four_bytes
    cmp r1, lr
    bne 1b
    mov r0, r12
    pop {r4, r5, r6, r7, pc}

/* A half is m * 2^(e - 25), m of 11 bits with the hidden one; a subnormal (e = 0) has none. A product
 * p * m has at most 31 bits, and goes up by e - 1 + k into a sum of 64. r5 is 32 - k.
 *
 * r4 p times the half whose sign bit `by` shifts to carry: r4 p * m, \e exponent; uses r2. */
    .macro times_half p, half, by, e
    lsls r2, \half, #\by
    bcc 1f
    negs \p, \p
1:
    lsrs \e, r2, #27
    lsls r2, r2, #5
    lsrs r2, r2, #22
    muls r2, \p
    lsls \p, \p, #10
    adds \p, \p, r2
    .endm

/* r4, exponent r7: to r6:r4; to `rest` when that needs more than 31 bits up or e is 0. */
    .macro raise rest
    subs r7, #1
    subs r2, r5, r7
    bls \rest
    movs r7, #32
    subs r7, r7, r2
    movs r6, r4
    asrs r6, r2             /* by 32 leaves the sign */
    lsls r4, r7
    .endm

/* The same for any half in the lower bits of r3 and r4 p. */
    .macro times_any_half
    lsls r2, r3, #17
    bcc 1f
    negs r4, r4
1:
    lsrs r7, r2, #27
    lsls r2, r2, #5
    lsrs r2, r2, #22
    muls r2, r4
    cmp r7, #0
    beq 1f
    lsls r4, r4, #10
    adds r2, r2, r4
    subs r7, #1
1:
    adds r7, #32
    subs r7, r7, r5
    movs r4, r2
    movs r6, r2
    movs r2, #32
    subs r2, r2, r7
    bmi 1f
    asrs r6, r2
    lsls r4, r7
    b 2f
1:
    negs r2, r2
    lsls r6, r2
    movs r4, #0
2:
    .endm

/* r9:r8 += r6:r4 */
    .macro add_to_sum
    mov r2, r8
    adds r2, r2, r4
    mov r8, r2
    mov r2, r9
    adcs r2, r6
    mov r9, r2
    .endm

/* r0 += 8 after [r0] += r6:r4 */
    .macro add_to_memory
    ldr r2, [r0]
    adds r2, r2, r4
    str r2, [r0]
    ldr r2, [r0, #4]
    adcs r2, r6
    str r2, [r0, #4]
    .endm

/* Of n rows: r0 row, r1 acc, r2 sf_v6m_part, r3 n. A row's sum is in r9:r8, its next scale in r10. On
 * the stack: next row, its acc, -, end of the rows, x, end of x, weights and scales in a row. */
    .macro open_rows
    push {r4, r5, r6, r7, lr}
    mov r4, r8
    mov r5, r9
    mov r6, r10
    mov r7, r11
    push {r4, r5, r6, r7}
    lsls r3, r3, #2
    adds r3, r3, r0
    ldmia r2!, {r4, r5, r6, r7}
    push {r0, r1, r2, r3, r4, r5, r6, r7}
    .endm

    .macro open_row         /* weights to r0, x to r1 */
    ldr r3, [sp]
    ldmia r3!, {r0}
    str r3, [sp]
    ldr r3, [sp, #28]
    adds r3, r3, r0
    mov r10, r3
    ldr r3, [sp, #4]
    ldr r2, [r3]
    mov r8, r2
    ldr r2, [r3, #4]
    mov r9, r2
    ldr r1, [sp, #16]
    ldr r3, [sp, #24]
    adds r0, r0, r3
    .endm

    .macro close_row        /* equal: it was the last */
    ldr r3, [sp, #4]
    mov r4, r8
    mov r5, r9
    stmia r3!, {r4, r5}
    str r3, [sp, #4]
    ldr r2, [sp]
    ldr r3, [sp, #12]
    cmp r2, r3
    .endm

    .macro close_rows
    add sp, #32
    pop {r4, r5, r6, r7}
    mov r8, r4
    mov r9, r5
    mov r10, r6
    mov r11, r7
    pop {r4, r5, r6, r7, pc}
    .endm

/* A group of x is 32 words and 32 - k. */
    function sf_v6m_rows8
    open_rows
    mov lr, r5
6:
    open_row
0:
    movs r2, #0
    mov r12, r2
    .rept 8
    four_bytes
    .endr
    mov r2, r10
    ldrh r3, [r2]
    adds r2, #2
    mov r10, r2
    ldmia r1!, {r5}
    mov r4, r12
    times_half r4, r3, 17, r7
    raise 8f
7:
    add_to_sum
    cmp r1, lr
    beq 9f
    b 0b
9:
    close_row
    beq 9f
    b 6b
8:
    mov r4, r12
    times_any_half
    b 7b
9:
    close_rows

/* A word of nibbles masked with 0x000F000F is a pair of weights a + b * 2^16. Times a pair of
 * activations y + x * 2^16 this has a*x + b*y in its upper half: two products in one
 * multiplication. Eight pairs stay below 2^15 in both halves, so low and high nibbles have sums of
 * their own, r12 and lr. A group of x is 16 pairs, 32 - k and a sum of the activations. */
    .macro open_nibbles     /* the mask to r11 */
    movs r7, #15
    lsls r2, r7, #16
    orrs r7, r2
    mov r11, r7
    .endm

    .macro group_of_nibbles /* of r0 and r1, its sum to r4 */
    mov r7, r11
    movs r2, #128
    lsls r2, r2, #8         /* rounds the halves to the nearest: the lower one is signed */
    mov r12, r2
    mov lr, r2
    .rept 4
    ldmia r0!, {r2}
    ldmia r1!, {r4, r5, r6}
    lsrs r3, r2, #4
    ands r2, r7
    muls r2, r4
    add r12, r2
    lsrs r2, r3, #4
    ands r3, r7
    muls r3, r5
    add lr, r3
    lsrs r3, r2, #4
    ands r2, r7
    muls r2, r6
    add r12, r2
    ldmia r1!, {r4}
    ands r3, r7
    muls r3, r4
    add lr, r3
    .endr
    mov r4, r12
    asrs r4, r4, #16
    mov r5, lr
    asrs r5, r5, #16
    adds r4, r4, r5
    .endm

/* The sum of the activations is what m is the factor of. */
    function sf_v6m_rows4
    open_rows
    open_nibbles
6:
    open_row
0:
    group_of_nibbles
    mov r2, r10
    ldmia r2!, {r3}
    mov r10, r2
    ldmia r1!, {r5, r6}
    mov r12, r4
    mov lr, r3
    times_half r4, r3, 17, r7
    times_half r6, r3, 1, r3
    subs r3, r3, r7         /* m's exponent is usually a little above d's: one sum for both */
    cmp r3, #7
    bhi 8f
    lsls r6, r3
    adds r4, r4, r6
    raise 8f
7:
    add_to_sum
    ldr r2, [sp, #20]
    cmp r1, r2
    beq 9f
    b 0b
9:
    close_row
    beq 9f
    b 6b
8:
    mov r4, r12
    mov r3, lr
    times_any_half
    add_to_sum
    subs r1, #4
    ldmia r1!, {r4}
    mov r3, lr
    lsrs r3, r3, #16
    times_any_half
    b 7b
9:
    close_rows

/* One half a group, and the sum of the activations is minus eight times theirs. */
    function sf_v6m_rows_s4
    open_rows
    open_nibbles
6:
    open_row
0:
    group_of_nibbles
    mov r2, r10
    ldrh r3, [r2]
    adds r2, #2
    mov r10, r2
    ldmia r1!, {r5, r6}
    adds r4, r4, r6
    mov r12, r4
    times_half r4, r3, 17, r7
    raise 8f
7:
    add_to_sum
    ldr r2, [sp, #20]
    cmp r1, r2
    beq 9f
    b 0b
9:
    close_row
    beq 9f
    b 6b
8:
    mov r4, r12
    times_any_half
    b 7b
9:
    close_rows

/* The sums of columns, times the scales of their rows. r0 acc, r1 isum, which is cleared, r2 scales,
 * r3 end of scales, [sp] 32 - k, [sp + 4] sum of the activations. */
    function sf_v6m_columns8
    push {r4, r5, r6, r7, lr}
    mov lr, r3
    mov r12, r2
0:
    mov r2, r12
    ldrh r3, [r2]
    adds r2, #2
    mov r12, r2
    ldr r4, [r1]
    ldr r5, [sp, #20]
    times_half r4, r3, 17, r7
    raise 8f
7:
    add_to_memory
    adds r0, #8
    movs r2, #0
    stmia r1!, {r2}
    cmp r12, lr
    bne 0b
    pop {r4, r5, r6, r7, pc}
8:
    ldr r4, [r1]
    times_any_half
    b 7b

    function sf_v6m_columns4
    push {r4, r5, r6, r7, lr}
    mov lr, r3
    mov r12, r2
0:
    mov r2, r12
    ldmia r2!, {r3}
    mov r12, r2
    ldr r4, [r1]
    ldr r5, [sp, #20]
    ldr r6, [sp, #24]
    times_half r4, r3, 17, r7
    times_half r6, r3, 1, r3
    subs r3, r3, r7
    cmp r3, #7
    bhi 8f
    lsls r6, r3
    adds r4, r4, r6
    raise 8f
7:
    add_to_memory
    adds r0, #8
    movs r2, #0
    stmia r1!, {r2}
    cmp r12, lr
    bne 0b
    pop {r4, r5, r6, r7, pc}
8:
    mov r2, r12
    subs r2, #4
    ldrh r3, [r2]
    ldr r4, [r1]
    times_any_half
    add_to_memory
    mov r2, r12
    subs r2, #2
    ldrh r3, [r2]
    ldr r4, [sp, #24]
    times_any_half
    b 7b

/* A 64-bit sum r1:r0 as a float, times 2^-(36 + s), s in r2. */
    .macro up by            /* r1:r0 up when nothing is in the upper `by` bits */
    lsrs r3, r1, #32 - \by
    bne 1f
    lsls r1, r1, #\by
    lsrs r3, r0, #32 - \by
    orrs r1, r3
    lsls r0, r0, #\by
    subs r2, r2, #\by
1:
    .endm

    function sf_sum_to_float
    asrs r3, r1, #31
    mov r12, r3
    eors r0, r3
    eors r1, r3
    subs r0, r0, r3
    sbcs r1, r3
    movs r3, #153           /* 127 + 63 - 36, less the one that the hidden bit adds */
    subs r2, r3, r2
    cmp r1, #0
    bne 2f
    movs r1, r0
    beq 4f
    movs r0, #0
    subs r2, r2, #32
2:
    up 16
    up 8
    up 4
    up 2
    up 1
    lsls r3, r1, #25
    lsrs r1, r1, #8         /* carry: the bit below the last */
    bcc 3f
    adds r1, r1, #1
    orrs r3, r0
    bne 3f
    lsrs r1, r1, #1         /* a tie: to even */
    lsls r1, r1, #1
3:
    lsls r2, r2, #23
    adds r1, r1, r2
    mov r0, r12
    lsls r0, r0, #31
    orrs r0, r1
4:
    bx lr

    .macro open_sums        /* r8, r9, r12, lr; leaves r4, r5 */
    push {r4, r5, r6, r7, lr}
    mov r4, r8
    mov r5, r9
    push {r4, r5}
    movs r4, #0
    mov r8, r4
    mov r9, r4
    mov r12, r4
    mov lr, r4
    .endm

    .macro close_sums
    pop {r4, r5}
    mov r8, r4
    mov r9, r5
    pop {r4, r5, r6, r7, pc}
    .endm

/* r4 four bytes, r5 factor */
    .macro add_bytes
    sxtb r6, r4
    muls r6, r5
    add r8, r6
    lsls r6, r4, #16
    asrs r6, r6, #24
    muls r6, r5
    add r9, r6
    lsls r6, r4, #8
    asrs r6, r6, #24
    muls r6, r5
    add r12, r6
    asrs r4, r4, #24
    muls r4, r5
    add lr, r4
    .endm

    .macro store_bytes      /* r0 y */
    ldmia r0!, {r4, r5, r6, r7}
    subs r0, r0, #16
    add r4, r8
    add r5, r9
    add r6, r12
    add r7, lr
    stmia r0!, {r4, r5, r6, r7}
    .endm

/* r0 col, r1 h, r2 n, r3 at */
    function sf_v6m_axpy8
    open_sums
1:
    ldmia r0!, {r4}
    ldr r4, [r4, r3]
    ldmia r1!, {r5}
    add_bytes
    subs r2, r2, #1
    bne 1b
    ldr r0, [sp, #28]
    store_bytes
    close_sums

/* r0 v, r1 stride, r2 c, r3 n */
    function sf_v6m_mix
    open_sums
1:
    ldr r4, [r0]
    adds r0, r0, r1
    ldmia r2!, {r5}
    add_bytes
    subs r3, r3, #1
    bne 1b
    ldr r0, [sp, #28]
    store_bytes
    close_sums

/* As axpy8; the sums hold pairs of 16 bits, see dot4. */
    .macro unpack sum, at
    mov r4, \sum
    sxth r5, r4
    subs r4, r4, r5
    asrs r4, r4, #16
    ldr r6, [r0, #\at]
    adds r6, r6, r5
    str r6, [r0, #\at]
    ldr r6, [r0, #\at + 8]
    adds r6, r6, r4
    str r6, [r0, #\at + 8]
    .endm

    function sf_v6m_axpy4
    open_sums
    movs r7, #15
    lsls r4, r7, #16
    orrs r7, r4
1:
    ldmia r0!, {r4}
    ldr r4, [r4, r3]
    ldmia r1!, {r5}
    lsrs r6, r4, #4
    ands r4, r7
    muls r4, r5
    add r8, r4
    lsrs r4, r6, #4
    ands r6, r7
    muls r6, r5
    add r9, r6
    lsrs r6, r4, #4
    ands r4, r7
    muls r4, r5
    add r12, r4
    ands r6, r7
    muls r6, r5
    add lr, r6
    subs r2, r2, #1
    bne 1b
    ldr r0, [sp, #28]
    unpack r8, 0
    unpack r9, 64
    unpack r12, 4
    unpack lr, 68
    close_sums

/* r0 col, r1 t, r2 n, r3 at, [sp] y, [sp + 4] what the sums begin with. They are in r6 to r9, r12 and
 * lr, r10 and r11. */
    .macro one_nibble sum, at
    lsls r4, r2, #28 - \at
    lsrs r4, r4, #28
    muls r4, r3
    add \sum, r4
    .endm

    .macro to_memory a, b, c, d, at
    ldr r1, [r0, #\at]
    add r1, \a
    str r1, [r0, #\at]
    ldr r1, [r0, #\at + 4]
    add r1, \b
    str r1, [r0, #\at + 4]
    ldr r1, [r0, #\at + 8]
    add r1, \c
    str r1, [r0, #\at + 8]
    ldr r1, [r0, #\at + 12]
    add r1, \d
    str r1, [r0, #\at + 12]
    .endm

    function sf_v6m_axpy_s4
    push {r4, r5, r6, r7, lr}
    mov r4, r8
    mov r5, r9
    mov r6, r10
    mov r7, r11
    push {r4, r5, r6, r7}
    movs r5, r3
    lsls r2, r2, #2
    adds r2, r2, r0
    ldr r6, [sp, #40]
    push {r2}
    movs r7, r6
    mov r8, r6
    mov r9, r6
    mov r10, r6
    mov r11, r6
    mov r12, r6
    mov lr, r6
1:
    ldmia r0!, {r2}
    ldr r2, [r2, r5]
    ldmia r1!, {r3}
    one_nibble r6, 0
    one_nibble r10, 4
    one_nibble r7, 8
    one_nibble r11, 12
    one_nibble r8, 16
    one_nibble r12, 20
    one_nibble r9, 24
    lsrs r4, r2, #28
    muls r4, r3
    add lr, r4
    ldr r4, [sp]
    cmp r0, r4
    bne 1b
    add sp, #4
    ldr r0, [sp, #36]
    to_memory r6, r7, r8, r9, 0
    to_memory r10, r11, r12, lr, 64
    pop {r4, r5, r6, r7}
    mov r8, r4
    mov r9, r5
    mov r10, r6
    mov r11, r7
    pop {r4, r5, r6, r7, pc}

/* IEEE single multiplication in place of libgcc's, at half its cycles. Operands or results that are
 * zero, subnormal, infinite or not numbers go to sf_v6m_multiply_rest. */
    function __aeabi_fmul
    push {r4, r5, r6, lr}
    movs r4, r0
    eors r4, r1
    lsrs r4, r4, #31
    lsls r4, r4, #31
    mov r12, r4             /* sign */
    lsls r2, r0, #1
    lsrs r2, r2, #24
    lsls r3, r1, #1
    lsrs r3, r3, #24
    subs r5, r2, #1
    cmp r5, #254
    bhs rest
    subs r5, r3, #1
    cmp r5, #254
    bhs rest
    adds r2, r2, r3
    subs r2, r2, #127       /* exponent of the result, when below 2 */
    beq rest
    bmi rest
    cmp r2, #253
    bgt rest
    /* 24 bits times 24, in pieces of 16 and 8 */
    movs r4, #128
    lsls r4, r4, #8
    uxtb r5, r0
    uxtb r6, r1
    lsls r0, r0, #9
    lsrs r0, r0, #17
    orrs r0, r4
    lsls r1, r1, #9
    lsrs r1, r1, #17
    orrs r1, r4
    movs r4, r0
    muls r4, r1             /* r4: upper 32 bits of the product */
    muls r0, r6
    muls r1, r5
    muls r5, r6
    adds r0, r0, r1
    lsls r1, r0, #24
    lsrs r0, r0, #8
    lsls r5, r5, #16
    adds r1, r1, r5         /* r1: lower 16, at the top */
    adcs r4, r0
    bmi 1f
    adds r1, r1, r1
    adcs r4, r4
    subs r2, r2, #1
1:
    lsls r2, r2, #23
    lsrs r0, r4, #8         /* the hidden bit adds one to the exponent; carry: the bit below */
    bcc 3f
    adds r0, r0, #1
    lsls r4, r4, #25
    orrs r4, r1
    bne 3f
    lsrs r0, r0, #1         /* a tie: to even */
    lsls r0, r0, #1
3:
    adds r0, r0, r2
    add r0, r12
    pop {r4, r5, r6, pc}
rest:
    pop {r4, r5, r6}
    pop {r2}
    mov lr, r2
    ldr r2, =sf_v6m_multiply_rest
    bx r2
    .ltorg

/* IEEE single addition and subtraction in place of libgcc's, at half its cycles. */
    function __aeabi_fsub
    movs r2, #1
    lsls r2, r2, #31
    eors r1, r2
    .global __aeabi_fadd
    .type __aeabi_fadd, %function
    .thumb_func
__aeabi_fadd:
    push {r4, r5, r6, lr}
    lsls r2, r0, #1
    lsls r3, r1, #1
    cmp r2, r3
    bhs 1f
    movs r4, r0             /* a is the larger */
    movs r0, r1
    movs r1, r4
    movs r4, r2
    movs r2, r3
    movs r3, r4
1:
    lsrs r4, r2, #24
    lsrs r5, r3, #24
    beq add_rest            /* b is 0 or subnormal */
    cmp r4, #254
    bhs add_rest
    subs r5, r4, r5
    cmp r5, #25
    bhi 9f                  /* b is less than half of a's last place */
    movs r6, #1             /* 24 bits from bit 30 down */
    lsls r6, r6, #30
    lsls r2, r2, #8
    lsrs r2, r2, #2
    orrs r2, r6
    lsls r3, r3, #8
    lsrs r3, r3, #2
    orrs r3, r6
    movs r6, r3
    lsrs r3, r5
    negs r5, r5
    adds r5, #32
    lsls r6, r5             /* what b lost */
    beq 2f
    movs r6, #1
    orrs r3, r6
2:
    eors r1, r0
    bmi 5f
    adds r2, r2, r3
    bpl 3f
    lsls r3, r2, #31
    lsrs r3, r3, #31
    lsrs r2, r2, #1
    orrs r2, r3
    adds r4, #1
3:
    lsls r3, r2, #26
    lsrs r2, r2, #7         /* carry: the bit below the last */
    bcc 4f
    adds r2, #1
    cmp r3, #0
    bne 4f
    lsrs r2, r2, #1         /* a tie: to even */
    lsls r2, r2, #1
4:
    subs r4, #1             /* the hidden bit adds one */
    lsls r4, r4, #23
    adds r2, r2, r4
    lsrs r0, r0, #31
    lsls r0, r0, #31
    orrs r0, r2
9:
    pop {r4, r5, r6, pc}
5:
    subs r2, r2, r3
    beq 8f
    .macro up_to_30 by
    lsrs r3, r2, #31 - \by
    bne 6f
    lsls r2, r2, #\by
    subs r4, #\by
6:
    .endm
    up_to_30 16
    up_to_30 8
    up_to_30 4
    up_to_30 2
    up_to_30 1
    cmp r4, #0
    bgt 3b
    eors r1, r0             /* a subnormal result */
    b add_rest
8:
    movs r0, #0
    pop {r4, r5, r6, pc}
add_rest:
    pop {r4, r5, r6}
    pop {r2}
    mov lr, r2
    ldr r2, =sf_v6m_add_rest
    bx r2
    .ltorg

/* r0 q, r1 n, r2 out */
    function sf_v6m_widen
    push {r4, r5, r6, r7, lr}
1:
    ldmia r0!, {r3}
    sxtb r4, r3
    lsls r5, r3, #16
    asrs r5, r5, #24
    lsls r6, r3, #8
    asrs r6, r6, #24
    asrs r7, r3, #24
    stmia r2!, {r4, r5, r6, r7}
    subs r1, r1, #4
    bne 1b
    pop {r4, r5, r6, r7, pc}

/* A group of 32 at r0 as pairs at r1, in the order in which masks and shifts bring up the nibbles of
 * a word: elements 0 and 2, 16 and 18, 1 and 3, 17 and 19. */
    function sf_v6m_pairs
    push {r4, r5, r6, r7, lr}
    movs r2, #16
    adds r2, r2, r0
    mov lr, r2
1:
    ldr r2, [r0, #16]
    ldmia r0!, {r3}
    lsls r4, r3, #24
    asrs r4, r4, #8
    lsls r6, r3, #8
    asrs r6, r6, #24
    adds r4, r4, r6
    lsls r5, r2, #24
    asrs r5, r5, #8
    lsls r6, r2, #8
    asrs r6, r6, #24
    adds r5, r5, r6
    lsls r6, r3, #16
    asrs r6, r6, #24
    lsls r6, r6, #16
    asrs r3, r3, #24
    adds r6, r6, r3
    lsls r7, r2, #16
    asrs r7, r7, #24
    lsls r7, r7, #16
    asrs r2, r2, #24
    adds r7, r7, r2
    stmia r1!, {r4, r5, r6, r7}
    cmp r0, lr
    bne 1b
    pop {r4, r5, r6, r7, pc}
