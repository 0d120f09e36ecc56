/* Which rows a screened head computes exactly: the largest logits, without sorting them. */
#include "sf_kernels.h"

/* A tier may compile this again, with its flags and its name. */
#ifndef SF_NAME
#define SF_NAME(kernel) sf_plain_##kernel
#endif

/* Signed integers in the order of the floats, -0 below 0. */
static inline int32_t key(float x) {
    const int32_t u = (int32_t)sf_bits(x);
    return u ^ ((u >> 31) & 0x7FFFFFFF);
}

static uint32_t reaching(const float *x, uint32_t n, int32_t limit) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        count += key(x[i]) >= limit ? 1u : 0u;
    }
    return count;
}

void SF_NAME(pick_largest)(const float *x, uint32_t n, uint32_t rows, uint16_t *pick) {
    /* The largest limit that at least `rows` reach, by bisection; one that exactly so many reach
     * picks the same. */
    int32_t low = INT32_MIN, high = INT32_MAX;
    uint32_t count = n;
    while (low < high && count != rows) {
        const int32_t middle = (int32_t)(low + (((int64_t)high - low + 1) >> 1));
        const uint32_t found = reaching(x, n, middle);
        if (found >= rows) {
            low = middle;
            count = found;
        } else {
            high = middle - 1;
        }
    }
    /* Of those that equal the limit, the first: as many as are lacking. */
    uint32_t equal = 0, k = 0;
    if (count > rows) {
        equal = rows - (low < INT32_MAX ? reaching(x, n, low + 1) : 0u);
    }
    for (uint32_t i = 0; i < n && k < rows; i++) {
        const int32_t v = key(x[i]);
        if (v > low || (v == low && (count == rows || equal > 0))) {
            equal -= v == low && count > rows ? 1u : 0u;
            pick[k++] = (uint16_t)i;
        }
    }
}
