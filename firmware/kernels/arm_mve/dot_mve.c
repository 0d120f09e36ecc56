/* Rows times an activation vector with MVE: 16 products an instruction. */
#include "mve.h"

void sf_arm_mve_dot_q8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    const uint32_t groups = x->groups;
    for (uint32_t r = 0; r < n; r++) {
        const int8_t *w = (const int8_t *)row[r];
        const uint8_t *d = row[r] + groups * SF_GROUP;
        const int8_t *q = x->q;
        int64_t acc = 0;
        for (uint32_t g = 0; g < groups; g++) {
            int32_t s = vmladavq_s8(vldrbq_s8(w), vldrbq_s8(q));
            s = vmladavaq_s8(s, vldrbq_s8(w + 16), vldrbq_s8(q + 16));
            acc += (int64_t)(int32_t)((uint32_t)s << x->k[g]) * sf_one_half(d);
            w += SF_GROUP;
            q += SF_GROUP;
            d += 2;
        }
        out[r] = sf_sum_to_float(acc, x->s);
    }
}

/* The nibbles are q + 8. */
void sf_arm_mve_dot_s4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    const uint32_t groups = x->groups;
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r];
        const uint8_t *d = row[r] + groups * (SF_GROUP / 2u);
        const int8_t *q = x->q;
        int64_t acc = 0;
        for (uint32_t g = 0; g < groups; g++) {
            const uint8x16_t both = vldrbq_u8(w);
            const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
            const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
            int32_t s = vmladavq_s8(low, vldrbq_s8(q));
            s = vmladavaq_s8(s, high, vldrbq_s8(q + 16));
            acc += (int64_t)((int32_t)((uint32_t)s << x->k[g]) - 8 * x->sum[g]) * sf_one_half(d);
            w += SF_GROUP / 2u;
            q += SF_GROUP;
            d += 2;
        }
        out[r] = sf_sum_to_float(acc, x->s);
    }
}

void sf_arm_mve_dot_q4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    const uint32_t groups = x->groups;
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r];
        const uint8_t *dm = row[r] + groups * (SF_GROUP / 2u);
        const int8_t *q = x->q;
        int64_t acc = 0;
        for (uint32_t g = 0; g < groups; g++) {
            int32_t d, m;
            const uint8x16_t both = vldrbq_u8(w);
            const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
            const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
            int32_t s = vmladavq_s8(low, vldrbq_s8(q));
            s = vmladavaq_s8(s, high, vldrbq_s8(q + 16));
            sf_two_halves(dm, &d, &m);
            acc += (int64_t)(int32_t)((uint32_t)s << x->k[g]) * d;
            acc += (int64_t)x->sum[g] * m;
            w += SF_GROUP / 2u;
            q += SF_GROUP;
            dm += 4;
        }
        out[r] = sf_sum_to_float(acc, x->s);
    }
}
