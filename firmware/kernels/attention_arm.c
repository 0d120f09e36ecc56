/* One query head on a Cortex-M with DSP or MVE; the same integers as attention.c. */
#include "sf_kernels.h"
#include "tiers.h"

#if defined(SF_DSP) || defined(SF_MVE)

/* The scores' memory holds, one after the other: scores, packed exponentials, coefficients. */
typedef uint32_t __attribute__((may_alias)) word;
typedef int16_t __attribute__((may_alias)) coefficient;

#ifdef SF_MVE

static void prepare(int16_t *q, uint32_t n) {
    (void)q;
    (void)n;
}

static inline int32_t dot(const int16_t *q, const int8_t *k, uint32_t n) {
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i += 8u) {
        const mve_pred16_t p = vctp16q(n - i);
        sum = vmladavaq_p_s16(sum, vldrbq_z_s16(k + i, p), vldrhq_z_s16(q + i, p), p);
    }
    return sum;
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

static inline int32_t dot(const int16_t *q, const int8_t *k, uint32_t n) {
    const word *two = (const word *)(const void *)q;
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i += 4u) {
        const uint32_t w = sf_load32((const uint8_t *)k + i);
        sum = sf_mac2(sf_even(w), *two++, sum);
        sum = sf_mac2(sf_odd(w), *two++, sum);
    }
    return sum;
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
    const int8_t *k = a->k + a->first * stride;
    const int8_t *e = a->ks + a->first * estride;
    const float scale = a->scale;
    float best = 0.0f;
    for (uint32_t t = 0; t < n; t++) {
        const float unscaled = (float)dot(q16, k, dim) * sf_pow2(-(sq + *e));
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

    /* Coefficients of 15 bits in place, two a word. */
    coefficient *const c = (coefficient *)(void *)score;
    e = a->vs + a->first * estride;
    for (uint32_t t = 0; t < n; t++) {
        const uint32_t p = packed[t];
        const int32_t shift = (int32_t)(p >> 24) + *e - lowest + headroom;
        uint32_t v = 0;
        if (shift <= 17) {
            v = ((p & 0x1FFFFu) + (1u << (shift - 1))) >> shift;
            v = v > 32767u ? 32767u : v;
        }
        c[t] = (coefficient)v;
        e += estride;
    }
    mix(a->v + a->first * stride, stride, c, n, dim, acc);
    const float factor = sf_pow2(headroom + 14 - lowest) / (float)total;
    for (uint32_t i = 0; i < dim; i++) {
        out[i] = (float)acc[i] * factor;
    }
}

#endif
