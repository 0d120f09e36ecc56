/* Symmetric 4-bit weights with their scales beside them, by rows and by columns.
 *
 * A row or a column: nibbles [groups][16] of q + 8, then d [groups] as halves. */
#include "sf_kernels.h"

void sf_plain_dot_s4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r];
        const uint8_t *scales = row[r] + x->groups * (SF_GROUP / 2u);
        const int8_t *q = x->q;
        int64_t acc = 0;
        for (uint32_t g = 0; g < x->groups; g++) {
            int32_t isum = 0;
            for (uint32_t i = 0; i < SF_GROUP / 2u; i++) {
                isum += (int32_t)(w[i] & 15u) * q[i] + (int32_t)(w[i] >> 4) * q[i + SF_GROUP / 2u];
            }
            isum = isum * (int32_t)(1u << x->k[g]) - 8 * x->sum[g];
            acc += (int64_t)isum * sf_half(sf_load16(scales + 2u * g));
            w += SF_GROUP / 2u;
            q += SF_GROUP;
        }
        out[r] = sf_sum_to_float(acc, x->s);
    }
}

void sf_plain_axpy_s4(const uint8_t *const *col, const int32_t *a, uint32_t n, uint32_t dim,
                      uint32_t shift, int32_t *acc) {
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = col[r];
        const uint8_t *scales = col[r] + dim / 2u;
        for (uint32_t j = 0; j < dim; j += SF_GROUP) {
            const int32_t t = sf_s4_factor(a[r], sf_load16(scales + j / 16u), shift);
            int32_t *y = acc + j;
            for (uint32_t i = 0; i < SF_GROUP / 2u; i++) {
                y[i] += t * ((int32_t)(w[i] & 15u) - 8);
                y[i + SF_GROUP / 2u] += t * ((int32_t)(w[i] >> 4) - 8);
            }
            w += SF_GROUP / 2u;
        }
    }
}

void sf_plain_row_s4(const uint8_t *row, uint32_t dim, float *x) {
    const uint8_t *scales = row + dim / 2u;
    for (uint32_t j = 0; j < dim; j += SF_GROUP) {
        const float d = (float)sf_half(sf_load16(scales + j / 16u)) * 0x1p-24f;
        for (uint32_t i = 0; i < SF_GROUP / 2u; i++) {
            const uint32_t w = row[j / 2u + i];
            x[j + i] = d * (float)((int32_t)(w & 15u) - 8);
            x[j + i + SF_GROUP / 2u] = d * (float)((int32_t)(w >> 4) - 8);
        }
    }
}
