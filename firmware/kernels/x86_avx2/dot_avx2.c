/* Rows times an activation vector with AVX2. */
#include "x86_avx2/avx2.h"

/* Sums of four vectors of nibbles, [half][vector] with their shifts: those of four products are
 * below 2^13, so that four of them have 16 bits. */
SF_INLINE __m256i nibble_sums(const __m256i *v, const __m256i *low, const __m256i *high,
                              __m256i shift) {
    __m256i s[4];
    for (uint32_t i = 0; i < 4u; i++) {
        s[i] = _mm256_add_epi16(_mm256_maddubs_epi16(sf_low4(v[i]), low[i]),
                                _mm256_maddubs_epi16(sf_high4(v[i]), high[i]));
    }
    const __m256i a =
        _mm256_add_epi16(_mm256_unpacklo_epi32(s[0], s[1]), _mm256_unpackhi_epi32(s[0], s[1]));
    const __m256i b =
        _mm256_add_epi16(_mm256_unpacklo_epi32(s[2], s[3]), _mm256_unpackhi_epi32(s[2], s[3]));
    return _mm256_madd_epi16(
        _mm256_add_epi16(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)), shift);
}
/* Eight sums of the products of four signed bytes each. */
SF_INLINE __m256i signed_products(__m256i w, __m256i x) {
    return sf_signed_products(w, x);
}
SF_INLINE __m256i without_offset(__m256i t, __m256i sum) {
    (void)sum; /* they have none */
    return t;
}

#define SF_NAME(kernel) sf_x86_avx2_##kernel
#include "dot_body.h"

enum {
    R8_BYTES = SF_GROUP + 4,
    CHUNK = 8 /* groups whose sums with any shift fit 32 bits: 8 * 2 * (2 * 128 + 1) * 127 * 2^12 */
};

/* Eight sums of a group of halves: its bytes are the weights, but a first one below 0 has taken one
 * from the second. */
SF_INLINE __m256i products_r8(__m256i v, __m256i x) {
    const __m256i taken = _mm256_slli_epi16(_mm256_and_si256(v, _mm256_set1_epi16(0x80)), 1);
    const __m256i s = _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(x, v));
    return _mm256_madd_epi16(_mm256_add_epi16(s, _mm256_maddubs_epi16(taken, x)),
                             _mm256_set1_epi16(1));
}

void sf_x86_avx2_dot_r8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    sf_next next = sf_rows_behind(row, n, 0, n * x->groups);
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r] + 4;
        __m256i acc = _mm256_setzero_si256();
        for (uint32_t from = 0; from < x->groups; from += CHUNK) {
            const uint32_t end = x->groups - from < CHUNK ? x->groups : from + CHUNK;
            __m256i sum = _mm256_setzero_si256();
            for (uint32_t g = from; g < end; g++, w += R8_BYTES) {
                sf_ask(&next);
                const __m256i s = products_r8(sf_load256(w), sf_load256(x->q + g * SF_GROUP));
                sum = _mm256_add_epi32(sum, _mm256_sll_epi32(s, _mm_cvtsi32_si128(x->k[g])));
            }
            acc = sf_add_wide(acc, sum);
        }
        float d;
        memcpy(&d, row[r] + x->groups * R8_BYTES, sizeof d);
        out[r] = sf_row_sum_to_float(sf_total64(acc), x->s) * d;
    }
}
