/* Rows times an activation vector with 256 bits: four rows by two groups at a time, and one group
 * of what is left. A tier that includes this has nibble_products, signed_products and
 * SF_NAME(kernel), its name of a kernel; with SF_OWN_DOT_Q4 that one is its own. */
#include "x86_avx2/avx2.h"

/* Two groups of activations. */
typedef struct {
    __m256i first, second; /* their 8-bit values */
    __m256i low, high;     /* both groups' halves, as nibbles hold them */
    __m256i k, sum;        /* by lane: shift, and sum with it */
} two_groups;

SF_INLINE two_groups load_two(const sf_bfp *x, uint32_t g) {
    const __m256i spread = _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0);
    uint16_t k;
    memcpy(&k, x->k + g, sizeof k);
    const __m128i ks = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(k));
    const __m256i first = sf_load256(x->q + g * SF_GROUP);
    const __m256i second = sf_load256(x->q + (g + 1u) * SF_GROUP);
    return (two_groups){
        first,
        second,
        _mm256_permute2x128_si256(first, second, 0x20),
        _mm256_permute2x128_si256(first, second, 0x31),
        _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(ks), spread),
        _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(sf_load64(x->sum + g)), spread),
    };
}

/* Sums of four rows in lanes of 64 bits: of rows 0 and 2, and of rows 1 and 3. */
typedef struct {
    __m256i even, odd;
} four_sums;

SF_INLINE void add_scaled(four_sums *s, __m256i t, __m256i d) {
    s->even = _mm256_add_epi64(s->even, _mm256_mul_epi32(t, d));
    s->odd = _mm256_add_epi64(s->odd,
                              _mm256_mul_epi32(_mm256_srli_epi64(t, 32), _mm256_srli_epi64(d, 32)));
}

/* Eight sums a row, four of each group, to [group][row]. */
SF_INLINE __m256i by_group(const __m256i *s) {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
}

/* Halves of four rows and two groups, [row][group], to [group][row] in units of 2^-24. */
SF_INLINE __m256i turned_halves(const __m128i *d) {
    return sf_halves8(
        _mm_unpacklo_epi32(_mm_unpacklo_epi16(d[0], d[1]), _mm_unpacklo_epi16(d[2], d[3])));
}

SF_INLINE __m128i load_two_halves(const uint8_t *p) {
    int32_t d;
    memcpy(&d, p, sizeof d);
    return _mm_cvtsi32_si128(d);
}

/* What a grid does with four rows. `w` are their rows, `at` where their scales begin. */
SF_INLINE void four_q4(const uint8_t *const *w, uint32_t at, uint32_t g, const two_groups *x,
                       four_sums *sums) {
    __m256i s[4];
    __m128i dm[4];
    for (uint32_t i = 0; i < 4u; i++) {
        const uint8_t *p = w[i] + g * (SF_GROUP / 2u);
        const __m256i v = sf_load256(p);
        s[i] = nibble_products(v, x->low, x->high);
        dm[i] = sf_load64(w[i] + at + 4u * g);
    }
    const __m128i a = _mm_unpacklo_epi16(dm[0], dm[1]), b = _mm_unpacklo_epi16(dm[2], dm[3]);
    const __m128i lo = _mm_unpacklo_epi32(a, b), hi = _mm_unpackhi_epi32(a, b);
    const __m256i m = sf_halves8(_mm_unpackhi_epi64(lo, hi));
    add_scaled(sums, _mm256_sllv_epi32(by_group(s), x->k), sf_halves8(_mm_unpacklo_epi64(lo, hi)));
    add_scaled(sums, x->sum, m);
}

SF_INLINE void four_s4(const uint8_t *const *w, uint32_t at, uint32_t g, const two_groups *x,
                       four_sums *sums) {
    __m256i s[4];
    __m128i d[4];
    for (uint32_t i = 0; i < 4u; i++) {
        const uint8_t *p = w[i] + g * (SF_GROUP / 2u);
        const __m256i v = sf_load256(p);
        s[i] = nibble_products(v, x->low, x->high);
        d[i] = load_two_halves(w[i] + at + 2u * g);
    }
    const __m256i t = _mm256_sllv_epi32(by_group(s), x->k);
    add_scaled(sums, _mm256_sub_epi32(t, _mm256_slli_epi32(x->sum, 3)), turned_halves(d));
}

SF_INLINE void four_q8(const uint8_t *const *w, uint32_t at, uint32_t g, const two_groups *x,
                       four_sums *sums) {
    __m256i s[4], t[4];
    __m128i d[4];
    for (uint32_t i = 0; i < 4u; i++) {
        const uint8_t *p = w[i] + g * SF_GROUP;
        s[i] = signed_products(sf_load256(p), x->first);
        t[i] = signed_products(sf_load256(p + SF_GROUP), x->second);
        d[i] = load_two_halves(w[i] + at + 2u * g);
    }
    const __m256i a = by_group(s), b = by_group(t);
    const __m256i sum = _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                                         _mm256_permute2x128_si256(a, b, 0x31));
    add_scaled(sums, _mm256_sllv_epi32(sum, x->k), turned_halves(d));
}

/* The last of an odd number of groups, one row. */
SF_INLINE int64_t one_q4(const uint8_t *w, uint32_t at, uint32_t g, const sf_bfp *x) {
    const __m128i v = sf_load128(w + g * (SF_GROUP / 2u)), four = _mm_set1_epi8(15);
    const __m256i u =
        _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(v, 4), four), _mm_and_si128(v, four));
    const int32_t isum = sf_total32(sf_products(u, sf_load256(x->q + g * SF_GROUP)));
    return (int64_t)(isum * (int32_t)(1u << x->k[g])) * sf_one_half(w + at + 4u * g) +
           (int64_t)x->sum[g] * sf_one_half(w + at + 4u * g + 2u);
}

SF_INLINE int64_t one_s4(const uint8_t *w, uint32_t at, uint32_t g, const sf_bfp *x) {
    const __m128i v = sf_load128(w + g * (SF_GROUP / 2u)), four = _mm_set1_epi8(15);
    const __m256i u =
        _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(v, 4), four), _mm_and_si128(v, four));
    const int32_t isum = sf_total32(sf_products(u, sf_load256(x->q + g * SF_GROUP)));
    return (int64_t)(isum * (int32_t)(1u << x->k[g]) - 8 * x->sum[g]) *
           sf_one_half(w + at + 2u * g);
}

SF_INLINE int64_t one_q8(const uint8_t *w, uint32_t at, uint32_t g, const sf_bfp *x) {
    const __m256i s =
        sf_signed_products(sf_load256(w + g * SF_GROUP), sf_load256(x->q + g * SF_GROUP));
    return (int64_t)(sf_total32(s) * (int32_t)(1u << x->k[g])) * sf_one_half(w + at + 2u * g);
}

/* dot_GRID, of rows with `bytes` a group before their scales: all four quads of a whole tile
 * together, so that activations are loaded once, or quad by quad. */
#define ROWS(grid, bytes)                                                                          \
    SF_INLINE void quads_##grid(const uint8_t *const *w, uint32_t quads, sf_next next, uint32_t n, \
                                const sf_bfp *x, float *out) {                                     \
        const uint32_t at = x->groups * (bytes);                                                   \
        four_sums sums[SF_TILE / 4u];                                                              \
        uint32_t g = 0;                                                                            \
        for (uint32_t r = 0; r < quads; r++) {                                                     \
            sums[r].even = sums[r].odd = _mm256_setzero_si256();                                   \
        }                                                                                          \
        for (; g + 1u < x->groups; g += 2u) {                                                      \
            const two_groups two = load_two(x, g);                                                 \
            for (uint32_t r = 0; r < quads; r++) {                                                 \
                sf_ask(&next);                                                                     \
                four_##grid(w + 4u * r, at, g, &two, sums + r);                                    \
            }                                                                                      \
        }                                                                                          \
        for (uint32_t r = 0; r < quads; r++) {                                                     \
            int64_t lane[8];                                                                       \
            sf_store256(lane, sums[r].even);                                                       \
            sf_store256(lane + 4, sums[r].odd);                                                    \
            for (uint32_t i = 0; i < 4u && 4u * r + i < n; i++) {                                  \
                const uint32_t l = i % 2u * 4u + i / 2u;                                           \
                int64_t sum = lane[l] + lane[l + 2u];                                              \
                if (g < x->groups) {                                                               \
                    sum += one_##grid(w[4u * r + i], at, g, x);                                    \
                }                                                                                  \
                out[4u * r + i] = sf_sum_to_float(sum, x->s);                                      \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    void SF_NAME(dot_##grid)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) { \
        const uint8_t *w[SF_TILE];                                                                 \
        const uint32_t quads = (n + 3u) / 4u, steps = (x->groups + 1u) / 2u;                       \
        for (uint32_t r = 0; r < 4u * quads; r++) {                                                \
            w[r] = row[r < n ? r : 0];                                                             \
        }                                                                                          \
        if (quads == SF_TILE / 4u) {                                                               \
            quads_##grid(w, SF_TILE / 4u, sf_rows_behind(row, n, 0, n, 0, quads * steps), n, x,    \
                         out);                                                                     \
            return;                                                                                \
        }                                                                                          \
        for (uint32_t r = 0; r < quads; r++) {                                                     \
            quads_##grid(w + 4u * r, 1u, sf_rows_behind(row, n, 4u * r, 4u, 0, steps), n - 4u * r, \
                         x, out + 4u * r);                                                         \
        }                                                                                          \
    }

#ifndef SF_OWN_DOT_Q4
ROWS(q4, SF_GROUP / 2u)
#endif
ROWS(s4, SF_GROUP / 2u)
ROWS(q8, SF_GROUP)
