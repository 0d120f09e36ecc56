/* sf_port_ticks() of a Cortex-M on a simulated SysTick: every access to a register takes time, and
 * the interrupt of a wrap is taken late. Each time must lie between those before and after it. */
#define SF_BARE_H
#define SF_CPU_HZ 1u
#define SF_IRQS(X)

#include "../emulator/random32.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

int main(void);
static volatile uint32_t *sf_reg(uint32_t address);

#include "../../firmware/port/common/cortex_m.c"

uint32_t sf_stack_top, sf_data_start, sf_data_end, sf_bss_start, sf_bss_end;
const uint32_t sf_data_load;

static uint64_t now;
static uint32_t due, counted, late; /* wraps; those that the handler saw; ticks until it runs */

static void pass(uint32_t ticks) {
    for (; ticks > 0; ticks--) {
        now++;
        if ((now & SYST_TOP) == SYST_TOP) {
            due++;
            late = random32() % 8u;
        }
        if (counted != due) {
            if (late == 0) {
                counted++;
                wrapped();
            } else {
                late--;
            }
        }
    }
}

static volatile uint32_t *sf_reg(uint32_t address) {
    static uint32_t value;
    pass(random32() % 3u);
    switch (address) {
    case SYST_CVR: value = SYST_TOP - (uint32_t)(now & SYST_TOP); break;
    case SCB_ICSR: value = counted != due ? SYST_PENDING : 0u; break;
    default: value = 0;
    }
    pass(random32() % 3u);
    return &value;
}

int main(void) {
    for (uint32_t i = 0; i < 20000; i++) {
        now += SYST_TOP - 12u - (now & SYST_TOP); /* a few ticks before a wrap */
        for (uint32_t j = 0; j < 12; j++) {
            const uint64_t before = now, ticks = sf_port_ticks();
            if (ticks < before || ticks > now) {
                printf("wrong by %lld after %u wraps\n", (long long)(ticks - before), i);
                return 0;
            }
        }
        pass(20);
    }
    puts("right");
    return 0;
}
