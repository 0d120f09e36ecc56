/* Rows of proxies with AVX-512 VNNI. */
#include "x86_vnni.h"

#include "x86_avx2/dot_groups.h"

enum { SHIFT = 0 };
SF_INLINE __m256i products(const uint8_t *w, uint32_t bits, __m256i q) {
    __m256i s = _mm256_setzero_si256();
    for (uint32_t j = bits; j > 0; j--) {
        s = _mm256_dpbusd_epi32(_mm256_add_epi32(s, s), bits_of(w + 4u * (j - 1u)), q);
    }
    return _mm256_srav_epi32(s, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

#define SF_NAME(kernel) sf_x86_vnni_##kernel
#include "x86_avx2/proxy_body.h"
