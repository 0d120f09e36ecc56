/* Second stage: the boot ROM copies these 256 bytes to SRAM and enters them when the CRC in the
 * last word is right (sparseflash/rp2040.py writes it). Read command 03h in one lane: every serial
 * flash knows it. flash.c goes faster once the program runs. */
    .syntax unified
    .cpu cortex-m0plus
    .thumb

    .section .boot2, "ax", %progbits
    .balign 4
    .global sf_boot2
    .type sf_boot2, %function
    .thumb_func
sf_boot2:
    ldr r3, =0x18000000         /* SSI */
    movs r0, #0
    str r0, [r3, #0x08]         /* SSIENR: off, or the rest cannot be written */
    movs r1, #4
    str r1, [r3, #0x14]         /* BAUDR: 31 MHz at 125 MHz, what 03h is good for */
    ldr r1, =0x001F0300         /* CTRLR0: one lane, frames of 32 bits, "EEPROM read" */
    str r1, [r3]
    str r0, [r3, #0x04]         /* CTRLR1: one frame a read */
    ldr r1, =0x03000218         /* SPI_CTRLR0: command 03h in 8 bits, address of 24 */
    movs r2, #0xF4
    str r1, [r3, r2]
    movs r1, #1
    str r1, [r3, #0x08]

    ldr r0, =0x10000100         /* the vectors */
    ldr r1, =0xE000ED08         /* VTOR */
    str r0, [r1]
    ldmia r0!, {r1, r2}
    msr msp, r1
    bx r2

    .ltorg
    .org 256 - 4
    .word 0                     /* the CRC */
