/* Rows of proxies with AVX-512 VNNI. */
#include "x86_vnni.h"

#include "x86_avx2/avx2.h"

/* Bit i of each byte, for sum i, which counts 2^i. */
enum { SHIFT = 0 };
SF_INLINE __m256i products(const uint8_t *w, uint32_t bits, __m256i q) {
    const __m256i bit = _mm256_setr_epi32(0x01010101, 0x02020202, 0x04040404, 0x08080808,
                                          0x10101010, 0x20202020, 0x40404040, (int32_t)0x80808080u);
    __m256i s = _mm256_setzero_si256();
    for (uint32_t j = bits; j > 0; j--) {
        const __m256i word = _mm256_set1_epi32((int32_t)sf_load32(w + 4u * (j - 1u)));
        s = _mm256_dpbusd_epi32(_mm256_add_epi32(s, s), _mm256_and_si256(word, bit), q);
    }
    return _mm256_srav_epi32(s, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

#define SF_NAME(kernel) sf_x86_vnni_##kernel
#include "x86_avx2/proxy_body.h"
