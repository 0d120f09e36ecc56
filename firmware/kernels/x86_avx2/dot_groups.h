/* Activations that rows are multiplied by with 256 bits, and sums of their products. */
#ifndef SF_X86_DOT_GROUPS_H
#define SF_X86_DOT_GROUPS_H

#include "x86_avx2/avx2.h"

typedef enum { ROWS_Q4, ROWS_S4, ROWS_Q8 } row_grid;

/* Eight groups. Nibbles hold the first halves of two groups and their second halves: they take
 * those of pairs from low and high, words of the others are groups 0, 2, 4, 6, then 1, 3, 5, 7.
 * Weights of 8 bits take groups 0 to 3 from low and 4 to 7 from high, all in this order. */
typedef struct {
    __m256i low[4], high[4];
    __m256i shift; /* k; for nibbles 2^k, twice in a word */
    __m256i sum;   /* with the shift */
} groups8;
enum { SF_BLOCKS8 = 8 }; /* of eight groups that are at hand: wider rows are taken in parts */

/* Two groups for each of four rows: words are those of the first group, then of the second. */
typedef struct {
    __m256i low, high, shift, sum; /* as above */
} groups2;

SF_INLINE __m256i sf_shifts(row_grid grid, __m256i k) {
    return grid == ROWS_Q8 ? k : _mm256_sllv_epi32(_mm256_set1_epi32(0x10001), k);
}

SF_INLINE groups8 load_eight(row_grid grid, const sf_bfp *x, uint32_t g) {
    const __m256i apart = _mm256_set_epi32(7, 5, 3, 1, 6, 4, 2, 0);
    __m256i k = _mm256_cvtepu8_epi32(sf_load64(x->k + g)), sum = sf_load256(x->sum + g);
    groups8 e;
    for (uint32_t i = 0; i < 4u; i++) {
        const int8_t *q = x->q + g * SF_GROUP;
        const __m256i a = sf_load256(q + 64u * i), b = sf_load256(q + 64u * i + SF_GROUP);
        e.low[i] =
            grid == ROWS_Q8 ? sf_load256(q + SF_GROUP * i) : _mm256_permute2x128_si256(a, b, 0x20);
        e.high[i] = grid == ROWS_Q8 ? sf_load256(q + SF_GROUP * (i + 4u))
                                    : _mm256_permute2x128_si256(a, b, 0x31);
    }
    if (grid != ROWS_Q8) {
        k = _mm256_permutevar8x32_epi32(k, apart);
        sum = _mm256_permutevar8x32_epi32(sum, apart);
    }
    e.shift = sf_shifts(grid, k);
    e.sum = sum;
    return e;
}

SF_INLINE groups2 load_two(row_grid grid, const sf_bfp *x, uint32_t g) {
    const __m256i spread = _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0);
    const __m256i a = sf_load256(x->q + g * SF_GROUP);
    const __m256i b = sf_load256(x->q + (g + 1u) * SF_GROUP);
    uint16_t two;
    memcpy(&two, x->k + g, sizeof two);
    const __m128i k = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(two));
    groups2 e;
    e.low = grid == ROWS_Q8 ? a : _mm256_permute2x128_si256(a, b, 0x20);
    e.high = grid == ROWS_Q8 ? b : _mm256_permute2x128_si256(a, b, 0x31);
    e.shift = sf_shifts(grid, _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(k), spread));
    e.sum = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(sf_load64(x->sum + g)), spread);
    return e;
}

/* The sums of both halves: of four groups of a, then of b. */
SF_INLINE __m256i of_both(__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                            _mm256_permute2x128_si256(a, b, 0x31));
}

/* t * d, eight products in four sums. */
SF_INLINE __m256i scaled(__m256i t, __m256i d) {
    return _mm256_add_epi64(_mm256_mul_epi32(t, d),
                            _mm256_mul_epi32(_mm256_srli_epi64(t, 32), _mm256_srli_epi64(d, 32)));
}

/* Sums of four rows: of rows 0 and 2 in 128 bits and again, of rows 1 and 3. */
typedef struct {
    __m256i even, odd;
} four_sums;

SF_INLINE void add_scaled(four_sums *s, __m256i t, __m256i d) {
    s->even = _mm256_add_epi64(s->even, _mm256_mul_epi32(t, d));
    s->odd = _mm256_add_epi64(s->odd,
                              _mm256_mul_epi32(_mm256_srli_epi64(t, 32), _mm256_srli_epi64(d, 32)));
}

/* Halves of four rows and two groups, [row][group], to [group][row] in units of 2^-24. */
SF_INLINE __m256i turned_halves(const __m128i *d) {
    return sf_halves8(
        _mm_unpacklo_epi32(_mm_unpacklo_epi16(d[0], d[1]), _mm_unpacklo_epi16(d[2], d[3])));
}

/* Sums of four rows, from those of each and those of pairs of groups. */
SF_INLINE __m256i joined(const __m256i *row, const four_sums *more) {
    const __m256i a = _mm256_add_epi64(_mm256_add_epi64(_mm256_unpacklo_epi64(row[0], row[1]),
                                                        _mm256_unpackhi_epi64(row[0], row[1])),
                                       _mm256_unpacklo_epi64(more->even, more->odd));
    const __m256i b = _mm256_add_epi64(_mm256_add_epi64(_mm256_unpacklo_epi64(row[2], row[3]),
                                                        _mm256_unpackhi_epi64(row[2], row[3])),
                                       _mm256_unpackhi_epi64(more->even, more->odd));
    return _mm256_add_epi64(_mm256_permute2x128_si256(a, b, 0x20),
                            _mm256_permute2x128_si256(a, b, 0x31));
}

#endif
