/* Rows of proxies on a Cortex-M with DSP: two weights of each half of bytes meet two activations at
 * once. */
#include "dsp.h"

enum {
    BLOCK = 8, /* groups whose words lie side by side */
    PAIRS = 16 /* of the activations of a group */
};

/* Halves of bytes whose lowest bits are stored weights: fours s in the lower, s + 4 in the upper;
 * w: words of a group, `step` bytes apart. */
static inline uint32_t eight_weights(const uint8_t *w, uint32_t step, uint32_t bits, uint32_t s) {
    if (bits == 1u) {
        return sf_load32(w) >> s;
    }
    if (bits == 4u) {
        return sf_load32(w + s * step);
    }
    const uint32_t low = sf_load32(w + s / 2u * step) >> s % 2u * 2u;
    if (bits == 2u) {
        return low;
    }
    const uint32_t high = sf_load32(w + 2u * step);
    return (low & 0x33333333u) | ((s < 2u ? high << (2u - s) : high >> (s - 2u)) & 0x44444444u);
}

/* The products of a group, below 2^16. */
static inline int32_t products(const uint8_t *w, uint32_t step, uint32_t bits, const uint32_t *x) {
    const uint32_t two = ((1u << bits) - 1u) * 0x10001u;
    int32_t sum = 0;
    for (uint32_t s = 0; s < 4u; s++, x += 2) {
        const uint32_t v = eight_weights(w, step, bits, s);
        sum = sf_mac2(v & two, x[0], sum);
        sum = sf_mac2(v >> 8 & two, x[1], sum);
        sum = sf_mac2(v >> 4 & two, x[PAIRS / 2], sum);
        sum = sf_mac2(v >> 12 & two, x[PAIRS / 2 + 1], sum);
    }
    return sum;
}

static inline void proxy_rows(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                              float *out) {
    const int32_t less = bits == 1u ? 1 : (int32_t)(1u << (bits - 1u)) - 1;
    const uint32_t scales = x->groups * bits * 4u, once = bits == 1u ? 1u : 0u;
    uint32_t wide[BLOCK * PAIRS];
    int64_t acc[SF_TILE];
    for (uint32_t from = 0; from < x->groups; from += BLOCK) {
        const uint32_t left = x->groups - from, live = left < BLOCK ? left : BLOCK;
        for (uint32_t g = 0; g < live; g++) {
            sf_widen(x->q + SF_GROUP * (from + g), 0, wide + PAIRS * g);
        }
        for (uint32_t r = 0; r < n; r++) {
            const uint8_t *w = row[r] + 4u * bits * from, *d = row[r] + scales + 2u * from;
            int64_t sum = from == 0 ? 0 : acc[r];
            for (uint32_t g = 0; g < live; g++, w += 4, d += 2) {
                const int32_t all = products(w, 4u * live, bits, wide + PAIRS * g);
                const int32_t whole = (int32_t)((uint32_t)all << (x->k[from + g] + once));
                sum += (int64_t)(whole - less * x->sum[from + g]) * sf_one_half(d);
            }
            acc[r] = sum;
        }
    }
    for (uint32_t r = 0; r < n; r++) {
        out[r] = sf_sum_to_float(acc[r], x->s);
    }
}

void sf_arm_dsp_dot_proxy(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                          float *out) {
    switch (bits) {
    case 1: proxy_rows(row, n, 1, x, out); break;
    case 2: proxy_rows(row, n, 2, x, out); break;
    case 3: proxy_rows(row, n, 3, x, out); break;
    default: proxy_rows(row, n, 4, x, out); break;
    }
}
