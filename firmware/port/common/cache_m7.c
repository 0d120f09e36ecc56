/* Switches the caches of a Cortex-M7 on. No DMA writes memory here, so none has to be kept
 * coherent. */
#include "bare.h"

#define SCB_CCR 0xE000ED14u
#define SCB_CCSIDR 0xE000ED80u
#define SCB_CSSELR 0xE000ED84u
#define ICIALLU 0xE000EF50u
#define DCISW 0xE000EF60u

void sf_cache_on(void) {
    __asm volatile("dsb\n\tisb" ::: "memory");
    *sf_reg(ICIALLU) = 0;
    *sf_reg(SCB_CSSELR) = 0; /* level 1, data */
    __asm volatile("dsb" ::: "memory");
    const uint32_t size = *sf_reg(SCB_CCSIDR);
    const uint32_t sets = (size >> 13 & 0x7FFFu) + 1u, ways = (size >> 3 & 0x3FFu) + 1u;
    for (uint32_t set = 0; set < sets; set++) {
        for (uint32_t way = 0; way < ways; way++) {
            *sf_reg(DCISW) = way << 30 | set << 5; /* lines of 32 bytes, 4 ways */
        }
    }
    __asm volatile("dsb" ::: "memory");
    *sf_reg(SCB_CCR) |= 1u << 16 | 1u << 17;
    __asm volatile("dsb\n\tisb" ::: "memory");
}
