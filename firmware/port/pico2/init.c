/* RP2350: crystal, PLL, pins. Flash stays as the boot ROM left it, one lane. */
#include "bare.h"
#include "rp_clocks.h"
#include "sf_board.h"

#define CLOCKS 0x40010000u
#define RESETS 0x40020000u
#define GPIO 0x40028000u
#define PADS 0x40038000u
#define XOSC 0x40048000u
#define PLL 0x40050000u

enum { IO_BANK0 = 1 << 6, PADS_BANK0 = 1 << 9, PLL_SYS = 1 << 14, UART0 = 1 << 26 };

/* 12 MHz * 125 / 5 / 2 */
_Static_assert(SF_CPU_HZ == 12000000u * 125u / 10u, "the PLL is set up for 150 MHz");

/* What makes the boot ROM start it: an Arm program, secure, in one block that points to itself. */
extern const uint32_t sf_image_def[5];
__attribute__((section(".image_def"), used))
const uint32_t sf_image_def[5] = {0xFFFFDED3u, 0x10210142u, 0x000001FFu, 0, 0xAB123579u};

static const sf_rp chip = {RESETS, CLOCKS, XOSC, PLL, PLL_SYS, 5};

void sf_board_init(void) {
    sf_rp_clocks(&chip);
    sf_rp_release(RESETS, IO_BANK0 | PADS_BANK0 | UART0);
    *sf_reg(GPIO + 4u) = 2; /* GPIO 0 and 1 are UART0 */
    *sf_reg(GPIO + 0x0Cu) = 2;
    *sf_reg(PADS + 4u) = 0x52; /* writes also end the isolation of the pads */
    *sf_reg(PADS + 8u) = 0x5A; /* input with a pull-up, an open line is idle */
}
