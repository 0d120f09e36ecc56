/* Rows times an activation vector with AVX2: four rows by two groups at a time, and one group of
 * what is left. */
#include "avx2.h"

/* Two groups of activations. */
typedef struct {
    __m256i first, second; /* their 8-bit values */
    __m256i k, sum;        /* by lane: shift, and sum with it */
} two_groups;

SF_INLINE two_groups load_two(const sf_bfp *x, uint32_t g) {
    const __m256i spread = _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0);
    uint16_t k;
    memcpy(&k, x->k + g, sizeof k);
    const __m128i ks = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(k));
    return (two_groups){
        sf_load256(x->q + g * SF_GROUP),
        sf_load256(x->q + (g + 1u) * SF_GROUP),
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
                       uintptr_t behind, four_sums *sums) {
    const __m256i low = _mm256_permute2x128_si256(x->first, x->second, 0x20);
    const __m256i high = _mm256_permute2x128_si256(x->first, x->second, 0x31);
    __m256i s[4];
    __m128i dm[4];
    for (uint32_t i = 0; i < 4u; i++) {
        const uint8_t *p = w[i] + g * (SF_GROUP / 2u);
        if (g % 4u == 0) {
            sf_prefetch(p, behind);
        }
        const __m256i v = sf_load256(p);
        const __m256i a = _mm256_maddubs_epi16(sf_low4(v), low);
        const __m256i b = _mm256_maddubs_epi16(sf_high4(v), high);
        s[i] = _mm256_madd_epi16(_mm256_add_epi16(a, b), _mm256_set1_epi16(1));
        dm[i] = sf_load64(w[i] + at + 4u * g);
    }
    const __m128i a = _mm_unpacklo_epi16(dm[0], dm[1]), b = _mm_unpacklo_epi16(dm[2], dm[3]);
    const __m128i lo = _mm_unpacklo_epi32(a, b), hi = _mm_unpackhi_epi32(a, b);
    const __m256i m = sf_halves8(_mm_unpackhi_epi64(lo, hi));
    add_scaled(sums, _mm256_sllv_epi32(by_group(s), x->k), sf_halves8(_mm_unpacklo_epi64(lo, hi)));
    add_scaled(sums, x->sum, m);
}

SF_INLINE void four_s4(const uint8_t *const *w, uint32_t at, uint32_t g, const two_groups *x,
                       uintptr_t behind, four_sums *sums) {
    const __m256i low = _mm256_permute2x128_si256(x->first, x->second, 0x20);
    const __m256i high = _mm256_permute2x128_si256(x->first, x->second, 0x31);
    __m256i s[4];
    __m128i d[4];
    for (uint32_t i = 0; i < 4u; i++) {
        const uint8_t *p = w[i] + g * (SF_GROUP / 2u);
        if (g % 4u == 0) {
            sf_prefetch(p, behind);
        }
        const __m256i v = sf_load256(p);
        const __m256i a = _mm256_maddubs_epi16(sf_low4(v), low);
        const __m256i b = _mm256_maddubs_epi16(sf_high4(v), high);
        s[i] = _mm256_madd_epi16(_mm256_add_epi16(a, b), _mm256_set1_epi16(1));
        d[i] = load_two_halves(w[i] + at + 2u * g);
    }
    const __m256i t = _mm256_sllv_epi32(by_group(s), x->k);
    add_scaled(sums, _mm256_sub_epi32(t, _mm256_slli_epi32(x->sum, 3)), turned_halves(d));
}

SF_INLINE void four_q8(const uint8_t *const *w, uint32_t at, uint32_t g, const two_groups *x,
                       uintptr_t behind, four_sums *sums) {
    __m256i s[4], t[4];
    __m128i d[4];
    for (uint32_t i = 0; i < 4u; i++) {
        const uint8_t *p = w[i] + g * SF_GROUP;
        sf_prefetch(p, behind);
        s[i] = sf_signed_products(sf_load256(p), x->first);
        t[i] = sf_signed_products(sf_load256(p + SF_GROUP), x->second);
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
    SF_INLINE void quads_##grid(const uint8_t *const *w, uint32_t quads, uintptr_t behind,         \
                                uint32_t n, const sf_bfp *x, float *out) {                         \
        const uint32_t at = x->groups * (bytes);                                                   \
        four_sums sums[SF_TILE / 4u];                                                              \
        uint32_t g = 0;                                                                            \
        for (uint32_t r = 0; r < quads; r++) {                                                     \
            sums[r].even = sums[r].odd = _mm256_setzero_si256();                                   \
        }                                                                                          \
        for (; g + 1u < x->groups; g += 2u) {                                                      \
            const two_groups two = load_two(x, g);                                                 \
            for (uint32_t r = 0; r < quads; r++) {                                                 \
                four_##grid(w + 4u * r, at, g, &two, behind, sums + r);                            \
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
    void sf_x86_avx2_dot_##grid(const uint8_t *const *row, uint32_t n, const sf_bfp *x,            \
                                float *out) {                                                      \
        const uint8_t *w[SF_TILE];                                                                 \
        const uint32_t quads = (n + 3u) / 4u;                                                      \
        const uintptr_t behind = sf_behind(row, n);                                                \
        for (uint32_t r = 0; r < 4u * quads; r++) {                                                \
            w[r] = row[r < n ? r : 0];                                                             \
        }                                                                                          \
        if (quads == SF_TILE / 4u) {                                                               \
            quads_##grid(w, SF_TILE / 4u, behind, n, x, out);                                      \
            return;                                                                                \
        }                                                                                          \
        for (uint32_t r = 0; r < quads; r++) {                                                     \
            quads_##grid(w + 4u * r, 1u, behind, n - 4u * r, x, out + 4u * r);                     \
        }                                                                                          \
    }

ROWS(q4, SF_GROUP / 2u)
ROWS(s4, SF_GROUP / 2u)
ROWS(q8, SF_GROUP)

enum {
    R8_BYTES = SF_GROUP + 4,
    CHUNK = 8 /* groups whose sums with any shift fit 32 bits: 8 * 2 * (2 * 128 + 1) * 127 * 2^12 */
};

/* Eight sums of a group of halves: its bytes are the weights, but a first one below 0 has taken one
 * from the second. */
SF_INLINE __m256i products_r8(__m256i v, __m256i x) {
    const __m256i taken = _mm256_slli_epi16(_mm256_and_si256(v, _mm256_set1_epi16(0x80)), 1);
    const __m256i s = _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(x, v));
    return _mm256_madd_epi16(_mm256_add_epi16(s, _mm256_maddubs_epi16(taken, x)),
                             _mm256_set1_epi16(1));
}

void sf_x86_avx2_dot_r8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    const uintptr_t behind = sf_behind(row, n);
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r] + 4;
        __m256i acc = _mm256_setzero_si256();
        for (uint32_t from = 0; from < x->groups; from += CHUNK) {
            const uint32_t end = x->groups - from < CHUNK ? x->groups : from + CHUNK;
            __m256i sum = _mm256_setzero_si256();
            for (uint32_t g = from; g < end; g++, w += R8_BYTES) {
                sf_prefetch(w, behind);
                const __m256i s = products_r8(sf_load256(w), sf_load256(x->q + g * SF_GROUP));
                sum = _mm256_add_epi32(sum, _mm256_sll_epi32(s, _mm_cvtsi32_si128(x->k[g])));
            }
            acc = sf_add_wide(acc, sum);
        }
        float d;
        memcpy(&d, row[r] + x->groups * R8_BYTES, sizeof d);
        out[r] = sf_row_sum_to_float(sf_total64(acc), x->s) * d;
    }
}

/* The bits of a word as bytes of \a one or 0. */
SF_INLINE __m256i bit_bytes(uint32_t word, int32_t one) {
    const __m256i of =
        _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    const __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi32((int32_t)word), of);
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit),
                            _mm256_set1_epi8((char)one));
}

void sf_x86_avx2_dot_proxy(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                           float *out) {
    const int32_t factor = bits == 1u ? 2 : 1;
    const int32_t less = bits == 1u ? 1 : (int32_t)(1u << (bits - 1u)) - 1;
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r], *scales = row[r] + x->groups * bits * 4u;
        int64_t acc = 0;
        for (uint32_t g = 0; g < x->groups; g++) {
            __m256i u = _mm256_setzero_si256();
            for (uint32_t j = 0; j < bits; j++, w += 4) {
                u = _mm256_or_si256(u, bit_bytes(sf_load32(w), (int32_t)(1u << j)));
            }
            const int32_t isum = sf_total32(sf_products(u, sf_load256(x->q + g * SF_GROUP)));
            const int32_t sum = factor * isum * (int32_t)(1u << x->k[g]) - less * x->sum[g];
            acc += (int64_t)sum * sf_one_half(scales + 2u * g);
        }
        out[r] = sf_sum_to_float(acc, x->s);
    }
}

void sf_x86_avx2_dot_signs(const uint8_t *const *row, uint32_t n, const uint32_t *sign,
                           uint32_t groups, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        uint32_t differ = 0;
        for (uint32_t g = 0; g < groups; g++) {
            differ += (uint32_t)_mm_popcnt_u32(sf_load32(row[r] + 4u * g) ^ sign[g]);
        }
        out[r] = (float)(int32_t)(SF_GROUP * groups - differ);
    }
}
