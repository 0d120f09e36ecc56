/* Unsigned division by the divider of the SIO, in place of libgcc's loop. No interrupt handler of
 * this port divides, so its registers need no saving. */
    .syntax unified
    .cpu cortex-m0plus
    .thumb

    .section .text.__aeabi_uidiv, "ax", %progbits
    .balign 4
    .global __aeabi_uidiv
    .type __aeabi_uidiv, %function
    .global __aeabi_uidivmod
    .type __aeabi_uidivmod, %function
    .thumb_func
__aeabi_uidiv:
    .thumb_func
__aeabi_uidivmod:
    ldr r2, =0xD0000060
    str r0, [r2, #0x00]
    str r1, [r2, #0x04]
    b 1f                    /* the result is there after eight cycles */
1:  b 2f
2:  b 3f
3:  b 4f
4:  ldr r1, [r2, #0x14]     /* remainder */
    ldr r0, [r2, #0x10]     /* quotient: reading it ends the division */
    bx lr
    .ltorg
