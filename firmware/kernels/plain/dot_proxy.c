/* Rows of k-bit weights times an activation vector. Row: a word a bit [groups][bits], lowest bit
 * first, then d [groups]; a weight is d * (2u - 1) with 1 bit, d * (u - top) with more. */
#include "sf_kernels.h"

/* The sum of the q [32] whose bit is set. */
static int32_t masked_sum(uint32_t word, const int8_t *q) {
    int32_t sum = 0;
    for (uint32_t i = 0; i < SF_GROUP; i++) {
        sum += q[i] & -(int32_t)((word >> i) & 1u);
    }
    return sum;
}

void sf_plain_dot_proxy(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                        float *out) {
    const int32_t factor = bits == 1u ? 2 : 1;
    const int32_t less = bits == 1u ? 1 : (int32_t)(1u << (bits - 1u)) - 1;
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r];
        const uint8_t *scales = row[r] + x->groups * bits * 4u;
        const int8_t *q = x->q;
        int64_t acc = 0;
        for (uint32_t g = 0; g < x->groups; g++) {
            int32_t isum = 0; /* below 2^16 */
            for (uint32_t j = 0; j < bits; j++) {
                isum += masked_sum(sf_load32(w), q) * (int32_t)(1u << j);
                w += 4;
            }
            const int32_t sum = factor * isum * (int32_t)(1u << x->k[g]) - less * x->sum[g];
            acc += (int64_t)sum * sf_half(sf_load16(scales + 2u * g));
            q += SF_GROUP;
        }
        out[r] = sf_sum_to_float(acc, x->s);
    }
}

static uint32_t count_ones(uint32_t v) {
    v -= v >> 1 & 0x55555555u;
    v = (v & 0x33333333u) + (v >> 2 & 0x33333333u);
    return ((v + (v >> 4)) & 0x0F0F0F0Fu) * 0x01010101u >> 24;
}

void sf_plain_dot_signs(const uint8_t *const *row, uint32_t n, const uint32_t *sign,
                        uint32_t groups, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        uint32_t same = SF_GROUP * groups;
        for (uint32_t g = 0; g < groups; g++) {
            same -= count_ones(sf_load32(row[r] + 4u * g) ^ sign[g]);
        }
        out[r] = (float)(int32_t)same;
    }
}
