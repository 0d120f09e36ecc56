/* What the RP2040 and the RP2350 do alike, at other addresses. */
#ifndef SF_RP_CLOCKS_H
#define SF_RP_CLOCKS_H

#include <stdint.h>

typedef struct {
    uint32_t resets, clocks, xosc, pll; /* register blocks */
    uint32_t pll_reset;                 /* its bit of the resets */
    uint32_t divider;                   /* of 12 MHz * 125 / 2 */
} sf_rp;

/* Takes blocks out of reset. */
void sf_rp_release(uint32_t resets, uint32_t what);
/* Crystal, system PLL, and the peripheral clock behind it. */
void sf_rp_clocks(const sf_rp *chip);

#endif
