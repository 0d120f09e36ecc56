/* dot_body.h for a tier with dot4(sums, u, x), which adds products of four unsigned and signed
 * bytes to each of eight sums. */
#include "x86_avx2/avx2.h"

/* Eight sums of the products of four nibbles and their activations, of the low and of the high
 * ones. */
SF_INLINE __m256i nibble_products(__m256i v, __m256i low, __m256i high) {
    return dot4(dot4(_mm256_setzero_si256(), sf_low4(v), low), sf_high4(v), high);
}
/* Weights become unsigned by adding 128, and what that adds is taken off first. */
SF_INLINE __m256i signed_products(__m256i w, __m256i x) {
    const __m256i more = _mm256_set1_epi8(-128), zero = _mm256_setzero_si256();
    return dot4(_mm256_sub_epi32(zero, dot4(zero, more, x)), _mm256_xor_si256(w, more), x);
}

#include "x86_avx2/dot_body.h"
