/* One query head on a Cortex-M with DSP or MVE; the same integers as attention.c. */
#include "sf_kernels.h"
#include "tiers.h"

#include <stdbool.h>

#if defined(SF_DSP) || defined(SF_MVE)

/* The scores' memory holds, one after the other: dot products, scores, packed exponentials,
 * coefficients. */
typedef uint32_t __attribute__((may_alias)) word;
typedef int32_t __attribute__((may_alias)) sum_of;
typedef int16_t __attribute__((may_alias)) coefficient;

/* x * 65536 of x >= 0, truncated; the largest integer when it does not fit. */
static inline uint32_t fixed16(float x) {
    __asm("vcvt.u32.f32 %0, %0, #16" : "+t"(x));
    return sf_bits(x);
}
/* x >> shift, 0 for shifts from 32 to 255. */
static inline uint32_t down(uint32_t x, uint32_t shift) {
    __asm("lsr %0, %0, %1" : "+r"(x) : "r"(shift));
    return x;
}
/* At most 32767. */
static inline uint32_t saturated(uint32_t x) {
    __asm("usat %0, #15, %0" : "+r"(x));
    return x;
}

#ifdef SF_MVE

static void prepare(int16_t *q, uint32_t n) {
    (void)q;
    (void)n;
}

/* sum[t] = q . k[t] for n positions. */
static void dots(const int16_t *q, const int8_t *k, uint32_t stride, uint32_t n, uint32_t dim,
                 sum_of *sum) {
    for (uint32_t t = 0; t < n; t++) {
        int32_t s = 0;
        for (uint32_t i = 0; i < dim; i += 8u) {
            const mve_pred16_t p = vctp16q(dim - i);
            s = vmladavaq_p_s16(s, vldrbq_z_s16(k + i, p), vldrhq_z_s16(q + i, p), p);
        }
        sum[t] = s;
        k += stride;
    }
}

/* acc[i] = the sum of c[t] * v[t][i] over n positions. */
static void mix(const int8_t *v, uint32_t stride, const coefficient *c, uint32_t n, uint32_t dim,
                int32_t *acc) {
    for (uint32_t i = 0; i < dim; i += 8u) {
        const mve_pred16_t p = vctp32q(dim - i), q = dim - i > 4u ? vctp32q(dim - i - 4u) : 0;
        int32x4_t a = vdupq_n_s32(0), b = a;
        const int8_t *w = v + i;
        for (uint32_t t = 0; t < n; t++) {
            a = vmlaq_n_s32(a, vldrbq_z_s32(w, p), c[t]);
            b = vmlaq_n_s32(b, vldrbq_z_s32(w + 4, q), c[t]);
            w += stride;
        }
        vstrwq_p_s32(acc + i, a, p);
        vstrwq_p_s32(acc + i + 4, b, q);
    }
}

#else

/* Groups of 4 as the pairs (0, 2) and (1, 3). */
static void prepare(int16_t *q, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 4u) {
        const int16_t t = q[i + 1u];
        q[i + 1u] = q[i + 2u];
        q[i + 2u] = t;
    }
}

/* sum[t] = q . k[t] for n positions: 8 elements of q stay in registers for all of them. */
static void dots(const int16_t *q, const int8_t *k, uint32_t stride, uint32_t n, uint32_t dim,
                 sum_of *sum) {
    for (uint32_t i = 0; i < dim; i += 8u) {
        const word *two = (const word *)(const void *)(q + i);
        const bool whole = dim - i >= 8u;
        const uint32_t q0 = two[0], q1 = two[1], q2 = whole ? two[2] : 0u, q3 = whole ? two[3] : 0u;
        const int8_t *w = k + i;
        const uint32_t more = whole ? 4u : 0u;
        for (uint32_t t = 0; t < n; t++) {
            const uint32_t x = sf_load32((const uint8_t *)w);
            const uint32_t y = sf_load32((const uint8_t *)w + more);
            int32_t s = i == 0 ? 0 : sum[t];
            s = sf_mac2(sf_even(x), q0, s);
            s = sf_mac2(sf_odd(x), q1, s);
            s = sf_mac2(sf_even(y), q2, s);
            sum[t] = sf_mac2(sf_odd(y), q3, s);
            w += stride;
        }
    }
}

/* acc[i] = the sum of c[t] * v[t][i] over n positions: four sums at a time, two positions a
 * product. */
static void mix(const int8_t *v, uint32_t stride, const coefficient *c, uint32_t n, uint32_t dim,
                int32_t *acc) {
    const int8_t *last = v + (n - 1u) * stride;
    for (uint32_t i = 0; i < dim; i += 4u) {
        int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0;
        const word *pair = (const word *)(const void *)c, *end = pair + n / 2u;
        const int8_t *w = v + i;
        while (pair != end) {
            const uint32_t x = sf_load32((const uint8_t *)w);
            const uint32_t y = sf_load32((const uint8_t *)w + stride);
            const uint32_t two = *pair++, low = sf_low2(x, y), high = sf_high2(x, y);
            a0 = sf_mac2(sf_even(low), two, a0);
            a1 = sf_mac2(sf_odd(low), two, a1);
            a2 = sf_mac2(sf_even(high), two, a2);
            a3 = sf_mac2(sf_odd(high), two, a3);
            w += 2u * stride;
        }
        const int32_t odd = n % 2u != 0 ? c[n - 1u] : 0;
        acc[i] = a0 + odd * last[i];
        acc[i + 1u] = a1 + odd * last[i + 1u];
        acc[i + 2u] = a2 + odd * last[i + 2u];
        acc[i + 3u] = a3 + odd * last[i + 3u];
    }
}

#endif

void sf_attention(const sf_attn *a, const float *q, int16_t *q16, float *score, int32_t *acc,
                  float *out) {
    const uint32_t n = a->last - a->first + 1u;
    const uint32_t dim = a->head_dim, stride = a->stride, estride = a->estride;
    const int32_t sq = sf_quantize16(q, dim, q16);
    word *const packed = (word *)(void *)score;
    prepare(q16, dim);
    dots(q16, a->k + a->first * stride, stride, n, dim, (sum_of *)(void *)score);
    const int8_t *e = a->ks + a->first * estride;
    const float scale = a->scale;
    const uint32_t one = (uint32_t)(127 - sq) << 23; /* 2^-sq */
    float best = -3.402823466e38f;
    for (uint32_t t = 0; t < n; t++) {
        const float unscaled = (float)((const sum_of *)(const void *)score)[t] *
                               sf_from_bits(one - ((uint32_t)*e << 23));
        const float s = unscaled * scale;
        best = s > best ? s : best;
        score[t] = s;
        e += estride;
    }

    /* m of 17 bits, above them the exponent that v's integers get: -40 to 60 + 31. */
    uint64_t total = 0;
    int32_t lowest = INT32_MAX;
    e = a->vs + a->first * estride;
    for (uint32_t t = 0; t < n; t++) {
        uint32_t shift;
        const uint32_t x = fixed16(best - score[t]);
        const uint32_t m = sf_exp2n(x < 2031616u ? x : 2031616u, &shift);
        total += (m << 14) >> shift;
        const int32_t p = (int32_t)(m | (shift + (uint32_t)*e) << 24);
        lowest = p < lowest ? p : lowest;
        packed[t] = (uint32_t)p;
        e += estride;
    }
    lowest >>= 24;
    int32_t headroom = 1;
    while ((n - 1u) >> (8 + headroom)) {
        headroom++;
    }

    /* Coefficients of 15 bits in place, two a word: m / 2^shift, to nearest. */
    coefficient *const c = (coefficient *)(void *)score;
    const int32_t below = headroom - 1 - lowest;
    for (uint32_t t = 0; t < n; t++) {
        const uint32_t p = packed[t], shift = (uint32_t)(((int32_t)p >> 24) + below);
        c[t] = (coefficient)saturated((down(p & 0x1FFFFu, shift) + 1u) >> 1);
    }
    mix(a->v + a->first * stride, stride, c, n, dim, acc);
    const float factor = sf_pow2(headroom + 14 - lowest) / (float)total;
    for (uint32_t i = 0; i < dim; i++) {
        out[i] = (float)acc[i] * factor;
    }
}

#endif
