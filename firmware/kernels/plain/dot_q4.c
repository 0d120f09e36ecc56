/* Affine 4-bit rows times an activation vector. Row: nibbles [groups][16], then {d, m} [groups]. */
#include "sf_kernels.h"

void sf_plain_dot_q4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r];
        const uint8_t *scales = row[r] + x->groups * (SF_GROUP / 2u);
        const int8_t *q = x->q;
        int64_t acc = 0;
        for (uint32_t g = 0; g < x->groups; g++) {
            const uint32_t dm = sf_load32(scales + 4u * g);
            int32_t isum = 0;
            for (uint32_t i = 0; i < SF_GROUP / 2u; i++) {
                isum += (int32_t)(w[i] & 15u) * q[i] + (int32_t)(w[i] >> 4) * q[i + SF_GROUP / 2u];
            }
            acc += (int64_t)(isum * (int32_t)(1u << x->k[g])) * sf_half(dm & 0xFFFFu);
            acc += (int64_t)x->sum[g] * sf_half(dm >> 16);
            w += SF_GROUP / 2u;
            q += SF_GROUP;
        }
        out[r] = sf_sum_to_float(acc, x->s);
    }
}
