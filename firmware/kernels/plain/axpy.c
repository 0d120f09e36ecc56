/* Matrices by columns: an input adds h * column to integer sums, in any order. */
#include "sf_kernels.h"

void sf_plain_axpy_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                      int32_t *isum) {
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = col[r];
        const int32_t a = h[r];
        for (uint32_t j = 0; j < dim; j += SF_GROUP) {
            int32_t *y = isum + j;
            for (uint32_t i = 0; i < SF_GROUP / 2u; i++) {
                y[i] += a * (int32_t)(w[i] & 15u);
                y[i + SF_GROUP / 2u] += a * (int32_t)(w[i] >> 4);
            }
            w += SF_GROUP / 2u;
        }
    }
}

void sf_plain_axpy_q8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                      int32_t *isum) {
    for (uint32_t r = 0; r < n; r++) {
        const int8_t *w = (const int8_t *)col[r];
        const int32_t a = h[r];
        for (uint32_t j = 0; j < dim; j++) {
            isum[j] += a * (int32_t)w[j];
        }
    }
}

void sf_plain_scale_q4(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                       int64_t *acc) {
    const int32_t shift = (int32_t)(1u << k);
    for (uint32_t j = 0; j < dim; j++) {
        const uint32_t dm = sf_load32(scales + 4u * j);
        acc[j] += (int64_t)(isum[j] * shift) * sf_half(dm & 0xFFFFu);
        acc[j] += (int64_t)sum * sf_half(dm >> 16);
        isum[j] = 0;
    }
}

void sf_plain_scale_q8(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                       int64_t *acc) {
    const int32_t shift = (int32_t)(1u << k);
    (void)sum;
    for (uint32_t j = 0; j < dim; j++) {
        acc[j] += (int64_t)(isum[j] * shift) * sf_half(sf_load16(scales + 2u * j));
        isum[j] = 0;
    }
}

void sf_plain_floats(const int64_t *acc, uint32_t n, int32_t s, float *out) {
    for (uint32_t i = 0; i < n; i++) {
        out[i] = sf_sum_to_float(acc[i], s);
    }
}
