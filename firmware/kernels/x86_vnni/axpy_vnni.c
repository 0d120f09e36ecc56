/* Matrices by columns with AVX-512 VNNI. */
#include "x86_vnni.h"

#include "x86_avx2/avx2.h"

/* Sums of four columns times their coefficients, from a byte of them on: bytes are interleaved, so
 * that a dot product of four takes one output of each. A 128-bit lane holds a group of 32. */
SF_INLINE void add_four(const uint8_t *const *col, uint32_t at, __mmask64 bytes, int32_t h,
                        __m512i *low, __m512i *high) {
    const __m512i four = _mm512_set1_epi8(15), x = _mm512_set1_epi32(h);
    const __m512i w0 = _mm512_maskz_loadu_epi8(bytes, col[0] + at);
    const __m512i w1 = _mm512_maskz_loadu_epi8(bytes, col[1] + at);
    const __m512i w2 = _mm512_maskz_loadu_epi8(bytes, col[2] + at);
    const __m512i w3 = _mm512_maskz_loadu_epi8(bytes, col[3] + at);
    const __m512i l01 = _mm512_unpacklo_epi8(w0, w1), h01 = _mm512_unpackhi_epi8(w0, w1);
    const __m512i l23 = _mm512_unpacklo_epi8(w2, w3), h23 = _mm512_unpackhi_epi8(w2, w3);
    const __m512i t[4] = {_mm512_unpacklo_epi16(l01, l23), _mm512_unpackhi_epi16(l01, l23),
                          _mm512_unpacklo_epi16(h01, h23), _mm512_unpackhi_epi16(h01, h23)};
    for (uint32_t q = 0; q < 4u; q++) {
        const __m512i upper = _mm512_srli_epi16(t[q], 4);
        low[q] = _mm512_dpbusd_epi32(low[q], _mm512_and_si512(t[q], four), x);
        high[q] = _mm512_dpbusd_epi32(high[q], _mm512_and_si512(upper, four), x);
    }
}

void sf_x86_vnni_axpy_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                         int32_t *isum) {
    const uint32_t whole = n / 4u * 4u;
    const uint8_t *last[4]; /* the columns behind, and others times zero */
    int32_t of_last = 0;
    for (uint32_t r = 0; r < 4u; r++) {
        const bool there = whole + r < n;
        last[r] = col[there ? whole + r : 0];
        of_last |= there ? (int32_t)((uint32_t)(uint8_t)h[whole + r] << 8u * r) : 0;
    }
    for (uint32_t j = 0; j < dim; j += 4u * SF_GROUP) {
        const uint32_t left = (dim - j) / SF_GROUP, live = left < 4u ? left : 4u;
        const __mmask64 bytes = UINT64_MAX >> (64u - 16u * live);
        __m512i low[4], high[4];
        for (uint32_t q = 0; q < 4u; q++) {
            low[q] = high[q] = _mm512_setzero_si512();
        }
        for (uint32_t r = 0; r < whole; r += 4u) {
            add_four(col + r, j / 2u, bytes, (int32_t)sf_load32((const uint8_t *)h + r), low, high);
        }
        if (whole < n) {
            add_four(last, j / 2u, bytes, of_last, low, high);
        }
        sf_add_turned(low, live, isum + j);
        sf_add_turned(high, live, isum + j + SF_GROUP / 2u);
    }
}

/* Halves in the upper words of 32 bits, in units of 2^-24. A half moved down by three bits is a
 * float 2^-112 times as large. */
SF_INLINE __m512i upper_halves(__m512i h) {
    const __m512i mask = _mm512_set1_epi32((int32_t)0x8FFFE000u); /* sign, exponent, fraction */
    const __m512i f = _mm512_and_si512(_mm512_srai_epi32(h, 3), mask);
    return _mm512_cvtps_epi32(_mm512_scalef_ps(_mm512_castsi512_ps(f), _mm512_set1_ps(136.0f)));
}
/* acc[0..7] += v */
SF_INLINE void add_wide(int64_t *acc, __m512i v) {
    _mm512_storeu_si512(acc, _mm512_add_epi64(_mm512_loadu_si512(acc), v));
}

void sf_x86_vnni_scale_q4(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim,
                          int32_t *isum, int64_t *acc) {
    const __m512i lower = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const __m512i upper = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    const __m512i total = _mm512_set1_epi64(sum);
    const __m128i shift = _mm_cvtsi32_si128((int32_t)k);
    for (uint32_t j = 0; j < dim; j += 16u) {
        const __m512i dm = _mm512_loadu_si512(scales + 4u * j);
        const __m512i d = upper_halves(_mm512_slli_epi32(dm, 16)), m = upper_halves(dm);
        const __m512i s = _mm512_sll_epi32(_mm512_loadu_si512(isum + j), shift);
        const __m512i even = _mm512_add_epi64(_mm512_mul_epi32(s, d), _mm512_mul_epi32(total, m));
        const __m512i odd =
            _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(s, 32), _mm512_srli_epi64(d, 32)),
                             _mm512_mul_epi32(total, _mm512_srli_epi64(m, 32)));
        add_wide(acc + j, _mm512_permutex2var_epi64(even, lower, odd));
        add_wide(acc + j + 8u, _mm512_permutex2var_epi64(even, upper, odd));
        _mm512_storeu_si512(isum + j, _mm512_setzero_si512());
    }
}
