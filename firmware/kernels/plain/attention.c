/* Query heads over an int8 KV cache: integer dot products, integer softmax, integer mixing. */
#include "attend.h"

const uint32_t sf_exp2_steps[32] = {
    0x7FFEA840u, 0x7D40AA20u, 0x7A91ABE0u, 0x77F0ADE0u, 0x755FAF80u, 0x72DBB140u, 0x7065B2E0u,
    0x6DFCB4A0u, 0x6BA1B620u, 0x6952B7E0u, 0x6711B940u, 0x64DBBAE0u, 0x62B2BC60u, 0x6095BDC0u,
    0x5E83BF20u, 0x5C7CC0A0u, 0x5A81C200u, 0x5891C340u, 0x56ABC480u, 0x54CFC5E0u, 0x52FEC720u,
    0x5137C840u, 0x4F79C980u, 0x4DC5CAC0u, 0x4C1BCBC0u, 0x4A79CD00u, 0x48E1CE00u, 0x4751CF20u,
    0x45CAD020u, 0x444BD120u, 0x42D4D240u, 0x4166D320u,
};

static void one_head(const sf_attn *a, const float *q, int16_t *q16, int32_t *score, int32_t *acc,
                     float *out) {
    const uint32_t n = a->last - a->first + 1u;
    const int32_t sq = sf_plain_quantize16(q, a->head_dim, q16);
    const sf_score_unit unit = sf_unit_of(a, sq);
    const int8_t *k = a->k + a->first * a->stride, *ks = a->ks + a->first * a->estride;
    const int8_t *v = a->v + a->first * a->stride, *vs = a->vs + a->first * a->estride;
    int32_t best = INT32_MIN;
    for (uint32_t t = 0; t < n; t++) {
        int32_t dot = 0;
        for (uint32_t i = 0; i < a->head_dim; i++) {
            dot += (int32_t)q16[i] * k[t * a->stride + i];
        }
        const uint32_t far = (uint32_t)(ks[t * a->estride] - a->k_least);
        const uint32_t factor = far > 31u ? 0u : unit.factor >> far;
        score[t] = (int32_t)(((int64_t)dot * factor) >> 32);
        best = score[t] > best ? score[t] : best;
    }

    /* Each score becomes the coefficient of its value's integers. */
    const uint32_t headroom = sf_headroom(n), shift = sf_coefficient_shift(headroom);
    uint32_t total = 0;
    for (uint32_t i = 0; i < a->head_dim; i++) {
        acc[i] = 0;
    }
    for (uint32_t t = 0; t < n; t++) {
        uint32_t x = (uint32_t)best - (uint32_t)score[t];
        x = x > SF_X_LIMIT >> unit.left ? SF_X_LIMIT : x << unit.left;
        const uint32_t e = (x >> 12) + headroom;
        const uint32_t p = e > 31u ? 0u : sf_exp2_part(x) >> e;
        const uint32_t far = (uint32_t)(vs[t * a->estride] - a->v_least) + shift;
        const int32_t c = (int32_t)(far > 31u ? 0u : (p + (1u << (far - 1u))) >> far);
        total += p;
        for (uint32_t i = 0; i < a->head_dim; i++) {
            acc[i] += c * v[t * a->stride + i];
        }
    }
    const float factor = sf_mixed_unit(a, shift, total);
    for (uint32_t i = 0; i < a->head_dim; i++) {
        out[i] = (float)acc[i] * factor;
    }
}

void sf_plain_attention(const sf_attn *a, uint32_t heads, const float *q, int16_t *q16,
                        int32_t *score, int32_t *acc, float *out) {
    for (uint32_t h = 0; h < heads; h++) {
        one_head(a, q + h * a->head_dim, q16, score, acc, out + h * a->head_dim);
    }
}
