/* One query head on a Cortex-M with DSP; the same integers as attention.c. */
#include "arm_dsp.h"

#ifdef SF_DSP

/* The scores' memory holds, one after the other: scores, packed exponentials, coefficients. */
typedef uint32_t __attribute__((may_alias)) word;

/* Groups of 4 as the pairs (0, 2) and (1, 3). */
static void pair_up(int16_t *q, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 4u) {
        const int16_t t = q[i + 1u];
        q[i + 1u] = q[i + 2u];
        q[i + 2u] = t;
    }
}

static inline int32_t dot(const word *q, const int8_t *k, uint32_t n) {
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i += 4u) {
        const uint32_t w = sf_load32((const uint8_t *)k + i);
        sum = sf_mac2(sf_even(w), *q++, sum);
        sum = sf_mac2(sf_odd(w), *q++, sum);
    }
    return sum;
}

/* Four sums of the coefficients times bytes i to i + 3 of v, two positions a product. */
static void mix(const int8_t *v, uint32_t stride, const word *c, uint32_t pairs, int32_t *acc) {
    int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0;
    const word *end = c + pairs;
    while (c != end) {
        const uint32_t x = sf_load32((const uint8_t *)v),
                       y = sf_load32((const uint8_t *)v + stride);
        const uint32_t two = *c++, low = sf_low2(x, y), high = sf_high2(x, y);
        a0 = sf_mac2(sf_even(low), two, a0);
        a1 = sf_mac2(sf_odd(low), two, a1);
        a2 = sf_mac2(sf_even(high), two, a2);
        a3 = sf_mac2(sf_odd(high), two, a3);
        v += 2u * stride;
    }
    acc[0] = a0;
    acc[1] = a1;
    acc[2] = a2;
    acc[3] = a3;
}

void sf_attention(const sf_attn *a, const float *q, int16_t *q16, float *score, int32_t *acc,
                  float *out) {
    const uint32_t n = a->last - a->first + 1u;
    const uint32_t dim = a->head_dim, stride = a->stride, estride = a->estride;
    const int32_t sq = sf_quantize16(q, dim, q16);
    word *const packed = (word *)score;
    pair_up(q16, dim);
    const int8_t *k = a->k + a->first * stride;
    const int8_t *e = a->ks + a->first * estride;
    const float scale = a->scale;
    float best = 0.0f;
    for (uint32_t t = 0; t < n; t++) {
        const float unscaled = (float)dot((const word *)q16, k, dim) * sf_pow2(-(sq + *e));
        const float s = unscaled * scale;
        best = t == 0 || s > best ? s : best;
        score[t] = s;
        k += stride;
        e += estride;
    }

    /* m of 17 bits and the exponent above it. */
    uint64_t total = 0;
    int32_t lowest = 1000;
    e = a->vs + a->first * estride;
    for (uint32_t t = 0; t < n; t++) {
        uint32_t shift;
        float x = (best - score[t]) * 65536.0f;
        x = x < 2031616.0f ? x : 2031616.0f;
        const uint32_t m = sf_exp2n((uint32_t)x, &shift);
        const int32_t exponent = (int32_t)shift + *e;
        total += (m << 14) >> shift;
        lowest = exponent < lowest ? exponent : lowest;
        packed[t] = m | shift << 24;
        e += estride;
    }
    int32_t headroom = 1;
    while ((n - 1u) >> (8 + headroom)) {
        headroom++;
    }

    /* Coefficients of 15 bits in place, two a word; an odd one gets a zero beside it. */
    int16_t __attribute__((may_alias)) *const c = (void *)score;
    e = a->vs + a->first * estride;
    for (uint32_t t = 0; t < n; t++) {
        const uint32_t p = packed[t];
        const int32_t shift = (int32_t)(p >> 24) + *e - lowest + headroom;
        uint32_t v = 0;
        if (shift <= 17) {
            v = ((p & 0x1FFFFu) + (1u << (shift - 1))) >> shift;
            v = v > 32767u ? 32767u : v;
        }
        c[t] = (int16_t)v;
        e += estride;
    }
    const int8_t *v = a->v + a->first * stride;
    for (uint32_t i = 0; i < dim; i += 4u) {
        mix(v + i, stride, (const word *)score, n / 2u, acc + i);
    }
    if (n % 2u != 0) {
        const int8_t *last = v + (n - 1u) * stride;
        for (uint32_t i = 0; i < dim; i++) {
            acc[i] += c[n - 1u] * last[i];
        }
    }
    const float factor = sf_pow2(headroom + 14 - lowest) / (float)total;
    for (uint32_t i = 0; i < dim; i++) {
        out[i] = (float)acc[i] * factor;
    }
}

#endif
