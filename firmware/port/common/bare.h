/* What the parts of a bare board's port share. */
#ifndef SF_BARE_H
#define SF_BARE_H

#include <stdbool.h>
#include <stdint.h>

/* A device register. */
static inline volatile uint32_t *sf_reg(uint32_t address) {
    return (volatile uint32_t *)(uintptr_t)address;
}

int main(void);
/* Clocks, pins and the flash window; before the line is set up. */
void sf_board_init(void);
/* The DMA engine of a board that streams; sf_board_init() calls it. */
void sf_flash_init(void);
void sf_uart_init(void);
/* Cortex-M7 only. */
void sf_cache_on(void);
/* Whether a byte came in; whether its interrupt is raised while it waits. */
bool sf_uart_waiting(void);

#endif
