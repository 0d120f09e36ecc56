/* Rows times an activation vector with 256 bits: row by row, for memory is fastest in its own
 * order, and eight groups at a time. What is left are pairs of groups of four rows, and a last
 * group. A tier that includes this has SF_NAME(kernel), its name of a kernel, nibble_sums,
 * signed_products and without_offset; with SF_OWN_NIBBLES the kernels of q4 and s4 are its own. */
#include "x86_avx2/dot_groups.h"

/* Eight sums a group, four in each half, to [half][group]. */
SF_INLINE __m256i by_group(const __m256i *s) {
    const __m256i a =
        _mm256_add_epi32(_mm256_unpacklo_epi32(s[0], s[1]), _mm256_unpackhi_epi32(s[0], s[1]));
    const __m256i b =
        _mm256_add_epi32(_mm256_unpacklo_epi32(s[2], s[3]), _mm256_unpackhi_epi32(s[2], s[3]));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}
/* Eight groups of a row from byte w on, their scales from byte `scales` on. */
SF_INLINE __m256i eight_groups(row_grid grid, const uint8_t *w, const uint8_t *scales,
                               const groups8 *x) {
    __m256i v[4], s[4], t[4];
    if (grid == ROWS_Q8) {
        for (uint32_t i = 0; i < 4u; i++) {
            s[i] = signed_products(sf_load256(w + 32u * i), x->low[i]);
            t[i] = signed_products(sf_load256(w + 128u + 32u * i), x->high[i]);
        }
        const __m256i sum = _mm256_sllv_epi32(of_both(by_group(s), by_group(t)), x->shift);
        return scaled(without_offset(sum, x->sum), sf_halves8(sf_load128(scales)));
    }
    for (uint32_t i = 0; i < 4u; i++) {
        v[i] = sf_load256(w + 32u * i);
    }
    const __m256i sum = nibble_sums(v, x->low, x->high, x->shift);
    if (grid == ROWS_S4) {
        const __m128i apart = _mm_set_epi8(15, 14, 11, 10, 7, 6, 3, 2, 13, 12, 9, 8, 5, 4, 1, 0);
        return scaled(_mm256_sub_epi32(sum, _mm256_slli_epi32(x->sum, 3)),
                      sf_halves8(_mm_shuffle_epi8(sf_load128(scales), apart)));
    }
    const __m128i apart = _mm_set_epi8(15, 14, 7, 6, 11, 10, 3, 2, 13, 12, 5, 4, 9, 8, 1, 0);
    const __m256i dm = _mm256_permutevar8x32_epi32(
        _mm256_shuffle_epi8(sf_load256(scales), _mm256_set_m128i(apart, apart)),
        _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0));
    return _mm256_add_epi64(scaled(sum, sf_halves8(_mm256_castsi256_si128(dm))),
                            scaled(x->sum, sf_halves8(_mm256_extracti128_si256(dm, 1))));
}

/* Groups g and g + 1 of four rows whose scales begin at byte `at`. */
SF_INLINE void two_groups(row_grid grid, const uint8_t *const *w, uint32_t at, uint32_t g,
                          const groups2 *x, four_sums *sums) {
    __m256i v[4], s[4], t[4];
    __m128i d[4];
    for (uint32_t i = 0; i < 4u; i++) {
        const uint8_t *p = w[i] + g * (grid == ROWS_Q8 ? SF_GROUP : SF_GROUP / 2u);
        v[i] = sf_load256(p);
        if (grid == ROWS_Q8) {
            s[i] = signed_products(v[i], x->low);
            t[i] = signed_products(sf_load256(p + SF_GROUP), x->high);
        }
        d[i] = grid == ROWS_Q4 ? sf_load64(w[i] + at + 4u * g)
                               : _mm_cvtsi32_si128((int32_t)sf_load32(w[i] + at + 2u * g));
    }
    if (grid == ROWS_Q8) {
        const __m256i sum = _mm256_sllv_epi32(of_both(by_group(s), by_group(t)), x->shift);
        add_scaled(sums, without_offset(sum, x->sum), turned_halves(d));
        return;
    }
    const __m256i low[4] = {x->low, x->low, x->low, x->low};
    const __m256i high[4] = {x->high, x->high, x->high, x->high};
    const __m256i sum = nibble_sums(v, low, high, x->shift);
    if (grid == ROWS_S4) {
        add_scaled(sums, _mm256_sub_epi32(sum, _mm256_slli_epi32(x->sum, 3)), turned_halves(d));
        return;
    }
    const __m128i a = _mm_unpacklo_epi16(d[0], d[1]), b = _mm_unpacklo_epi16(d[2], d[3]);
    const __m128i lo = _mm_unpacklo_epi32(a, b), hi = _mm_unpackhi_epi32(a, b);
    add_scaled(sums, sum, sf_halves8(_mm_unpacklo_epi64(lo, hi)));
    add_scaled(sums, x->sum, sf_halves8(_mm_unpackhi_epi64(lo, hi)));
}

/* The last of an odd number of groups, one row. */
SF_INLINE int64_t last_group(row_grid grid, const uint8_t *w, uint32_t at, uint32_t g,
                             const sf_bfp *x) {
    const __m256i q = sf_load256(x->q + g * SF_GROUP);
    const uint8_t *d = w + at + g * (grid == ROWS_Q4 ? 4u : 2u);
    int32_t sum = 0;
    if (grid == ROWS_Q8) {
        sum = sf_total32(sf_signed_products(sf_load256(w + g * SF_GROUP), q));
    } else {
        const __m128i v = sf_load128(w + g * (SF_GROUP / 2u)), four = _mm_set1_epi8(15);
        const __m128i low = _mm_and_si128(v, four);
        const __m128i high = _mm_and_si128(_mm_srli_epi16(v, 4), four);
        sum = sf_total32(sf_products(_mm256_set_m128i(high, low), q));
    }
    sum = sum * (int32_t)(1u << x->k[g]) - (grid == ROWS_S4 ? 8 * x->sum[g] : 0);
    return (int64_t)sum * sf_one_half(d) +
           (grid == ROWS_Q4 ? (int64_t)x->sum[g] * sf_one_half(d + 2) : 0);
}

/* Activations of rows: blocks of eight groups, and what is left behind them. */
typedef struct {
    groups8 block[SF_BLOCKS8];
    groups2 left[3];
    uint32_t pairs, rest; /* pairs of groups, and the group behind them */
} activations;

SF_INLINE void load_left(row_grid grid, activations *a, const sf_bfp *x) {
    a->pairs = 0;
    for (a->rest = x->groups / 8u * 8u; a->rest + 1u < x->groups; a->rest += 2u) {
        a->left[a->pairs++] = load_two(grid, x, a->rest);
    }
}

/* out = four rows, from the sums of their blocks. */
SF_INLINE void finish(row_grid grid, const __m256i *total, const uint8_t *const *w, uint32_t at,
                      const activations *a, const sf_bfp *x, uint32_t n, float *out) {
    four_sums more = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    int64_t sum[4];
    for (uint32_t i = 0; i < a->pairs; i++) {
        two_groups(grid, w, at, a->rest - 2u * (a->pairs - i), a->left + i, &more);
    }
    sf_store256(sum, joined(total, &more));
    for (uint32_t i = 0; i < 4u && i < n; i++) {
        sum[i] += a->rest < x->groups ? last_group(grid, w[i], at, a->rest, x) : 0;
        out[i] = sf_sum_to_float(sum[i], x->s);
    }
}

SF_INLINE void dot_rows(row_grid grid, const uint8_t *const *row, uint32_t n, const sf_bfp *x,
                        float *out) {
    const uint32_t weights = grid == ROWS_Q8 ? SF_GROUP : SF_GROUP / 2u; /* bytes of a group, */
    const uint32_t scale = grid == ROWS_Q4 ? 4u : 2u;                    /* and of its scale */
    const uint32_t at = x->groups * weights, blocks = x->groups / 8u;
    /* Rows of 8 bits end with lines of memory that their blocks do not touch: memory is read in its
     * order when four rows are finished at once. Those of 4 bits share them. */
    const uint32_t some = grid == ROWS_Q8 ? 4u : SF_TILE;
    const sf_row_asks asks =
        sf_asks_by_row(row, n, at + x->groups * scale, blocks > 0 ? blocks : 1u);
    const uint8_t *w[SF_TILE];
    __m256i total[SF_TILE];
    activations a;
    load_left(grid, &a, x);
    for (uint32_t r = 0; r < (n + 3u) / 4u * 4u; r++) {
        w[r] = row[r < n ? r : 0];
        total[r] = _mm256_setzero_si256();
    }
    for (uint32_t from = 0; from == 0 || from < blocks; from += SF_BLOCKS8) {
        const uint32_t count = blocks - from < SF_BLOCKS8 ? blocks - from : SF_BLOCKS8;
        for (uint32_t b = 0; b < count; b++) {
            a.block[b] = load_eight(grid, x, 8u * (from + b));
        }
        for (uint32_t first = 0; first < n; first += some) {
            const uint32_t end = n - first < some ? n : first + some;
            for (uint32_t r = first; r < end; r++) {
                const uint8_t *p = w[r] + 8u * weights * from, *d = w[r] + at + 8u * scale * from;
                __m256i sum = total[r];
                for (uint32_t b = 0; b < count; b++, p += 8u * weights, d += 8u * scale) {
                    sf_ask_behind(&asks, w[r], from + b, 8u * (weights + scale));
                    sum = _mm256_add_epi64(sum, eight_groups(grid, p, d, a.block + b));
                }
                total[r] = sum;
            }
            for (uint32_t r = first; from + count == blocks && r < end; r += 4u) {
                finish(grid, total + r, w + r, at, &a, x, n - r, out + r);
            }
        }
    }
}

#ifndef SF_OWN_NIBBLES
void SF_NAME(dot_q4)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    dot_rows(ROWS_Q4, row, n, x, out);
}
void SF_NAME(dot_s4)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    dot_rows(ROWS_S4, row, n, x, out);
}
#endif
void SF_NAME(dot_q8)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    dot_rows(ROWS_Q8, row, n, x, out);
}
