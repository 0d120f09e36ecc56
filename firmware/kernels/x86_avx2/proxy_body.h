/* Rows of proxies, row by row: eight groups at a time, a lane of 32 bits for each, and what is left
 * of four rows together. A tier that includes this has SF_NAME(kernel), its name of a kernel,
 * both(), which takes bits 0, 1, 4 and 5 of bytes from one and the others from another,
 * add_halves(), which adds the products of both halves of bytes, four in each lane, and lane_sums()
 * of such sums. */
#include "x86_avx2/dot_groups.h"

/* What weights meet: lanes are eight groups, or two for each of four rows, as in four_sums. */
typedef struct {
    __m256i q[8]; /* activations 4 s to 4 s + 3 of each group */
    __m256i shift;
    __m256i less; /* what stored weights have too much */
} proxy_lanes;

/* Words of eight groups, [group][word], to [word][group]. */
SF_INLINE void turn_words(const __m256i *g, __m256i *q) {
    __m256i two[8], four[8];
    for (uint32_t i = 0; i < 8u; i += 2u) {
        two[i] = _mm256_unpacklo_epi32(g[i], g[i + 1u]);
        two[i + 1u] = _mm256_unpackhi_epi32(g[i], g[i + 1u]);
    }
    for (uint32_t i = 0; i < 8u; i += 4u) {
        for (uint32_t j = 0; j < 2u; j++) {
            four[i + 2u * j] = _mm256_unpacklo_epi64(two[i + j], two[i + j + 2u]);
            four[i + 2u * j + 1u] = _mm256_unpackhi_epi64(two[i + j], two[i + j + 2u]);
        }
    }
    for (uint32_t i = 0; i < 4u; i++) {
        q[i] = _mm256_permute2x128_si256(four[i], four[i + 4u], 0x20);
        q[i + 4u] = _mm256_permute2x128_si256(four[i], four[i + 4u], 0x31);
    }
}

/* Eight groups from g on, of which there are so many; others are 0. */
SF_INLINE proxy_lanes load_lanes(uint32_t bits, const sf_bfp *x, uint32_t g, uint32_t count) {
    const int32_t less = bits == 1u ? 1 : (int32_t)(1u << (bits - 1u)) - 1;
    __m256i group[8];
    int32_t sum[8] = {0};
    uint8_t k[8] = {0};
    proxy_lanes a;
    memcpy(k, x->k + g, count);
    memcpy(sum, x->sum + g, count * sizeof sum[0]);
    for (uint32_t i = 0; i < 8u; i++) {
        group[i] = i < count ? sf_load256(x->q + SF_GROUP * (g + i)) : _mm256_setzero_si256();
    }
    turn_words(group, a.q);
    a.shift =
        _mm256_add_epi32(_mm256_cvtepu8_epi32(sf_load64(k)), _mm256_set1_epi32(bits == 1u ? 1 : 0));
    a.less = _mm256_mullo_epi32(sf_load256(sum), _mm256_set1_epi32(less));
    return a;
}

/* Groups i and i + 1 of eight, for four rows. */
SF_INLINE proxy_lanes pair_of(const proxy_lanes *a, uint32_t i) {
    const __m256i lane =
        _mm256_add_epi32(_mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1), _mm256_set1_epi32((int32_t)i));
    proxy_lanes pair;
    for (uint32_t s = 0; s < 8u; s++) {
        pair.q[s] = _mm256_permutevar8x32_epi32(a->q[s], lane);
    }
    pair.shift = _mm256_permutevar8x32_epi32(a->shift, lane);
    pair.less = _mm256_permutevar8x32_epi32(a->less, lane);
    return pair;
}

/* Bytes whose lower halves have the stored weights 4 s to 4 s + 3 of each group in their lowest
 * bits, and whose upper halves have those 16 behind; from the planes of a block. */
SF_INLINE __m256i eight_weights(const __m256i *w, uint32_t bits, uint32_t s) {
    if (bits == 1u) {
        return _mm256_srli_epi32(w[0], (int)s);
    }
    if (bits == 4u) {
        return w[s];
    }
    const __m256i low = _mm256_srli_epi32(w[s / 2u], (int)(s % 2u * 2u));
    if (bits == 2u) {
        return low;
    }
    return both(low, s < 2u ? _mm256_slli_epi32(w[2], (int)(2u - s))
                            : _mm256_srli_epi32(w[2], (int)(s - 2u)));
}

/* Sums of lanes with their shifts, less what weights have too much. */
SF_INLINE __m256i signed_sums(const __m256i *plane, uint32_t bits, const proxy_lanes *a) {
    const __m256i mask = _mm256_set1_epi8((char)((1u << bits) - 1u));
    __m256i lower = _mm256_setzero_si256(), upper = lower;
    for (uint32_t s = 0; s < 4u; s++) {
        add_halves(eight_weights(plane, bits, s), mask, a->q[s], a->q[s + 4u], &lower, &upper);
    }
    return _mm256_sub_epi32(_mm256_sllv_epi32(lane_sums(lower, upper), a->shift), a->less);
}

/* A block of a row from byte w on, its scales from byte `scales` on. */
SF_INLINE __m256i eight_groups(const uint8_t *w, const uint8_t *scales, uint32_t bits,
                               const proxy_lanes *a) {
    __m256i plane[4];
    for (uint32_t j = 0; j < bits; j++) {
        plane[j] = sf_load256(w + 32u * j);
    }
    return scaled(signed_sums(plane, bits, a), sf_halves8(sf_load128(scales)));
}

/* What is left behind the blocks of eight. */
typedef struct {
    proxy_lanes pair[4];
    uint32_t groups;
    uint32_t words, scales; /* where theirs begin in a row */
} proxy_left;

/* Pair i of what is left of four rows; the last may be a group alone. */
SF_INLINE void two_groups(const uint8_t *const *w, uint32_t bits, const proxy_left *a, uint32_t i,
                          four_sums *sums) {
    const bool two = 2u * i + 1u < a->groups;
    __m256i plane[4];
    __m128i v[4];
    for (uint32_t j = 0; j < bits; j++) {
        for (uint32_t r = 0; r < 4u; r++) {
            const uint8_t *p = w[r] + a->words + 4u * (a->groups * j + 2u * i);
            v[r] = two ? sf_load64(p) : _mm_cvtsi32_si128((int32_t)sf_load32(p));
        }
        const __m128i low = _mm_unpacklo_epi32(v[0], v[1]), high = _mm_unpacklo_epi32(v[2], v[3]);
        plane[j] = _mm256_set_m128i(_mm_unpackhi_epi64(low, high), _mm_unpacklo_epi64(low, high));
    }
    for (uint32_t r = 0; r < 4u; r++) {
        const uint8_t *d = w[r] + a->scales + 4u * i;
        v[r] = _mm_cvtsi32_si128((int32_t)(two ? sf_load32(d) : sf_load16(d)));
    }
    add_scaled(sums, signed_sums(plane, bits, a->pair + i), turned_halves(v));
}

SF_INLINE void load_left(proxy_left *a, uint32_t bits, const sf_bfp *x) {
    const uint32_t whole = x->groups / 8u * 8u;
    a->groups = x->groups - whole;
    a->words = 4u * bits * whole;
    a->scales = 4u * bits * x->groups + 2u * whole;
    const proxy_lanes all = load_lanes(bits, x, whole, a->groups);
    for (uint32_t i = 0; 2u * i < a->groups; i++) {
        a->pair[i] = pair_of(&all, 2u * i);
    }
}

SF_INLINE void proxy_rows(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                          float *out) {
    const uint32_t at = x->groups * bits * 4u, blocks = x->groups / 8u;
    proxy_lanes block[SF_BLOCKS8];
    proxy_left left;
    __m256i total[SF_TILE];
    const sf_row_asks asks = sf_asks_by_row(row, n, at + 2u * x->groups, blocks > 0 ? blocks : 1u);
    load_left(&left, bits, x);
    for (uint32_t from = 0; from == 0 || from < blocks; from += SF_BLOCKS8) {
        const uint32_t count = blocks - from < SF_BLOCKS8 ? blocks - from : SF_BLOCKS8;
        for (uint32_t b = 0; b < count; b++) {
            block[b] = load_lanes(bits, x, 8u * (from + b), 8u);
        }
        for (uint32_t first = 0; first < n; first += 4u) {
            four_sums more = {_mm256_setzero_si256(), _mm256_setzero_si256()};
            const uint8_t *four[4];
            int64_t sum[4];
            for (uint32_t r = 0; r < 4u; r++) {
                four[r] = row[first + r < n ? first + r : first];
                const uint8_t *w = four[r] + 32u * bits * from, *d = four[r] + at + 16u * from;
                __m256i s = from > 0 ? total[first + r] : _mm256_setzero_si256();
                for (uint32_t b = 0; b < count; b++, w += 32u * bits, d += 16) {
                    sf_ask_behind(&asks, four[r], from + b, 8u * (4u * bits + 2u));
                    s = _mm256_add_epi64(s, eight_groups(w, d, bits, block + b));
                }
                total[first + r] = s;
            }
            if (from + count < blocks) {
                continue;
            }
            for (uint32_t i = 0; 2u * i < left.groups; i++) {
                two_groups(four, bits, &left, i, &more);
            }
            sf_store256(sum, joined(total + first, &more));
            for (uint32_t r = 0; r < 4u && first + r < n; r++) {
                out[first + r] = sf_sum_to_float(sum[r], x->s);
            }
        }
    }
}

void SF_NAME(dot_proxy)(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                        float *out) {
    switch (bits) {
    case 1: proxy_rows(row, n, 1, x, out); break;
    case 2: proxy_rows(row, n, 2, x, out); break;
    case 3: proxy_rows(row, n, 3, x, out); break;
    default: proxy_rows(row, n, 4, x, out); break;
    }
}
