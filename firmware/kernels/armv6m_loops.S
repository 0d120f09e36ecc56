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

/* r7:r6 += r1 * half r2 * 2^(24 + k), r3 = k - 1; uses r4, r5. A half is m * 2^(e - 25), m of 11
 * bits with the hidden one, which a subnormal (e = 0) has not. */
    .macro add_scaled
    lsls r4, r2, #17        /* its sign to carry */
    bcc 1f
    negs r1, r1
1:
    lsrs r5, r4, #27
    lsls r4, r4, #5
    lsrs r4, r4, #22
    muls r4, r1
    lsls r1, r1, #10
    cmp r5, #0
    beq 4f
    adds r1, r1, r4
2:
    adds r5, r5, r3
    cmp r5, #32
    bge 5f
    movs r4, r1
    lsls r4, r5
    movs r2, #32
    subs r2, r2, r5
    asrs r1, r2             /* by 32 leaves the sign */
    adds r6, r6, r4
    adcs r7, r1
3:
    .endm

    .macro add_scaled_rest
4:
    movs r1, r4
    movs r5, #1
    b 2b
5:
    subs r5, r5, #32
    lsls r1, r5
    adds r7, r7, r1
    b 3b
    .endm

    .macro open_rows        /* r0 row, r1 n, r2 job, r3 acc */
    push {r4, r5, r6, r7, lr}
    mov r4, r8
    mov r5, r9
    mov r6, r10
    mov r7, r11
    push {r4, r5, r6, r7}
    lsls r1, r1, #2
    adds r1, r1, r0
    mov r8, r0
    mov r9, r3
    mov r10, r1             /* end of the rows */
    mov r11, r2
    .endm

    .macro close_rows
    pop {r4, r5, r6, r7}
    mov r8, r4
    mov r9, r5
    mov r10, r6
    mov r11, r7
    pop {r4, r5, r6, r7, pc}
    .endm

/* The next row to lr, its group to r0, the activations to r1. */
    .macro next_row
    mov r2, r8
    ldmia r2!, {r0}
    mov r8, r2
    mov lr, r0
    mov r2, r11
    ldmia r2!, {r1, r3}
    adds r0, r0, r3
    .endm

/* One group of n rows: acc[r] += (row[r] at job.at) . job.x * scale at job.scale */
    function sf_v6m_rows8
    open_rows
0:
    next_row
    movs r2, #0
    mov r12, r2
    .rept 8
    four_bytes
    .endr
    mov r1, r12
    mov r3, r11
    ldr r2, [r3, #8]
    add r2, lr
    ldrh r2, [r2]
    ldr r3, [r3, #12]
    mov r0, r9
    ldmia r0!, {r6, r7}
    add_scaled
    subs r0, r0, #8
    stmia r0!, {r6, r7}
    mov r9, r0
    cmp r8, r10
    beq 9f
    b 0b
9:
    close_rows
    add_scaled_rest

/* A word of nibbles masked with 0x000F000F is a pair of weights a + b * 2^16. Times a pair of
 * activations y + x * 2^16 this has a*x + b*y in its upper half: two products in one
 * multiplication. Eight pairs stay below 2^15 in both halves, so low and high nibbles have sums of
 * their own, r12 and r10 of the row. */
    function sf_v6m_rows4
    open_rows
    push {r1}               /* end of the rows: no register is left */
    b 8f
0:
    next_row
    movs r7, #15
    lsls r2, r7, #16
    orrs r7, r2
    movs r2, #128
    lsls r2, r2, #8         /* rounds the halves to the nearest: the lower one is signed */
    mov r12, r2
    mov r10, r2
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
    add r10, r3
    lsrs r3, r2, #4
    ands r2, r7
    muls r2, r6
    add r12, r2
    ldmia r1!, {r4}
    ands r3, r7
    muls r3, r4
    add r10, r3
    .endr
    mov r1, r12
    asrs r1, r1, #16
    mov r4, r10
    asrs r4, r4, #16
    adds r1, r1, r4
    mov r3, r11
    ldr r2, [r3, #8]
    add r2, lr
    ldr r2, [r2]
    mov r12, r2
    ldr r3, [r3, #12]
    mov r0, r9
    ldmia r0!, {r6, r7}
    add_scaled              /* d: the lower half; its shifts drop the other */
    mov r2, r12
    lsrs r2, r2, #16
    mov r1, r11
    ldr r1, [r1, #16]
    b 6f
    add_scaled_rest
6:
    add_scaled              /* m, times the sum of the activations */
    subs r0, r0, #8
    stmia r0!, {r6, r7}
    mov r9, r0
8:
    ldr r2, [sp]
    cmp r8, r2
    beq 9f
    b 0b
9:
    pop {r2}
    close_rows
    add_scaled_rest

/* The scaling alone: r0 acc, r1 p, r2 half, r3 shift */
    function sf_v6m_scale
    push {r4, r5, r6, r7}
    subs r3, r3, #1
    ldmia r0!, {r6, r7}
    add_scaled
    subs r0, r0, #8
    stmia r0!, {r6, r7}
    pop {r4, r5, r6, r7}
    bx lr
    add_scaled_rest

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
