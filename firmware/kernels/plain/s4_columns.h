/* The walk over columns of s4 that carry their scales, for a tier that adds up one group. */
#ifndef SF_S4_COLUMNS_H
#define SF_S4_COLUMNS_H

#include "sf_kernels.h"

/* y[0..31] += first + the sum over r < n of t[r] times the nibbles at col[r] + at, |t| < 2^15. */
typedef void (*sf_s4_group)(const uint8_t *const *col, const int32_t *t, uint32_t n, uint32_t at,
                            int32_t first, int32_t *y);

/* sf_axpy_s4: the factors of a group are made for a batch of columns; eight times their sum is what
 * the nibbles, which are q + 8, have too much. */
static inline void sf_s4_columns(const uint8_t *const *col, const int32_t *a, uint32_t n,
                                 uint32_t dim, uint32_t shift, int32_t *acc, sf_s4_group group) {
    enum { BATCH = 32 };
    int32_t t[BATCH];
    for (uint32_t from = 0; from < n; from += BATCH) {
        const uint32_t live = n - from < BATCH ? n - from : BATCH;
        for (uint32_t j = 0; j < dim; j += SF_GROUP) {
            int32_t sum = 0;
            for (uint32_t r = 0; r < live; r++) {
                const uint8_t *scale = col[from + r] + dim / 2u + j / 16u;
                t[r] = sf_s4_factor(a[from + r], sf_load16(scale), shift);
                sum += t[r];
            }
            group(col + from, t, live, j / 2u, -8 * sum, acc + j);
        }
    }
}

#endif
