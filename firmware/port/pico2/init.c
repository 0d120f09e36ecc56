/* RP2350: crystal, PLL, pins. Flash stays as the boot ROM left it, one lane. */
#include "bare.h"
#include "sf_board.h"

#define CLOCKS 0x40010000u
#define RESETS 0x40020000u
#define GPIO 0x40028000u
#define PADS 0x40038000u
#define XOSC 0x40048000u
#define PLL 0x40050000u
#define CLEAR 0x3000u /* alias of a register that clears the bits written */

#define CLK_REF (CLOCKS + 0x30u)
#define CLK_SYS (CLOCKS + 0x3Cu)
#define CLK_PERI (CLOCKS + 0x48u)
#define SELECTED 8u

enum { IO_BANK0 = 1 << 6, PADS_BANK0 = 1 << 9, PLL_SYS = 1 << 14, UART0 = 1 << 26 };

/* 12 MHz * 125 / 5 / 2 */
_Static_assert(SF_CPU_HZ == 12000000u * 125u / 10u, "the PLL is set up for 150 MHz");

/* What makes the boot ROM start it: an Arm program, secure, in one block that points to itself. */
extern const uint32_t sf_image_def[5];
__attribute__((section(".image_def"), used))
const uint32_t sf_image_def[5] = {0xFFFFDED3u, 0x10210142u, 0x000001FFu, 0, 0xAB123579u};

static void out_of_reset(uint32_t what) {
    *sf_reg(RESETS + CLEAR) = what;
    while ((*sf_reg(RESETS + 8u) & what) != what) {
    }
}

static void clocks(void) {
    *sf_reg(XOSC + 0x0Cu) = 47; /* start-up, in 256 cycles: 1 ms */
    *sf_reg(XOSC) = 0xFABAA0;   /* on, 1 to 15 MHz */
    while ((*sf_reg(XOSC + 4u) >> 31) == 0) {
    }
    *sf_reg(CLK_REF) = 2; /* the crystal */
    while (*sf_reg(CLK_REF + SELECTED) != 1u << 2) {
    }
    *sf_reg(CLK_SYS) = 0; /* the reference, while the PLL is set up */
    while (*sf_reg(CLK_SYS + SELECTED) != 1u) {
    }
    out_of_reset(PLL_SYS);
    *sf_reg(PLL) = 1;                         /* reference divider */
    *sf_reg(PLL + 8u) = 125;                  /* multiplier */
    *sf_reg(PLL + 4u + CLEAR) = 1u | 1u << 5; /* power for PLL and VCO */
    while ((*sf_reg(PLL) >> 31) == 0) {
    }
    *sf_reg(PLL + 0x0Cu) = 5u << 16 | 2u << 12; /* dividers behind it */
    *sf_reg(PLL + 4u + CLEAR) = 1u << 3;        /* and their power */
    *sf_reg(CLK_SYS) = 1;
    while (*sf_reg(CLK_SYS + SELECTED) != 1u << 1) {
    }
    *sf_reg(CLK_PERI) = 1u << 11; /* on, from the system clock */
}

void sf_board_init(void) {
    clocks();
    out_of_reset(IO_BANK0 | PADS_BANK0 | UART0);
    *sf_reg(GPIO + 4u) = 2; /* GPIO 0 and 1 are UART0 */
    *sf_reg(GPIO + 0x0Cu) = 2;
    *sf_reg(PADS + 4u) = 0x52; /* writes also end the isolation of the pads */
    *sf_reg(PADS + 8u) = 0x5A; /* input with a pull-up, an open line is idle */
}
