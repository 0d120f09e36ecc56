/* Symmetric 8-bit rows times an activation vector. Row: int8 [groups][32], then d [groups]. */
#include "sf_kernels.h"

void sf_plain_dot_q8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        /* Signed loads: GCC 12 with VNNI takes (int8_t)unsigned_byte for an unsigned product. */
        const int8_t *w = (const int8_t *)row[r];
        const uint8_t *scales = row[r] + x->groups * SF_GROUP;
        const int8_t *q = x->q;
        int64_t acc = 0;
        for (uint32_t g = 0; g < x->groups; g++) {
            int32_t isum = 0;
            for (uint32_t i = 0; i < SF_GROUP; i++) {
                isum += (int32_t)w[i] * q[i];
            }
            acc += (int64_t)(isum * (int32_t)(1u << x->k[g])) * sf_half(sf_load16(scales + 2u * g));
            w += SF_GROUP;
            q += SF_GROUP;
        }
        out[r] = sf_sum_to_float(acc, x->s);
    }
}
