/* Matrices of q4 by columns with AVX2: two columns at a time, interleaved, so that a product of
 * pairs adds both to an output. */
#include "avx2.h"

/* Eight sums of 16 bits. */
SF_INLINE void add8_short(int32_t *y, __m128i v) {
    sf_add8(y, _mm256_cvtepi16_epi32(v));
}
/* Sums of 16 bits of 64 outputs, those 8 i on of the first group in the lower half of [i]. Eight
 * pairs of 2 * 15 * 127 have 16 bits. */
typedef struct {
    __m256i s[4];
} sums;

enum { PAIRS = 8 };

SF_INLINE sums no_sums(void) {
    const __m256i none = _mm256_setzero_si256();
    return (sums){{none, none, none, none}};
}

/* A group's bytes of a column, or those of two. */
SF_INLINE __m256i load_groups(const uint8_t *p, uint32_t groups) {
    return groups == 2u ? sf_load256(p) : _mm256_zextsi128_si256(sf_load128(p));
}

/* Adds one or two groups of two columns times their coefficients, the first in the lower byte of
 * x. */
SF_INLINE void add_pair(const uint8_t *p, const uint8_t *q, uint16_t x, uint32_t groups,
                        sums *sum) {
    const __m256i pair = _mm256_set1_epi16((short)x);
    const __m256i v = load_groups(p, groups), w = load_groups(q, groups);
    const __m256i lo = _mm256_unpacklo_epi8(v, w), hi = _mm256_unpackhi_epi8(v, w);
    const __m256i nibbles[4] = {sf_low4(lo), sf_low4(hi), sf_high4(lo), sf_high4(hi)};
    for (uint32_t i = 0; i < 4u; i++) {
        sum->s[i] = _mm256_add_epi16(sum->s[i], _mm256_maddubs_epi16(nibbles[i], pair));
    }
}

/* isum += at most 16 columns, for one or two groups of outputs from j on. */
SF_INLINE void sixteen_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t j,
                          uint32_t groups, int32_t *isum) {
    sums sum = no_sums();
    for (uint32_t r = 0; r < n; r += 2u) {
        const bool both = r + 1u < n;
        const uint32_t second = both ? (uint8_t)h[r + 1u] : 0u;
        add_pair(col[r] + j / 2u, col[both ? r + 1u : r] + j / 2u,
                 (uint16_t)((uint8_t)h[r] | second << 8), groups, &sum);
    }
    for (uint32_t i = 0; i < 4u; i++) {
        add8_short(isum + j + 8u * i, _mm256_castsi256_si128(sum.s[i]));
        if (groups == 2u) {
            add8_short(isum + j + SF_GROUP + 8u * i, _mm256_extracti128_si256(sum.s[i], 1));
        }
    }
}

void sf_x86_avx2_axpy_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                         int32_t *isum) {
    for (uint32_t from = 0; from < n; from += 2u * PAIRS) {
        const uint32_t some = n - from < 2u * PAIRS ? n - from : 2u * PAIRS;
        uint32_t j = 0;
        for (; j + 2u * SF_GROUP <= dim; j += 2u * SF_GROUP) {
            sixteen_q4(col + from, h + from, some, j, 2, isum);
        }
        if (j < dim) {
            sixteen_q4(col + from, h + from, some, j, 1, isum);
        }
    }
}

/* What the sums of a block are multiplied with. */
typedef struct {
    const uint8_t *scales;
    __m128i shift;
    __m256i total;
} block;

SF_INLINE block block_of(const uint8_t *scales, uint32_t k, int32_t sum) {
    return (block){scales, _mm_cvtsi32_si128((int32_t)k), _mm256_set1_epi64x(sum)};
}

/* acc[0..7] += the sums of outputs from j on, scaled: those of outputs 0 to 3 in the lower words of
 * 64 bits of `first`, of 4 to 7 in those of `second`. Scales lie so too, and minima above them. */
SF_INLINE void add_scaled(const block *b, uint32_t j, __m256i first, __m256i second, int64_t *acc) {
    const __m256i u = sf_halves8(sf_load128(b->scales + 4u * j));
    const __m256i v = sf_halves8(sf_load128(b->scales + 4u * j + 16u));
    const __m256i s = _mm256_sll_epi32(first, b->shift), t = _mm256_sll_epi32(second, b->shift);
    const __m256i a = _mm256_add_epi64(_mm256_mul_epi32(s, u),
                                       _mm256_mul_epi32(b->total, _mm256_srli_epi64(u, 32)));
    const __m256i c = _mm256_add_epi64(_mm256_mul_epi32(t, v),
                                       _mm256_mul_epi32(b->total, _mm256_srli_epi64(v, 32)));
    sf_store256(acc + j, _mm256_add_epi64(sf_load256(acc + j), a));
    sf_store256(acc + j + 4u, _mm256_add_epi64(sf_load256(acc + j + 4u), c));
}

void sf_x86_avx2_scale_q4(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim,
                          int32_t *isum, int64_t *acc) {
    const block b = block_of(scales, k, sum);
    for (uint32_t j = 0; j < dim; j += 8u) {
        add_scaled(&b, j, _mm256_cvtepi32_epi64(sf_load128(isum + j)),
                   _mm256_cvtepi32_epi64(sf_load128(isum + j + 4u)), acc);
        sf_store256(isum + j, _mm256_setzero_si256());
    }
}

/* Columns of a block in pairs; one that is not there is another times zero. */
typedef struct {
    const uint8_t *first[SF_GROUP / 2u], *second[SF_GROUP / 2u];
    uint16_t x[SF_GROUP / 2u];
    uint32_t n;
} pairs;

SF_INLINE void make_pairs(const sf_block *b, pairs *p) {
    const uint32_t whole = b->n / 2u;
    for (uint32_t r = 0; r < whole; r++) {
        p->first[r] = b->col[2u * r];
        p->second[r] = b->col[2u * r + 1u];
        p->x[r] = (uint16_t)((uint8_t)b->h[2u * r] | (uint32_t)(uint8_t)b->h[2u * r + 1u] << 8);
    }
    if (b->n % 2u > 0) {
        p->first[whole] = p->second[whole] = b->col[b->n - 1u];
        p->x[whole] = (uint8_t)b->h[b->n - 1u];
    }
    p->n = (b->n + 1u) / 2u;
}

/* Sums of one or two groups of outputs from j on, of some pairs; eight of a half lie as add_scaled
 * takes them. */
SF_INLINE void sum_pairs(const pairs *p, uint32_t from, uint32_t to, uint32_t j, uint32_t groups,
                         sums *sum) {
    const __m256i apart = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    *sum = no_sums();
    for (uint32_t r = from; r < to; r++) {
        add_pair(p->first[r] + j / 2u, p->second[r] + j / 2u, p->x[r], groups, sum);
    }
    for (uint32_t i = 0; i < 4u; i++) {
        sum->s[i] = _mm256_shuffle_epi8(sum->s[i], apart);
    }
}

SF_INLINE __m256i eight_of(__m256i s, uint32_t half) {
    return _mm256_cvtepi16_epi32(half ? _mm256_extracti128_si256(s, 1) : _mm256_castsi256_si128(s));
}

/* One or two groups of outputs from j on; a line of the later scales is asked for beside each line
 * of these. */
SF_INLINE void groups_of_block(const sf_block *b, const pairs *p, const block *of, uint32_t j,
                               uint32_t groups, int64_t *acc) {
    const uint32_t some = p->n < PAIRS ? p->n : PAIRS;
    const bool more = some < p->n;
    sums few, others = no_sums();
    sum_pairs(p, 0, some, j, groups, &few);
    if (more) {
        sum_pairs(p, some, p->n, j, groups, &others);
    }
    for (uint32_t half = 0; half < groups; half++) {
        for (uint32_t i = 0; i < 4u; i++) {
            const uint32_t at = j + SF_GROUP * half + 8u * i;
            __m256i s = eight_of(few.s[i], half);
            if (i % 2u == 0) {
                sf_ask_line(b->later_scales + 4u * at);
            }
            if (more) {
                s = _mm256_add_epi32(s, eight_of(others.s[i], half));
            }
            add_scaled(of, at, s, _mm256_srli_epi64(s, 32), acc);
        }
    }
}

void sf_x86_avx2_block_q4(const sf_block *b, uint32_t dim, int64_t *acc) {
    const block of = block_of(b->scales, b->k, b->sum);
    pairs p;
    make_pairs(b, &p);
    for (uint32_t j = 0; j < dim; j += 2u * SF_GROUP) {
        for (uint32_t i = 0; i < b->laters && j % (4u * SF_GROUP) == 0; i++) {
            sf_ask_line(b->later[i] + j / 2u); /* a line is four groups */
        }
        if (j + SF_GROUP < dim) {
            groups_of_block(b, &p, &of, j, 2, acc);
        } else {
            groups_of_block(b, &p, &of, j, 1, acc);
        }
    }
    sf_ask_last_lines(b, dim);
}

/* Four sums as floats where they are below 2^51: in the fraction of 2^52 they are exact doubles,
 * and are rounded once. */
SF_INLINE bool four_floats(__m256i v, __m128 scale, float *out) {
    const __m256i up = _mm256_add_epi64(v, _mm256_set1_epi64x((int64_t)1 << 51));
    const __m256d base = _mm256_set1_pd(4503599627370496.0),
                  less = _mm256_set1_pd(6755399441055744.0);
    if (!_mm256_testz_si256(up, _mm256_set1_epi64x(-((int64_t)1 << 52)))) {
        return false;
    }
    const __m256d d = _mm256_castsi256_pd(_mm256_or_si256(up, _mm256_castpd_si256(base)));
    _mm_storeu_ps(out, _mm_mul_ps(_mm256_cvtpd_ps(_mm256_sub_pd(d, less)), scale));
    return true;
}

void sf_x86_avx2_floats(const int64_t *acc, uint32_t n, int32_t s, float *out) {
    const __m128 scale = _mm_set1_ps(sf_pow2(-(24 + SF_SHIFT_SPAN + s)));
    for (uint32_t j = 0; j < n; j += 4u) {
        if (j + 4u <= n && four_floats(sf_load256(acc + j), scale, out + j)) {
            continue;
        }
        for (uint32_t i = j; i < n && i < j + 4u; i++) {
            out[i] = sf_sum_to_float(acc[i], s);
        }
    }
}
