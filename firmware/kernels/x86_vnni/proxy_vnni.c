/* Rows of proxies with AVX-512 VNNI. */
#include "x86_vnni.h"

#include "x86_avx2/dot_groups.h"

SF_INLINE __m256i both(__m256i w, __m256i v) {
    return _mm256_ternarylogic_epi32(w, v, _mm256_set1_epi8(0x33), 0xE4);
}
/* Upper halves count 16 times. */
SF_INLINE void add_halves(__m256i u, __m256i mask, __m256i q, __m256i r, __m256i *lower,
                          __m256i *upper) {
    const __m256i up = _mm256_slli_epi32(mask, 4);
    *lower = _mm256_dpbusd_epi32(*lower, _mm256_and_si256(u, mask), q);
    *upper = _mm256_dpbusd_epi32(*upper, _mm256_and_si256(u, up), r);
}
SF_INLINE __m256i lane_sums(__m256i lower, __m256i upper) {
    return _mm256_add_epi32(lower, _mm256_srai_epi32(upper, 4));
}

#define SF_NAME(kernel) sf_x86_vnni_##kernel
#include "x86_avx2/proxy_body.h"
