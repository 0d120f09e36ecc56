/* Scaling the sums of down_proj on a Cortex-M with a floating-point unit. */
#include "arm_half.h"
#include "tiers.h"

#if defined(SF_DSP) || defined(SF_MVE)

void sf_scale_q8(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                 int64_t *acc) {
    (void)sum;
    for (uint32_t j = 0; j < dim; j += 2u) {
        int32_t d0, d1;
        sf_two_halves(scales + 2u * j, &d0, &d1);
        acc[j] += (int64_t)(int32_t)((uint32_t)isum[j] << k) * d0;
        acc[j + 1u] += (int64_t)(int32_t)((uint32_t)isum[j + 1u] << k) * d1;
        isum[j] = 0;
        isum[j + 1u] = 0;
    }
}

void sf_scale_q4(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                 int64_t *acc) {
    for (uint32_t j = 0; j < dim; j++) {
        int32_t d, m;
        sf_two_halves(scales + 4u * j, &d, &m);
        acc[j] += (int64_t)(int32_t)((uint32_t)isum[j] << k) * d;
        acc[j] += (int64_t)sum * m;
        isum[j] = 0;
    }
}

#endif
