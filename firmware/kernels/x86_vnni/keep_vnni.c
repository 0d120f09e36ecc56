/* Masks with AVX-512: sixteen values at a time. */
#include "x86_vnni.h"

uint32_t sf_x86_vnni_keep_reaching(float *v, uint32_t n, float limit, uint16_t *pick) {
    const __m512i size = _mm512_set1_epi32(0x7FFFFFFF);
    const __m512i least = _mm512_set1_epi32((int32_t)(sf_bits(limit) & 0x7FFFFFFFu));
    __m512i at = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i += 16u, at = _mm512_add_epi32(at, _mm512_set1_epi32(16))) {
        const __mmask16 some = (__mmask16)(n - i < 16u ? (1u << (n - i)) - 1u : 0xFFFFu);
        const __m512i x = _mm512_maskz_loadu_epi32(some, v + i);
        const __mmask16 keep = _mm512_mask_cmpge_epi32_mask(some, _mm512_and_si512(x, size), least);
        const uint32_t more = (uint32_t)__builtin_popcount(keep);
        const __m512i left = _mm512_maskz_compress_epi32(keep, at);
        _mm512_mask_storeu_epi32(v + i, some, _mm512_maskz_mov_epi32(keep, x));
        _mm512_mask_cvtepi32_storeu_epi16(pick + kept, (__mmask16)((1u << more) - 1u), left);
        kept += more;
    }
    return kept;
}
