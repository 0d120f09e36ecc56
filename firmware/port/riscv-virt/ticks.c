/* The cycle counter of the core; QEMU with -icount counts instructions in it. */
#include "sf_board.h"
#include "sf_port.h"

uint64_t sf_port_ticks(void) {
    uint32_t high, low, again;
    do {
        __asm volatile("csrr %0, mcycleh\n\tcsrr %1, mcycle\n\tcsrr %2, mcycleh"
                       : "=&r"(high), "=&r"(low), "=&r"(again));
    } while (high != again);
    return (uint64_t)high << 32 | low;
}

uint32_t sf_port_ticks_per_second(void) {
    return SF_CPU_HZ;
}
