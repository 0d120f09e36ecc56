/* Rows of 4 bits times an activation vector with AVX-512 VNNI: row by row, for memory is fastest in
 * its own order, and sixteen groups at a time. Of what is left, four groups of four rows are taken
 * together, and the last of eight rows. */
#include "x86_vnni.h"

#include "x86_avx2/avx2.h"

/* Activations of four groups, of one in each lane of 128 bits. */
typedef struct {
    __m512i low, high; /* as nibbles hold them */
    __m512i factor;    /* 2^k, twice in a word */
    __m512i sum;
} four_groups;

/* Of sixteen groups, four at a time; words of a lane are groups 4 apart. */
typedef struct {
    __m512i low[4], high[4], factor, sum;
} sixteen_groups;
enum { BLOCKS = 4 }; /* of sixteen groups that are at hand: wider rows are taken in parts */

/* Sums of 64 bits, of the even words of lanes and of the odd ones. */
typedef struct {
    __m512i even, odd;
} sums;

/* Two groups in a and two in b, by the halves that nibbles hold. */
SF_INLINE __m512i first_halves(__m512i a, __m512i b) {
    return _mm512_permutex2var_epi64(a, _mm512_set_epi64(13, 12, 9, 8, 5, 4, 1, 0), b);
}
SF_INLINE __m512i second_halves(__m512i a, __m512i b) {
    return _mm512_permutex2var_epi64(a, _mm512_set_epi64(15, 14, 11, 10, 7, 6, 3, 2), b);
}
SF_INLINE __m512i factors(__m512i k) {
    return _mm512_sllv_epi32(_mm512_set1_epi32(0x10001), k);
}

/* From the bytes of groups 0 and 1 and of groups 2 and 3; `lane` says which word of k and sum a
 * lane takes. */
SF_INLINE four_groups make_four(__m512i a, __m512i b, __m128i k, __m128i sum, __m512i lane) {
    const __m512i shift = _mm512_castsi128_si512(_mm_cvtepu8_epi32(k));
    return (four_groups){
        first_halves(a, b),
        second_halves(a, b),
        factors(_mm512_permutexvar_epi32(lane, shift)),
        _mm512_permutexvar_epi32(lane, _mm512_castsi128_si512(sum)),
    };
}

SF_INLINE sixteen_groups load_sixteen(const sf_bfp *x, uint32_t g) {
    const __m512i turn = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    const __m512i k = _mm512_cvtepu8_epi32(sf_load128(x->k + g));
    sixteen_groups e;
    for (uint32_t i = 0; i < 4u; i++) {
        const int8_t *q = x->q + (g + 4u * i) * SF_GROUP;
        const __m512i a = _mm512_loadu_si512(q), b = _mm512_loadu_si512(q + 2u * SF_GROUP);
        e.low[i] = first_halves(a, b);
        e.high[i] = second_halves(a, b);
    }
    e.factor = factors(_mm512_permutexvar_epi32(turn, k));
    e.sum = _mm512_permutexvar_epi32(turn, _mm512_loadu_si512(x->sum + g));
    return e;
}

/* Four sums a lane of a group's nibbles, of eight products each, so below 2^14. */
SF_INLINE __m512i products(__m512i v, __m512i low, __m512i high) {
    const __m512i four = _mm512_set1_epi8(15), upper = _mm512_srli_epi16(v, 4);
    const __m512i s = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_and_si512(v, four), low);
    return _mm512_dpbusd_epi32(s, _mm512_and_si512(upper, four), high);
}

/* Of four such vectors, [lane][vector] with their shifts: two sums are below 2^15. */
SF_INLINE __m512i turned(const __m512i *s, __m512i factor) {
    const __m512i one = _mm512_set1_epi16(1);
    const __m512i s01 = _mm512_madd_epi16(_mm512_packs_epi32(s[0], s[1]), one);
    const __m512i s23 = _mm512_madd_epi16(_mm512_packs_epi32(s[2], s[3]), one);
    return _mm512_madd_epi16(_mm512_packs_epi32(s01, s23), factor);
}

SF_INLINE void add_scaled(sums *to, __m512i s, __m512i d) {
    to->even = _mm512_add_epi64(to->even, _mm512_mul_epi32(s, d));
    to->odd = _mm512_add_epi64(
        to->odd, _mm512_mul_epi32(_mm512_srli_epi64(s, 32), _mm512_srli_epi64(d, 32)));
}

/* Sixteen sums s [lane][vector] times their scales, halves in the order of memory [vector][lane]:
 * pairs of scale and minimum, or scales of nibbles that are 8 too high. */
SF_INLINE void add_q4(sums *to, __m512i s, __m512i dm, __m512i sum) {
    const __m512i turn = /* to scales [lane][vector], then minima */
        _mm512_set_epi16(31, 23, 15, 7, 29, 21, 13, 5, 27, 19, 11, 3, 25, 17, 9, 1, 30, 22, 14, 6,
                         28, 20, 12, 4, 26, 18, 10, 2, 24, 16, 8, 0);
    const __m512i halves = _mm512_permutexvar_epi16(turn, dm);
    add_scaled(to, s, sf_halves16(_mm512_castsi512_si256(halves)));
    add_scaled(to, sum, sf_halves16(_mm512_extracti64x4_epi64(halves, 1)));
}
SF_INLINE void add_s4(sums *to, __m512i s, __m256i d, __m512i sum) {
    const __m256i turn = _mm256_set_epi16(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    const __m512i scales = sf_halves16(_mm256_permutexvar_epi16(turn, d));
    add_scaled(to, _mm512_sub_epi32(s, _mm512_slli_epi32(sum, 3)), scales);
}

/* Sixteen groups of a row from byte w on, their scales from byte `scales` on. */
SF_INLINE void add_sixteen(sums *to, const uint8_t *w, const uint8_t *scales,
                           const sixteen_groups *x, bool with_minimum) {
    __m512i s[4];
    for (uint32_t i = 0; i < 4u; i++) {
        s[i] = products(_mm512_loadu_si512(w + 64u * i), x->low[i], x->high[i]);
    }
    if (with_minimum) {
        add_q4(to, turned(s, x->factor), _mm512_loadu_si512(scales), x->sum);
    } else {
        add_s4(to, turned(s, x->factor), sf_load256(scales), x->sum);
    }
}

/* The same of four vectors with their own scales. */
SF_INLINE void add_apart(sums *to, const __m512i *s, const __m128i *d, const four_groups *x,
                         bool with_minimum) {
    const __m512i turned_sums = turned(s, x->factor);
    if (with_minimum) {
        const __m256i first = _mm256_set_m128i(d[1], d[0]), second = _mm256_set_m128i(d[3], d[2]);
        add_q4(to, turned_sums, _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1),
               x->sum);
    } else {
        const __m128i first = _mm_unpacklo_epi64(d[0], d[1]);
        add_s4(to, turned_sums, _mm256_set_m128i(_mm_unpacklo_epi64(d[2], d[3]), first), x->sum);
    }
}

/* Four groups of four rows from byte `at` on, their scales from byte `scales` on. */
SF_INLINE void add_four(sums *to, const uint8_t *const *w, uint32_t at, uint32_t scales,
                        const four_groups *x, bool with_minimum) {
    __m512i s[4];
    __m128i d[4];
    for (uint32_t i = 0; i < 4u; i++) {
        s[i] = products(_mm512_loadu_si512(w[i] + at), x->low, x->high);
        d[i] = with_minimum ? sf_load128(w[i] + scales) : sf_load64(w[i] + scales);
    }
    add_apart(to, s, d, x, with_minimum);
}

/* The last one or two groups of eight rows: rows 4 to 7 are in lanes 2 and 3. */
SF_INLINE void add_last(sums *to, const uint8_t *const *w, uint32_t at, uint32_t scales,
                        const four_groups *x, bool two, bool with_minimum) {
    const __mmask32 bytes = two ? UINT32_MAX : 0xFFFFu;
    const uint32_t halves = (two ? 2u : 1u) * (with_minimum ? 2u : 1u);
    const __mmask8 some = (__mmask8)((1u << halves) - 1u);
    __m512i s[4];
    __m128i d[4];
    for (uint32_t i = 0; i < 4u; i++) {
        const __m256i a = _mm256_maskz_loadu_epi8(bytes, w[i] + at);
        const __m256i b = _mm256_maskz_loadu_epi8(bytes, w[i + 4u] + at);
        const __m128i da = _mm_maskz_loadu_epi16(some, w[i] + scales);
        const __m128i db = _mm_maskz_loadu_epi16(some, w[i + 4u] + scales);
        const __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
        s[i] = products(v, x->low, x->high);
        d[i] = with_minimum ? _mm_unpacklo_epi64(da, db) : _mm_unpacklo_epi32(da, db);
    }
    add_apart(to, s, d, x, with_minimum);
}

/* Neighbours of a and b added: words, lanes, lanes two apart. */
SF_INLINE __m512i add_words(__m512i a, __m512i b) {
    return _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}
SF_INLINE __m512i add_halves(__m512i a, __m512i b) {
    return _mm512_add_epi64(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xEE));
}
SF_INLINE __m512i add_lanes(__m512i a, __m512i b) {
    return _mm512_add_epi64(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xDD));
}

/* What is left of rows behind blocks of sixteen groups. */
typedef struct {
    four_groups four[3], last[2];
    uint32_t fours, lasts;
} left_groups;

SF_INLINE void load_left(left_groups *left, const sf_bfp *x, uint32_t g) {
    const __m512i lane = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    const __m512i twice = _mm512_and_si512(lane, _mm512_set1_epi32(1));
    left->fours = left->lasts = 0;
    for (; g + 4u <= x->groups; g += 4u) {
        const int8_t *q = x->q + g * SF_GROUP;
        left->four[left->fours++] =
            make_four(_mm512_loadu_si512(q), _mm512_loadu_si512(q + 2u * SF_GROUP),
                      _mm_maskz_loadu_epi8(15u, x->k + g), sf_load128(x->sum + g), lane);
    }
    for (; g < x->groups; g += 2u) {
        const bool two = x->groups - g > 1u;
        const __mmask8 some = two ? 3u : 1u;
        const __m512i q =
            _mm512_maskz_loadu_epi8(two ? UINT64_MAX : UINT32_MAX, x->q + g * SF_GROUP);
        left->last[left->lasts++] = make_four(q, q, _mm_maskz_loadu_epi8(some, x->k + g),
                                              _mm_maskz_loadu_epi32(some, x->sum + g), twice);
    }
}

/* The sums of eight rows: those of their blocks, and what is left of them from group g on. */
SF_INLINE __m512i eight_rows(const __m512i *total, const uint8_t *const *w, uint32_t g,
                             const left_groups *left, const sf_bfp *x, bool with_minimum) {
    const uint32_t weights = SF_GROUP / 2u, scale = with_minimum ? 4u : 2u;
    const uint32_t scales = x->groups * weights, last = g + 4u * left->fours;
    __m512i four[2];
    for (uint32_t h = 0; h < 2u; h++) {
        const __m512i *t = total + 4u * h;
        sums s = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (uint32_t i = 0; i < left->fours; i++) {
            const uint32_t at = g + 4u * i;
            add_four(&s, w + 4u * h, at * weights, scales + at * scale, left->four + i,
                     with_minimum);
        }
        four[h] = add_halves(
            _mm512_add_epi64(add_words(t[0], t[1]), _mm512_unpacklo_epi64(s.even, s.odd)),
            _mm512_add_epi64(add_words(t[2], t[3]), _mm512_unpackhi_epi64(s.even, s.odd)));
    }
    __m512i sum = add_lanes(four[0], four[1]);
    for (uint32_t i = 0; i < left->lasts; i++) {
        const uint32_t at = last + 2u * i;
        sums s = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        add_last(&s, w, at * weights, scales + at * scale, left->last + i, x->groups - at > 1u,
                 with_minimum);
        const __m512i more =
            add_lanes(_mm512_unpacklo_epi64(s.even, s.odd), _mm512_unpackhi_epi64(s.even, s.odd));
        sum = _mm512_add_epi64(sum, _mm512_shuffle_i64x2(more, more, 0xD8));
    }
    return sum;
}

SF_INLINE void dot_nibbles(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out,
                           bool with_minimum) {
    const uint32_t weights = SF_GROUP / 2u, scale = with_minimum ? 4u : 2u; /* bytes of a group */
    const uint32_t scales = x->groups * weights, blocks = x->groups / 16u;
    const sf_row_asks asks =
        sf_asks_by_row(row, n, scales + x->groups * scale, blocks > 0 ? blocks : 1u);
    const __m256 unit = _mm256_set1_ps(sf_pow2(-(24 + SF_SHIFT_SPAN + x->s)));
    const uint8_t *w[SF_TILE];
    __m512i total[SF_TILE];
    sixteen_groups block[BLOCKS];
    left_groups left;
    for (uint32_t r = 0; r < (n + 7u) / 8u * 8u; r++) {
        w[r] = row[r < n ? r : 0];
        total[r] = _mm512_setzero_si512();
    }
    for (uint32_t from = 0; from < blocks; from += BLOCKS) {
        const uint32_t count = blocks - from < BLOCKS ? blocks - from : BLOCKS;
        for (uint32_t b = 0; b < count; b++) {
            block[b] = load_sixteen(x, 16u * (from + b));
        }
        for (uint32_t r = 0; r < n; r++) {
            const uint8_t *p = w[r] + 16u * weights * from, *d = w[r] + scales + 16u * scale * from;
            sums s = {total[r], _mm512_setzero_si512()};
            for (uint32_t b = 0; b < count; b++, p += 16u * weights, d += 16u * scale) {
                sf_ask_behind(&asks, w[r], from + b, 16u * (weights + scale));
                add_sixteen(&s, p, d, block + b, with_minimum);
            }
            total[r] = _mm512_add_epi64(s.even, s.odd);
        }
    }
    load_left(&left, x, 16u * blocks);
    for (uint32_t r = 0; r < n; r += 8u) {
        const __m512i sum = eight_rows(total + r, w + r, 16u * blocks, &left, x, with_minimum);
        const __mmask8 some = (__mmask8)(n - r < 8u ? (1u << (n - r)) - 1u : 0xFFu);
        _mm256_mask_storeu_ps(out + r, some, _mm256_mul_ps(_mm512_cvtepi64_ps(sum), unit));
    }
}

void sf_x86_vnni_dot_q4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    dot_nibbles(row, n, x, out, true);
}
void sf_x86_vnni_dot_s4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    dot_nibbles(row, n, x, out, false);
}
