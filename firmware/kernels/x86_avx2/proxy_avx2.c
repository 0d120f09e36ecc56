/* Rows of proxies and of signs with AVX2. */
#include "dot_groups.h"

/* Factors make up for what bits count; four products of 7 bits have 16. */
enum { SHIFT = 7 };
SF_INLINE __m256i products(const uint8_t *w, uint32_t bits, __m256i q) {
    const __m256i factor = _mm256_setr_epi32(0x800080, 0x400040, 0x200020, 0x100010, 0x80008,
                                             0x40004, 0x20002, 0x10001);
    __m256i s = _mm256_setzero_si256();
    for (uint32_t j = 0; j < bits; j++) {
        const __m256i t = _mm256_maddubs_epi16(bits_of(w + 4u * j), q);
        s = _mm256_add_epi32(s, _mm256_madd_epi16(t, _mm256_slli_epi16(factor, (int)j)));
    }
    return s;
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
