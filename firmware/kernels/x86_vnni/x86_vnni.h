/* Shared by the AVX-512 VNNI tier; sums are exact integers, so they equal plain C bit for bit. */
#ifndef SF_X86_VNNI_H
#define SF_X86_VNNI_H

#include "sf_kernels.h"
#include "x86_vnni/has.h"

#include <immintrin.h>

SF_X86_VNNI_HAS(SF_DECLARE)

/* Eight halves in units of 2^-24. */
static inline __m256i sf_halves(__m128i h) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtph_ps(h), _mm256_set1_ps(16777216.0f)));
}

#endif
