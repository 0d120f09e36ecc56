/* Masks with AVX2: eight values at a time. */
#include "avx2.h"

uint32_t sf_x86_avx2_keep_reaching(float *v, uint32_t n, float limit, uint16_t *pick) {
    const __m256i size = _mm256_set1_epi32(0x7FFFFFFF);
    const __m256i least = _mm256_set1_epi32((int32_t)(sf_bits(limit) & 0x7FFFFFFFu));
    uint32_t kept = 0, i = 0;
    for (; i + 8u <= n; i += 8u) {
        const __m256i x = sf_load256(v + i);
        const __m256i below = _mm256_cmpgt_epi32(least, _mm256_and_si256(x, size));
        const uint32_t drop = (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(below));
        sf_store256(v + i, _mm256_andnot_si256(below, x));
        for (uint32_t j = 0; j < 8u; j++) {
            pick[kept] = (uint16_t)(i + j);
            kept += ~drop >> j & 1u;
        }
    }
    for (; i < n; i++) {
        const bool keep = sf_bits(v[i]) << 1 >= sf_bits(limit) << 1;
        pick[kept] = (uint16_t)i;
        kept += keep;
        v[i] = keep ? v[i] : 0.0f;
    }
    return kept;
}
