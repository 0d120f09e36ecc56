/* The first instructions of a RISC-V board. A boot ROM may want words in front of them. */
    .section .vectors, "ax", @progbits
    .balign 4
#ifdef SF_BOOT_MAGIC
    .word SF_BOOT_MAGIC, SF_BOOT_MAGIC
#endif
    .global sf_start
    .type sf_start, @function
sf_start:
    la sp, sf_stack_top
    la t0, sf_trap
    csrw mtvec, t0
    j sf_begin
    .size sf_start, . - sf_start

/* A fault: silence is what the host reports. */
    .text
    .balign 4
    .type sf_trap, @function
sf_trap:
    j sf_trap
    .size sf_trap, . - sf_trap
