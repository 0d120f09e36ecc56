/* Start-up, time and sleep of a Cortex-M. */
#include "bare.h"
#include "sf_board.h"
#include "sf_port.h"

#define SYST_CSR 0xE000E010u
#define SYST_RVR 0xE000E014u
#define SYST_CVR 0xE000E018u
#define NVIC_ISER 0xE000E100u
#define NVIC_ICER 0xE000E180u
#define NVIC_ICPR 0xE000E280u
#define SCB_ICSR 0xE000ED04u
#define SCB_VTOR 0xE000ED08u
#define SCB_CPACR 0xE000ED88u

#define SYST_RUN 7u  /* core clock, interrupt, on */
#define SYST_STOP 6u /* another clock would change what is left of the count */
#define SYST_TOP 0xFFFFFFu
#define SYST_PENDING (1u << 26) /* of ICSR: wrapped, and not counted yet */

typedef void (*handler)(void);

/* Of the linker script. */
extern uint32_t sf_stack_top, sf_data_start, sf_data_end, sf_bss_start, sf_bss_end;
extern const uint32_t sf_data_load;

void sf_start(void);
static void stop(void);
static void wrapped(void);

#define DECLARE(number, function) void function(void);
#define ENTRY(number, function) [15 + (number)] = function,
SF_IRQS(DECLARE)

/* The stack pointer is data, the rest are functions. */
struct vectors {
    uint32_t *stack;
    handler entry[15 + 96];
};

const struct vectors sf_vectors;
__attribute__((section(".vectors"), used)) const struct vectors sf_vectors = {
    .stack = &sf_stack_top,
    .entry = {[0] = sf_start,
              [1] = stop,
              [2] = stop,
              [3] = stop,
              [4] = stop,
              [5] = stop,
              [10] = stop,
              [13] = stop,
              [14] = wrapped,
              SF_IRQS(ENTRY)},
};

static volatile uint32_t wraps;

/* A fault or an interrupt nobody asked for: silence is what the host reports. */
static void stop(void) {
    for (;;) {
    }
}

static void wrapped(void) {
    wraps++;
}

void sf_start(void) {
    const uint32_t *from = &sf_data_load;
    for (uint32_t *to = &sf_data_start; to < &sf_data_end; to++, from++) {
        if (from != to) { /* equal where the loader writes to SRAM itself */
            *to = *from;
        }
    }
    for (uint32_t *to = &sf_bss_start; to < &sf_bss_end; to++) {
        *to = 0;
    }
    *sf_reg(SCB_VTOR) = (uint32_t)(uintptr_t)&sf_vectors;
#ifdef __ARM_FP
    *sf_reg(SCB_CPACR) |= 0xFu << 20;
    __asm volatile("dsb\n\tisb" ::: "memory");
#endif
    *sf_reg(SYST_RVR) = SYST_TOP;
    *sf_reg(SYST_CVR) = 0;
    *sf_reg(SYST_CSR) = SYST_RUN;
    (void)main();
    stop();
}

/* A wrap that nobody has counted yet came before the counter was read if that is small. It comes
 * when the counter reaches 0, one tick before it begins again: that tick is waited for. */
uint64_t sf_port_ticks(void) {
    uint32_t high, low, pending;
    do {
        high = wraps;
        low = SYST_TOP - *sf_reg(SYST_CVR);
        pending = *sf_reg(SCB_ICSR) & SYST_PENDING;
    } while (high != wraps || low == SYST_TOP);
    high += pending != 0 && low < SYST_TOP / 2u ? 1u : 0u;
    return (uint64_t)high << 24 | low;
}

uint32_t sf_port_ticks_per_second(void) {
    return SF_CPU_HZ;
}

/* Sleeps until the line raises its interrupt. No handler runs: the mask keeps it pending, and a
 * pending interrupt ends the sleep. Time stands still meanwhile. */
void sf_port_idle(void) {
#ifdef SF_UART_IRQ
    const uint32_t word = (SF_UART_IRQ / 32u) * 4u;
    const uint32_t bit = 1u << (SF_UART_IRQ % 32u);
    __asm volatile("cpsid i" ::: "memory");
    *sf_reg(SYST_CSR) = SYST_STOP;
    *sf_reg(NVIC_ISER + word) = bit;
    if (!sf_uart_waiting()) {
        __asm volatile("dsb\n\twfi" ::: "memory");
    }
    *sf_reg(NVIC_ICER + word) = bit;
    *sf_reg(NVIC_ICPR + word) = bit;
    *sf_reg(SYST_CSR) = SYST_RUN;
    __asm volatile("cpsie i" ::: "memory");
#endif
}
