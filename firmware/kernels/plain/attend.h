/* The softmax in integers, as every tier of attention shares it (docs/SPEC.md, "Attention"). */
#ifndef SF_ATTEND_H
#define SF_ATTEND_H

#include "sf_kernels.h"

#define SF_X_LIMIT 0x1FFFFu /* scores this far below the largest, in 2^-12, weigh nothing */

/* 2^-(i/32) above, the way to 2^-((i + 1)/32) in 2^-11 below. */
extern const uint32_t sf_exp2_steps[32];

/* 2^-(x/4096) without the whole part of x/4096, in 2^-31. */
static inline uint32_t sf_exp2_part(uint32_t x) {
    const uint32_t step = sf_exp2_steps[x >> 7 & 31u];
    const uint32_t rest = x << 4 & 0x7F0u;
#ifdef SF_DSP
    uint32_t r;
    __asm("smlabb %0, %1, %2, %1" : "=r"(r) : "r"(step), "r"(rest));
    return r;
#else
    return step + (uint32_t)((int32_t)(int16_t)step * (int32_t)rest);
#endif
}

/* What the sums of a head become scores with: the factor of a key whose exponent is the least, and
 * how far left differences of scores are shifted. */
typedef struct {
    uint32_t factor, left;
} sf_score_unit;

static inline sf_score_unit sf_unit_of(const sf_attn *a, int32_t sq) {
    const uint32_t bits = sf_bits(a->scale);
    const int32_t right = sq + a->k_least - ((int32_t)(bits >> 23) - 127) - 14;
    const uint32_t c = ((bits & 0x7FFFFFu) | 0x800000u) << 7;
    if (right < 0) {
        return (sf_score_unit){c, right < -10 ? 10u : (uint32_t)-right};
    }
    return (sf_score_unit){right > 31 ? 0u : c >> right, 0u};
}

/* Bits that weights of n positions lose so that their sum has 32. */
static inline uint32_t sf_headroom(uint32_t n) {
    uint32_t h = 0;
    while ((n - 1u) >> (h + 1u)) {
        h++;
    }
    return h;
}
/* Bits that coefficients have less than weights. */
static inline uint32_t sf_coefficient_shift(uint32_t headroom) {
    return headroom < 8u ? 16u - headroom : 8u;
}
/* 2^(coefficient shift - exponent) / total: from sums of coefficients to values. */
static inline float sf_mixed_unit(const sf_attn *a, uint32_t shift, uint32_t total) {
    return sf_pow2((int32_t)shift - a->v_least) / (float)total;
}

#endif
