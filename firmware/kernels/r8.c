/* 8-bit weights with one scale a row. Row: bytes [groups][32], those at even places 128 larger than
 * the weight, then d as a float. Column: the bytes of dim outputs. */
#include "arm_dsp.h"
#include "sf_kernels.h"

/* Bytes of a word of weights: signed. */
static inline uint32_t weights_of(const uint8_t *p) {
    return sf_load32(p) ^ 0x00800080u;
}

void sf_row_r8(const uint8_t *row, uint32_t dim, float *x) {
    float d;
    memcpy(&d, SF_ALIGNED(row + dim, 4), sizeof d);
    for (uint32_t i = 0; i < dim; i += 4u) {
        const uint32_t w = weights_of(row + i);
        for (uint32_t j = 0; j < 4u; j++) {
            x[i + j] = d * (float)(int8_t)(w >> 8u * j);
        }
    }
}

#ifndef SF_DSP

void sf_dot_r8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r];
        const int8_t *q = x->q;
        int64_t acc = 0;
        for (uint32_t g = 0; g < x->groups; g++) {
            int32_t isum = 0;
            for (uint32_t i = 0; i < SF_GROUP; i += 4u) {
                const uint32_t four = weights_of(w + i);
                for (uint32_t j = 0; j < 4u; j++) {
                    isum += (int32_t)(int8_t)(four >> 8u * j) * q[i + j];
                }
            }
            acc += (int64_t)isum * (int32_t)(1u << x->k[g]);
            w += SF_GROUP;
            q += SF_GROUP;
        }
        float d;
        memcpy(&d, SF_ALIGNED(w, 4), sizeof d);
        out[r] = sf_row_sum_to_float(acc, x->s) * d;
    }
}

void sf_axpy_r8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim, uint32_t k,
                int64_t *acc) {
    for (uint32_t j = 0; j < dim; j += 4u) {
        int32_t sum[4] = {0, 0, 0, 0};
        for (uint32_t r = 0; r < n; r++) {
            const uint32_t w = weights_of(col[r] + j);
            for (uint32_t i = 0; i < 4u; i++) {
                sum[i] += (int32_t)(int8_t)(w >> 8u * i) * h[r];
            }
        }
        for (uint32_t i = 0; i < 4u; i++) {
            acc[j + i] += (int64_t)sum[i] * (int32_t)(1u << k);
        }
    }
}

#endif
