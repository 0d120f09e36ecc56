/* dot_body.h for a tier with dot4(sums, u, x), which adds products of four unsigned and signed
 * bytes to each of eight sums. */
#include "x86_avx2/avx2.h"

/* Sums of four vectors of nibbles, [half][vector] with their shifts: those of eight products are
 * below 2^14, so that two of them have 16 bits. */
SF_INLINE __m256i nibble_sums(const __m256i *v, const __m256i *low, const __m256i *high,
                              __m256i shift) {
    const __m256i one = _mm256_set1_epi16(1);
    __m256i s[4];
    for (uint32_t i = 0; i < 4u; i++) {
        const __m256i first = dot4(_mm256_setzero_si256(), sf_low4(v[i]), low[i]);
        s[i] = dot4(first, sf_high4(v[i]), high[i]);
    }
    const __m256i a = _mm256_madd_epi16(_mm256_packs_epi32(s[0], s[1]), one);
    const __m256i b = _mm256_madd_epi16(_mm256_packs_epi32(s[2], s[3]), one);
    return _mm256_madd_epi16(_mm256_packs_epi32(a, b), shift);
}
/* Eight sums of the products of four bytes each: weights become unsigned by adding 128, which
 * without_offset() takes off. */
SF_INLINE __m256i signed_products(__m256i w, __m256i x) {
    return dot4(_mm256_setzero_si256(), _mm256_xor_si256(w, _mm256_set1_epi8(-128)), x);
}
SF_INLINE __m256i without_offset(__m256i t, __m256i sum) {
    return _mm256_sub_epi32(t, _mm256_slli_epi32(sum, 7));
}

#include "x86_avx2/dot_body.h"
