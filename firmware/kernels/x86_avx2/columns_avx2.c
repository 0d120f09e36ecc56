/* Matrices of q8 and r8 by columns with AVX2: two columns at a time, interleaved, so that a product
 * of pairs adds both to an output. */
#include "avx2.h"

/* Two coefficients as a pair of 16 bits in each lane. */
SF_INLINE __m256i pair16(int32_t a, int32_t b) {
    return _mm256_set1_epi32((int32_t)(((uint32_t)a & 0xFFFFu) | (uint32_t)b << 16));
}
/* Sixteen sums as unpacking leaves them: outputs 0 to 3 and 8 to 11, and the others. */
SF_INLINE void add16(int32_t *y, __m256i low, __m256i high) {
    sf_add8(y, _mm256_permute2x128_si256(low, high, 0x20));
    sf_add8(y + 8, _mm256_permute2x128_si256(low, high, 0x31));
}

/* 32 signed bytes of two columns times x, added to four sums as unpacking leaves them. */
SF_INLINE void add_signed(__m256i v, __m256i w, __m256i x, __m256i *s) {
    const __m256i a = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(v));
    const __m256i b = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(w));
    const __m256i c = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1));
    const __m256i d = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(w, 1));
    s[0] = _mm256_add_epi32(s[0], _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), x));
    s[1] = _mm256_add_epi32(s[1], _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), x));
    s[2] = _mm256_add_epi32(s[2], _mm256_madd_epi16(_mm256_unpacklo_epi16(c, d), x));
    s[3] = _mm256_add_epi32(s[3], _mm256_madd_epi16(_mm256_unpackhi_epi16(c, d), x));
}

void sf_x86_avx2_axpy_q8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                         int32_t *isum) {
    sf_next next = sf_rows_behind(col, n, dim, (n + 1u) / 2u * (dim / SF_GROUP));
    for (uint32_t j = 0; j < dim; j += SF_GROUP) {
        __m256i s[4];
        for (uint32_t i = 0; i < 4u; i++) {
            s[i] = _mm256_setzero_si256();
        }
        for (uint32_t r = 0; r < n; r += 2u) {
            const bool both = r + 1u < n;
            const uint8_t *p = col[r] + j, *q = both ? col[r + 1u] + j : p;
            sf_ask(&next);
            add_signed(sf_load256(p), sf_load256(q), pair16(h[r], both ? h[r + 1u] : 0), s);
        }
        add16(isum + j, s[0], s[1]);
        add16(isum + j + 16u, s[2], s[3]);
    }
}

/* The two weights of each half of r8, of even and of odd outputs. */
SF_INLINE __m256i even_r8(__m256i v) {
    return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8);
}
SF_INLINE __m256i odd_r8(__m256i v) { /* one below 0 beside it has taken one */
    const __m256i taken = _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 15);
    return _mm256_sub_epi16(_mm256_srai_epi16(v, 8), taken);
}

/* s += two columns of 32 outputs: even ones of the lower halves of lanes, of the upper, then odd.
 */
SF_INLINE void add_r8(__m256i v, __m256i w, __m256i x, __m256i *s) {
    const __m256i a = even_r8(v), b = even_r8(w), c = odd_r8(v), d = odd_r8(w);
    s[0] = _mm256_add_epi32(s[0], _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), x));
    s[1] = _mm256_add_epi32(s[1], _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), x));
    s[2] = _mm256_add_epi32(s[2], _mm256_madd_epi16(_mm256_unpacklo_epi16(c, d), x));
    s[3] = _mm256_add_epi32(s[3], _mm256_madd_epi16(_mm256_unpackhi_epi16(c, d), x));
}

/* acc[0..7] += s << k */
SF_INLINE void add8_wide(int64_t *acc, __m256i s, __m128i k) {
    const __m256i a = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(s));
    const __m256i b = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(s, 1));
    sf_store256(acc, _mm256_add_epi64(sf_load256(acc), _mm256_sll_epi64(a, k)));
    sf_store256(acc + 4, _mm256_add_epi64(sf_load256(acc + 4), _mm256_sll_epi64(b, k)));
}

void sf_x86_avx2_axpy_r8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                         uint32_t k, int64_t *acc) {
    sf_next next = sf_rows_behind(col, n, dim, (n + 1u) / 2u * (dim / SF_GROUP));
    const __m128i shift = _mm_cvtsi32_si128((int32_t)k);
    for (uint32_t j = 0; j < dim; j += SF_GROUP) {
        __m256i s[4];
        for (uint32_t i = 0; i < 4u; i++) {
            s[i] = _mm256_setzero_si256();
        }
        for (uint32_t r = 0; r < n; r += 2u) {
            const bool both = r + 1u < n;
            const uint8_t *p = col[r] + j, *q = both ? col[r + 1u] + j : p;
            sf_ask(&next);
            add_r8(sf_load256(p), sf_load256(q), pair16(h[r], both ? h[r + 1u] : 0), s);
        }
        for (uint32_t i = 0; i < 2u; i++) { /* outputs 0 to 7 and 16 to 23, then the others */
            const __m256i lo = _mm256_unpacklo_epi32(s[i], s[i + 2u]);
            const __m256i hi = _mm256_unpackhi_epi32(s[i], s[i + 2u]);
            add8_wide(acc + j + 8u * i, _mm256_permute2x128_si256(lo, hi, 0x20), shift);
            add8_wide(acc + j + 16u + 8u * i, _mm256_permute2x128_si256(lo, hi, 0x31), shift);
        }
    }
}

/* acc[0..7] from the sums of even and of odd outputs. */
SF_INLINE void add8_turned(int64_t *acc, __m256i even, __m256i odd) {
    const __m256i lo = _mm256_unpacklo_epi64(even, odd); /* 0 1 4 5 */
    const __m256i hi = _mm256_unpackhi_epi64(even, odd); /* 2 3 6 7 */
    const __m256i a = _mm256_permute2x128_si256(lo, hi, 0x20);
    const __m256i b = _mm256_permute2x128_si256(lo, hi, 0x31);
    sf_store256(acc, _mm256_add_epi64(sf_load256(acc), a));
    sf_store256(acc + 4, _mm256_add_epi64(sf_load256(acc + 4), b));
}

void sf_x86_avx2_scale_q8(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim,
                          int32_t *isum, int64_t *acc) {
    const __m128i shift = _mm_cvtsi32_si128((int32_t)k);
    (void)sum;
    for (uint32_t j = 0; j < dim; j += 8u) {
        const __m256i d = sf_halves8(sf_load128(scales + 2u * j));
        const __m256i s = _mm256_sll_epi32(sf_load256(isum + j), shift);
        add8_turned(acc + j, _mm256_mul_epi32(s, d),
                    _mm256_mul_epi32(_mm256_srli_epi64(s, 32), _mm256_srli_epi64(d, 32)));
        sf_store256(isum + j, _mm256_setzero_si256());
    }
}
