/* Rows of proxies and of signs with AVX2. */
#include "dot_groups.h"

/* Sums of 16 bits: eight times two products are at most 16 * 15 * 127. */
SF_INLINE __m256i add_products(__m256i sum, __m256i u, __m256i q) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(u, q));
}
SF_INLINE __m256i lane_sums(__m256i even, __m256i odd) {
    return _mm256_madd_epi16(_mm256_add_epi16(even, odd), _mm256_set1_epi16(1));
}

#define SF_NAME(kernel) sf_x86_avx2_##kernel
#include "proxy_body.h"

void sf_x86_avx2_dot_signs(const uint8_t *const *row, uint32_t n, const uint32_t *sign,
                           uint32_t groups, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        uint32_t differ = 0;
        for (uint32_t g = 0; g < groups; g++) {
            differ += (uint32_t)_mm_popcnt_u32(sf_load32(row[r] + 4u * g) ^ sign[g]);
        }
        out[r] = (float)(int32_t)(SF_GROUP * groups - differ);
    }
}
