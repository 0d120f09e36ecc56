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

/* out [i][q] = a [q][i], lanes of 128 bits. */
static inline void sf_turn(const __m512i *a, __m512i *out) {
    const __m512i t0 = _mm512_shuffle_i32x4(a[0], a[1], 0x44);
    const __m512i t1 = _mm512_shuffle_i32x4(a[2], a[3], 0x44);
    const __m512i t2 = _mm512_shuffle_i32x4(a[0], a[1], 0xEE);
    const __m512i t3 = _mm512_shuffle_i32x4(a[2], a[3], 0xEE);
    out[0] = _mm512_shuffle_i32x4(t0, t1, 0x88);
    out[1] = _mm512_shuffle_i32x4(t0, t1, 0xDD);
    out[2] = _mm512_shuffle_i32x4(t2, t3, 0x88);
    out[3] = _mm512_shuffle_i32x4(t2, t3, 0xDD);
}

/* Adds a [lane q][lane i] to y [i][q]: lanes of 128 bits, groups of 32 outputs apart. */
static inline void sf_add_turned(const __m512i *a, uint32_t live, int32_t *y) {
    __m512i out[4];
    sf_turn(a, out);
    for (uint32_t i = 0; i < live; i++) {
        int32_t *to = y + i * SF_GROUP;
        _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), out[i]));
    }
}

#endif
