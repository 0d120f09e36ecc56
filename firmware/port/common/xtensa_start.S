/* The first instructions of a Xtensa board with register windows, behind its vectors and the words
 * that its boot ROM looks for. The window handlers are those of the architecture's manual. */
    .section .vectors, "ax", @progbits
    .balign 0x400
sf_vectors: /* at 0x00: a call of 4 registers finds the window full */
    s32e a0, a5, -16
    s32e a1, a5, -12
    s32e a2, a5, -8
    s32e a3, a5, -4
    rfwo
    .org sf_vectors + 0x40
    l32e a0, a5, -16
    l32e a1, a5, -12
    l32e a2, a5, -8
    l32e a3, a5, -4
    rfwu
    .org sf_vectors + 0x80 /* of 8 */
    s32e a0, a9, -16
    l32e a0, a1, -12
    s32e a1, a9, -12
    s32e a2, a9, -8
    s32e a3, a9, -4
    s32e a4, a0, -32
    s32e a5, a0, -28
    s32e a6, a0, -24
    s32e a7, a0, -20
    rfwo
    .org sf_vectors + 0xC0
    l32e a0, a9, -16
    l32e a1, a9, -12
    l32e a2, a9, -8
    l32e a7, a1, -12
    l32e a3, a9, -4
    l32e a4, a7, -32
    l32e a5, a7, -28
    l32e a6, a7, -24
    l32e a7, a7, -20
    rfwu
    .org sf_vectors + 0x100 /* of 12 */
    s32e a0, a13, -16
    l32e a0, a1, -12
    s32e a1, a13, -12
    s32e a2, a13, -8
    s32e a3, a13, -4
    s32e a4, a0, -48
    s32e a5, a0, -44
    s32e a6, a0, -40
    s32e a7, a0, -36
    s32e a8, a0, -32
    s32e a9, a0, -28
    s32e a10, a0, -24
    s32e a11, a0, -20
    rfwo
    .org sf_vectors + 0x140
    l32e a0, a13, -16
    l32e a1, a13, -12
    l32e a2, a13, -8
    l32e a11, a1, -12
    l32e a3, a13, -4
    l32e a4, a11, -48
    l32e a5, a11, -44
    l32e a6, a11, -40
    l32e a7, a11, -36
    l32e a8, a11, -32
    l32e a9, a11, -28
    l32e a10, a11, -24
    l32e a11, a11, -20
    rfwu
    .org sf_vectors + 0x180 /* interrupts and exceptions: silence is what the host reports */
    .rept 10
    .balign 0x40
    j .
    .endr
    .org sf_vectors + 0x400
    .word 0xAEDB041D, 0xAEDB041D
    j sf_start
    .balign 4
    .literal_position
    .global sf_start
    .type sf_start, @function
sf_start:
    movi a0, 0
    wsr a0, intenable
    movi a2, 0x4000F /* windows on, nothing interrupts until the first call */
    wsr a2, ps
    movi a2, sf_vectors
    wsr a2, vecbase
    movi a2, 1
    wsr a2, windowstart
    wsr a0, windowbase
    rsync
    movi a1, sf_stack_top
    movi a2, 1
    wsr a2, cpenable /* floating point */
    movi a2, 0x40020 /* windows on */
    wsr a2, ps
    rsync
    call4 sf_begin
    j .
    .size sf_start, . - sf_start
