/* Shared by the AVX-512 VNNI tiers; sums are exact integers, so they equal plain C bit for bit. */
#ifndef SF_X86_H
#define SF_X86_H

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__) &&                   \
    defined(__F16C__) && !defined(SF_PLAIN)
#define SF_VNNI 1
#include <immintrin.h>

/* Eight halves in units of 2^-24. */
static inline __m256i sf_halves(__m128i h) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtph_ps(h), _mm256_set1_ps(16777216.0f)));
}
#endif

#endif
