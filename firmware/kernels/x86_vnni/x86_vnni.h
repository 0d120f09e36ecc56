/* Shared by the AVX-512 VNNI tier; sums are exact integers, so they equal plain C bit for bit. */
#ifndef SF_X86_VNNI_H
#define SF_X86_VNNI_H

#include "sf_kernels.h"
#include "x86_vnni/has.h"

#include <immintrin.h>

SF_X86_VNNI_HAS(SF_DECLARE)

/* Sixteen halves in units of 2^-24, as sf_halves8. */
static inline __m512i sf_halves16(__m256i h) {
    const __m512i f = _mm512_castps_si512(_mm512_cvtph_ps(h));
    return _mm512_cvtps_epi32(
        _mm512_castsi512_ps(_mm512_add_epi32(f, _mm512_set1_epi32(24 << 23))));
}

#endif
