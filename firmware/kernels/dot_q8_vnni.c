/* sf_dot_q8 for AVX-512 VNNI: weights become unsigned by adding 128, and 128 times the sum of x
 * is taken off again. Two groups at a time, one in each half. */
#include "sf_kernels.h"
#include "x86.h"

#include <stdbool.h>

#ifdef SF_VNNI

void sf_dot_q8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    const __m512i flip = _mm512_set1_epi8((char)-128);
    __m128i acc[SF_TILE];
    for (uint32_t r = 0; r < n; r++) {
        acc[r] = _mm_setzero_si128();
    }
    for (uint32_t g = 0; g < x->groups; g += 2u) {
        const bool pair = g + 1u < x->groups;
        const __mmask64 bytes = pair ? UINT64_MAX : 0xFFFFFFFFu;
        const __m512i q = _mm512_maskz_loadu_epi8(bytes, x->q + g * SF_GROUP);
        const uint32_t k0 = x->k[g], k1 = pair ? x->k[g + 1u] : 0u;
        /* Sums before the shift, times 128. */
        const __m128i bias =
            _mm_set_epi32(0, pair ? (x->sum[g + 1u] >> k1) * 128 : 0, 0, (x->sum[g] >> k0) * 128);
        const __m128i k = _mm_set_epi32(0, (int32_t)k1, 0, (int32_t)k0);
        for (uint32_t r = 0; r < n; r++) {
            const uint8_t *scales = row[r] + x->groups * SF_GROUP + 2u * g;
            const __m512i w = _mm512_maskz_loadu_epi8(bytes, row[r] + g * SF_GROUP);
            const __m512i s =
                _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_xor_si512(w, flip), q);
            const __m256i a = _mm512_castsi512_si256(s), b = _mm512_extracti64x4_epi64(s, 1);
            /* [a0+a1.. | b0+b1..]: halves added, then neighbours, to one sum a 64-bit lane. */
            const __m128i a4 =
                _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
            const __m128i b4 =
                _mm_add_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
            __m128i t = _mm_add_epi32(_mm_unpacklo_epi64(a4, b4), _mm_unpackhi_epi64(a4, b4));
            t = _mm_add_epi32(t, _mm_srli_epi64(t, 32));
            t = _mm_sllv_epi32(_mm_sub_epi32(t, bias), k);
            const uint32_t d = pair ? sf_load32(scales) : sf_load16(scales);
            const __m128i h = _mm_cvtepu32_epi64(
                _mm256_castsi256_si128(sf_halves(_mm_cvtsi32_si128((int32_t)d))));
            acc[r] = _mm_add_epi64(acc[r], _mm_mul_epi32(t, h));
        }
    }
    for (uint32_t r = 0; r < n; r++) {
        const int64_t sum = _mm_extract_epi64(acc[r], 0) + _mm_extract_epi64(acc[r], 1);
        out[r] = sf_sum_to_float(sum, x->s);
    }
}

#else

/* An empty file is not C. */
typedef int sf_no_vnni;

#endif
