#include "rp_clocks.h"
#include "bare.h"

#define CLEAR 0x3000u /* alias of a register that clears the bits written */
#define SELECTED 8u

void sf_rp_release(uint32_t resets, uint32_t what) {
    *sf_reg(resets + CLEAR) = what;
    while ((*sf_reg(resets + 8u) & what) != what) {
    }
}

void sf_rp_clocks(const sf_rp *chip) {
    const uint32_t xosc = chip->xosc, pll = chip->pll, ref = chip->clocks + 0x30u;
    const uint32_t sys = chip->clocks + 0x3Cu, peri = chip->clocks + 0x48u;
    *sf_reg(xosc + 0x0Cu) = 47; /* start-up, in 256 cycles: 1 ms */
    *sf_reg(xosc) = 0xFABAA0;   /* on, 1 to 15 MHz */
    while ((*sf_reg(xosc + 4u) >> 31) == 0) {
    }
    *sf_reg(ref) = 2; /* the crystal */
    while (*sf_reg(ref + SELECTED) != 1u << 2) {
    }
    *sf_reg(sys) = 0; /* the reference, while the PLL is set up */
    while (*sf_reg(sys + SELECTED) != 1u) {
    }
    sf_rp_release(chip->resets, chip->pll_reset);
    *sf_reg(pll) = 1;                         /* reference divider */
    *sf_reg(pll + 8u) = 125;                  /* multiplier */
    *sf_reg(pll + 4u + CLEAR) = 1u | 1u << 5; /* power for PLL and VCO */
    while ((*sf_reg(pll) >> 31) == 0) {
    }
    *sf_reg(pll + 0x0Cu) = chip->divider << 16 | 2u << 12; /* dividers behind it */
    *sf_reg(pll + 4u + CLEAR) = 1u << 3;                   /* and their power */
    *sf_reg(sys) = 1;
    while (*sf_reg(sys + SELECTED) != 1u << 1) {
    }
    *sf_reg(peri) = 1u << 11; /* on, from the system clock */
}
