/* 8-bit weights with one scale a row: two weights are a half, 256 times the second plus the first.
 * Row: for each group a word that only the DSP tier needs, then 16 halves; last d as a float.
 * Column: the halves of dim outputs. */
#include "sf_kernels.h"

enum { GROUP_BYTES = SF_GROUP + 4 };

/* Weights 2i and 2i + 1. */
static inline void two_of(const uint8_t *half, int32_t *w) {
    const int32_t both = (int16_t)sf_load16(half);
    w[0] = (int8_t)both;
    w[1] = (both - w[0]) / 256;
}

static inline float scale_of(const uint8_t *row, uint32_t groups) {
    float d;
    memcpy(&d, SF_ALIGNED(row + groups * GROUP_BYTES, 4), sizeof d);
    return d;
}

void sf_plain_row_r8(const uint8_t *row, uint32_t dim, float *x) {
    const float d = scale_of(row, dim / SF_GROUP);
    for (uint32_t i = 0; i < dim; i += 2u) {
        int32_t w[2];
        two_of(row + i / SF_GROUP * GROUP_BYTES + 4u + i % SF_GROUP, w);
        x[i] = d * (float)w[0];
        x[i + 1u] = d * (float)w[1];
    }
}

void sf_plain_dot_r8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        int64_t acc = 0;
        for (uint32_t g = 0; g < x->groups; g++) {
            const uint8_t *half = row[r] + g * GROUP_BYTES + 4u;
            const int8_t *q = x->q + g * SF_GROUP;
            int32_t isum = 0;
            for (uint32_t i = 0; i < SF_GROUP; i += 2u) {
                int32_t w[2];
                two_of(half + i, w);
                isum += w[0] * q[i] + w[1] * q[i + 1u];
            }
            acc += (int64_t)isum * (int32_t)(1u << x->k[g]);
        }
        out[r] = sf_row_sum_to_float(acc, x->s) * scale_of(row[r], x->groups);
    }
}

void sf_plain_axpy_r8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                      uint32_t k, int64_t *acc) {
    for (uint32_t j = 0; j < dim; j += 2u) {
        int32_t sum[2] = {0, 0};
        for (uint32_t r = 0; r < n; r++) {
            int32_t w[2];
            two_of(col[r] + j, w);
            sum[0] += w[0] * h[r];
            sum[1] += w[1] * h[r];
        }
        acc[j] += (int64_t)sum[0] * (int32_t)(1u << k);
        acc[j + 1u] += (int64_t)sum[1] * (int32_t)(1u << k);
    }
}
