/* Rows times an activation vector with NEON, for a tier that has mac16 (four sums += sixteen
 * products) and SF_NAME(kernel), its name of a kernel. */
#include "arm_neon/neon.h"

/* A half in units of 2^-24. */
static inline int32_t units(const uint8_t *p) {
    float16_t h;
    memcpy(&h, p, sizeof h);
    return (int32_t)((float)h * 16777216.0f);
}

void SF_NAME(dot_q8)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        const int8_t *w = (const int8_t *)row[r];
        const uint8_t *d = row[r] + x->groups * SF_GROUP;
        const int8_t *q = x->q;
        int64_t acc = 0;
        for (uint32_t g = 0; g < x->groups; g++) {
            int32x4_t s = mac16(vdupq_n_s32(0), vld1q_s8(w), vld1q_s8(q));
            s = mac16(s, vld1q_s8(w + 16), vld1q_s8(q + 16));
            acc += (int64_t)(int32_t)((uint32_t)vaddvq_s32(s) << x->k[g]) * units(d + 2u * g);
            w += SF_GROUP;
            q += SF_GROUP;
        }
        out[r] = sf_sum_to_float(acc, x->s);
    }
}

void SF_NAME(dot_q4)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r];
        const uint8_t *dm = row[r] + x->groups * (SF_GROUP / 2u);
        const int8_t *q = x->q;
        int64_t acc = 0;
        for (uint32_t g = 0; g < x->groups; g++) {
            const uint8x16_t both = vld1q_u8(w);
            const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
            const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
            int32x4_t s = mac16(vdupq_n_s32(0), low, vld1q_s8(q));
            s = mac16(s, high, vld1q_s8(q + 16));
            acc += (int64_t)(int32_t)((uint32_t)vaddvq_s32(s) << x->k[g]) * units(dm + 4u * g);
            acc += (int64_t)x->sum[g] * units(dm + 4u * g + 2u);
            w += SF_GROUP / 2u;
            q += SF_GROUP;
        }
        out[r] = sf_sum_to_float(acc, x->s);
    }
}
