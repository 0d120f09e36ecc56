/* Rows of proxies and of signs with AVX2. */
#include "dot_groups.h"

SF_INLINE __m256i both(__m256i w, __m256i v) {
    return _mm256_or_si256(_mm256_and_si256(w, _mm256_set1_epi8(0x33)),
                           _mm256_and_si256(v, _mm256_set1_epi8((char)0xCC)));
}
/* Sums of 16 bits: four times two products are at most 8 * 15 * 127, and so are the others. */
SF_INLINE void add_halves(__m256i u, __m256i mask, __m256i q, __m256i r, __m256i *lower,
                          __m256i *upper) {
    const __m256i low = _mm256_and_si256(u, mask);
    const __m256i up = _mm256_and_si256(_mm256_srli_epi16(u, 4), mask);
    *lower = _mm256_add_epi16(*lower, _mm256_maddubs_epi16(low, q));
    *upper = _mm256_add_epi16(*upper, _mm256_maddubs_epi16(up, r));
}
SF_INLINE __m256i lane_sums(__m256i lower, __m256i upper) {
    return _mm256_madd_epi16(_mm256_add_epi16(lower, upper), _mm256_set1_epi16(1));
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
