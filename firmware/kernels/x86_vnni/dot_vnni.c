/* Rows times an activation vector with AVX-512 VNNI. */
#include "x86_vnni.h"

#include "x86_avx2/avx2.h"

/* Four rows and four groups at a time; lane i of 128 bits holds group i, and in it, once the sums
 * are turned, the four rows. */
void sf_x86_vnni_dot_q4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    const __m512i low = _mm512_set_epi64(13, 12, 9, 8, 5, 4, 1, 0);
    const __m512i high = _mm512_set_epi64(15, 14, 11, 10, 7, 6, 3, 2);
    const __m512i four = _mm512_set1_epi8(15);
    const __m512i spread = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    /* {d, m} [row][group] to d [group][row], then m. */
    const __m512i turn =
        _mm512_set_epi16(31, 23, 15, 7, 29, 21, 13, 5, 27, 19, 11, 3, 25, 17, 9, 1, 30, 22, 14, 6,
                         28, 20, 12, 4, 26, 18, 10, 2, 24, 16, 8, 0);
    const __m512 unit = _mm512_set1_ps(16777216.0f);
    const uint32_t quads = (n + 3u) / 4u;
    const uint8_t *w[SF_TILE];
    __m512i even[SF_TILE / 4u], odd[SF_TILE / 4u]; /* sums of rows 0 and 2, of 1 and 3 */
    sf_next next = sf_rows_behind(row, n, 0, n, 0, quads * ((x->groups + 3u) / 4u));
    for (uint32_t r = 0; r < 4u * quads; r++) {
        w[r] = row[r < n ? r : 0];
    }
    for (uint32_t r = 0; r < quads; r++) {
        even[r] = odd[r] = _mm512_setzero_si512();
    }
    for (uint32_t g = 0; g < x->groups; g += 4u) {
        const uint32_t live = x->groups - g < 4u ? x->groups - g : 4u;
        const __mmask64 bytes = UINT64_MAX >> (64u - 16u * live);
        const __mmask64 second = live > 2u ? UINT64_MAX >> (128u - 32u * live) : 0u;
        const __mmask64 first = live > 1u ? UINT64_MAX : 0xFFFFFFFFu;
        const __mmask8 words = (__mmask8)(0xFu >> (4u - live));
        const int8_t *q = x->q + g * SF_GROUP;
        const __m512i a = _mm512_maskz_loadu_epi8(first, q);
        const __m512i b = _mm512_maskz_loadu_epi8(second, q + 64);
        const __m512i xl = _mm512_permutex2var_epi64(a, low, b);
        const __m512i xh = _mm512_permutex2var_epi64(a, high, b);
        const __m128i ks = _mm_cvtepu8_epi32(_mm_maskz_loadu_epi8((__mmask16)words, x->k + g));
        const __m128i sums = _mm_maskz_loadu_epi32(words, x->sum + g);
        const __m512i k = _mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(ks));
        const __m512i xsum = _mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(sums));
        for (uint32_t r = 0; r < quads; r++) {
            sf_ask(&next);
            __m512i s[4];
            __m128i dm[4];
            for (uint32_t i = 0; i < 4u; i++) {
                const uint8_t *p = w[4u * r + i];
                const __m512i v = _mm512_maskz_loadu_epi8(bytes, p + g * (SF_GROUP / 2u));
                dm[i] = _mm_maskz_loadu_epi32(words, p + x->groups * (SF_GROUP / 2u) + 4u * g);
                s[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_and_si512(v, four), xl);
                s[i] =
                    _mm512_dpbusd_epi32(s[i], _mm512_and_si512(_mm512_srli_epi16(v, 4), four), xh);
            }
            const __m512i s01 = _mm512_add_epi32(_mm512_unpacklo_epi32(s[0], s[1]),
                                                 _mm512_unpackhi_epi32(s[0], s[1]));
            const __m512i s23 = _mm512_add_epi32(_mm512_unpacklo_epi32(s[2], s[3]),
                                                 _mm512_unpackhi_epi32(s[2], s[3]));
            const __m512i sum = _mm512_sllv_epi32(
                _mm512_add_epi32(_mm512_unpacklo_epi64(s01, s23), _mm512_unpackhi_epi64(s01, s23)),
                k);
            const __m256i dm01 = _mm256_inserti128_si256(_mm256_castsi128_si256(dm[0]), dm[1], 1);
            const __m256i dm23 = _mm256_inserti128_si256(_mm256_castsi128_si256(dm[2]), dm[3], 1);
            const __m512i halves = _mm512_permutexvar_epi16(
                turn, _mm512_inserti64x4(_mm512_castsi256_si512(dm01), dm23, 1));
            const __m512i d = _mm512_cvtps_epi32(
                _mm512_mul_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(halves)), unit));
            const __m512i m = _mm512_cvtps_epi32(
                _mm512_mul_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)), unit));
            even[r] = _mm512_add_epi64(even[r], _mm512_mul_epi32(sum, d));
            even[r] = _mm512_add_epi64(even[r], _mm512_mul_epi32(xsum, m));
            odd[r] = _mm512_add_epi64(
                odd[r], _mm512_mul_epi32(_mm512_srli_epi64(sum, 32), _mm512_srli_epi64(d, 32)));
            odd[r] = _mm512_add_epi64(odd[r], _mm512_mul_epi32(xsum, _mm512_srli_epi64(m, 32)));
        }
    }
    for (uint32_t r = 0; r < quads; r++) {
        const __m512i lo = _mm512_unpacklo_epi64(even[r], odd[r]); /* rows 0, 1 of each group */
        const __m512i hi = _mm512_unpackhi_epi64(even[r], odd[r]); /* rows 2, 3 */
        int64_t sum[4];
        const __m256i l =
            _mm256_add_epi64(_mm512_castsi512_si256(lo), _mm512_extracti64x4_epi64(lo, 1));
        const __m256i h =
            _mm256_add_epi64(_mm512_castsi512_si256(hi), _mm512_extracti64x4_epi64(hi, 1));
        _mm_storeu_si128((__m128i *)(void *)sum,
                         _mm_add_epi64(_mm256_castsi256_si128(l), _mm256_extracti128_si256(l, 1)));
        _mm_storeu_si128((__m128i *)(void *)(sum + 2),
                         _mm_add_epi64(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1)));
        for (uint32_t i = 4u * r; i < n && i < 4u * r + 4u; i++) {
            out[i] = sf_sum_to_float(sum[i - 4u * r], x->s);
        }
    }
}

/* The others with 256 bits. */
#define SF_OWN_DOT_Q4
#define dot4 _mm256_dpbusd_epi32
#define SF_NAME(kernel) sf_x86_vnni_##kernel
#include "x86_avx2/dot_vnni_body.h"
