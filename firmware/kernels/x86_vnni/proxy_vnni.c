/* Rows of proxies with AVX-512 VNNI. */
#include "x86_vnni.h"

#include "x86_avx2/dot_groups.h"

SF_INLINE __m256i add_products(__m256i sum, __m256i u, __m256i q) {
    return _mm256_dpbusd_epi32(sum, u, q);
}
SF_INLINE __m256i lane_sums(__m256i even, __m256i odd) {
    return _mm256_add_epi32(even, odd);
}

#define SF_NAME(kernel) sf_x86_vnni_##kernel
#include "x86_avx2/proxy_body.h"
