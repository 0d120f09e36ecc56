/* One query head over an int8 KV cache: integer dot products, integer softmax, integer mixing. */
#include "sf_kernels.h"
#include "tiers.h"

#ifndef SF_TIER_ATTENTION

void sf_attention(const sf_attn *a, const float *q, int16_t *q16, float *score, int32_t *acc,
                  float *out) {
    const uint32_t n = a->last - a->first + 1u;
    const int32_t sq = sf_quantize16(q, a->head_dim, q16);
    float best = 0.0f;
    for (uint32_t t = 0; t < n; t++) {
        const uint32_t pos = a->first + t;
        const int8_t *k = a->k + pos * a->stride;
        int32_t dot = 0;
        for (uint32_t i = 0; i < a->head_dim; i++) {
            dot += (int32_t)q16[i] * k[i];
        }
        const float unscaled = (float)dot * sf_pow2(-(sq + a->ks[pos * a->estride]));
        score[t] = unscaled * a->scale;
        best = t == 0 || score[t] > best ? score[t] : best;
    }

    /* Probability t is m * 2^-(16+e); with v's exponent it is a coefficient of v's integers. */
    uint64_t total = 0;
    int32_t lowest = 1000;
    for (uint32_t t = 0; t < n; t++) {
        float x = (best - score[t]) * 65536.0f;
        uint32_t e;
        x = x < 2031616.0f ? x : 2031616.0f;
        const uint32_t m = sf_exp2n((uint32_t)x, &e);
        const int32_t exponent = (int32_t)e + a->vs[(a->first + t) * a->estride];
        total += (m << 14) >> e;
        lowest = exponent < lowest ? exponent : lowest;
        score[t] = x; /* kept for the second walk */
    }
    /* Coefficients get fewer bits past 512 positions: the sums stay in 32 bits. */
    int32_t headroom = 1;
    while ((n - 1u) >> (8 + headroom)) {
        headroom++;
    }
    for (uint32_t i = 0; i < a->head_dim; i++) {
        acc[i] = 0;
    }
    for (uint32_t t = 0; t < n; t++) {
        const uint32_t pos = a->first + t;
        const int8_t *v = a->v + pos * a->stride;
        uint32_t e;
        const uint32_t m = sf_exp2n((uint32_t)score[t], &e);
        const int32_t shift = (int32_t)e + a->vs[pos * a->estride] - lowest + headroom;
        if (shift > 17) {
            continue;
        }
        int32_t c = (int32_t)((m + (1u << (shift - 1))) >> shift);
        c = c > 32767 ? 32767 : c;
        for (uint32_t i = 0; i < a->head_dim; i++) {
            acc[i] += c * v[i];
        }
    }
    const float factor = sf_pow2(headroom + 14 - lowest) / (float)total;
    for (uint32_t i = 0; i < a->head_dim; i++) {
        out[i] = (float)acc[i] * factor;
    }
}

#endif
