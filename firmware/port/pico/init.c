/* RP2040: crystal, PLL, pins, and flash in four lanes. */
#include "bare.h"
#include "pico.h"
#include "rp_clocks.h"
#include "sf_board.h"

#define RESETS 0x4000C000u
#define CLOCKS 0x40008000u
#define PADS 0x4001C000u
#define GPIO 0x40014000u
#define XOSC 0x40024000u
#define PLL 0x40028000u

enum { IO_BANK0 = 1 << 5, PADS_BANK0 = 1 << 8, PLL_SYS = 1 << 12, UART0 = 1 << 22, DMA = 1 << 2 };

/* 12 MHz * 125 / 6 / 2 */
_Static_assert(SF_CPU_HZ == 12000000u * 125u / 12u, "the PLL is set up for 125 MHz");

static const sf_rp chip = {RESETS, CLOCKS, XOSC, PLL, PLL_SYS, 6};

void sf_board_init(void) {
    sf_rp_clocks(&chip);
    sf_rp_release(RESETS, IO_BANK0 | PADS_BANK0 | UART0 | DMA);
    *sf_reg(PADS + 8u) = 0x5A; /* GPIO 1: input with a pull-up, an open line is idle */
    *sf_reg(GPIO + 4u) = 2;    /* GPIO 0 and 1 are UART0 */
    *sf_reg(GPIO + 0x0Cu) = 2;
    sf_pico_flash_fast();
    sf_flash_init();
}
