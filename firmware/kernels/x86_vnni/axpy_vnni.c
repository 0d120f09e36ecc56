/* Matrices by columns with AVX-512 VNNI. */
#include "x86_vnni.h"

#include "x86_avx2/avx2.h"

/* Sums of outputs of four groups in the upper and in all bits of bytes of columns. */
typedef struct {
    __m512i all[4], upper[4];
} sums;

SF_INLINE sums no_sums(void) {
    const __m512i none = _mm512_setzero_si512();
    return (sums){{none, none, none, none}, {none, none, none, none}};
}

/* Adds four columns times their coefficients, from a byte of them on: bytes are interleaved, so
 * that a dot product of four takes one output of each. A 128-bit lane holds a group of 32. */
SF_INLINE void add_four(const uint8_t *const *col, uint32_t at, __mmask64 bytes, int32_t h,
                        sums *s) {
    const __m512i upper = _mm512_set1_epi8((char)0xF0), x = _mm512_set1_epi32(h);
    const __m512i w0 = _mm512_maskz_loadu_epi8(bytes, col[0] + at);
    const __m512i w1 = _mm512_maskz_loadu_epi8(bytes, col[1] + at);
    const __m512i w2 = _mm512_maskz_loadu_epi8(bytes, col[2] + at);
    const __m512i w3 = _mm512_maskz_loadu_epi8(bytes, col[3] + at);
    const __m512i l01 = _mm512_unpacklo_epi8(w0, w1), h01 = _mm512_unpackhi_epi8(w0, w1);
    const __m512i l23 = _mm512_unpacklo_epi8(w2, w3), h23 = _mm512_unpackhi_epi8(w2, w3);
    const __m512i t[4] = {_mm512_unpacklo_epi16(l01, l23), _mm512_unpackhi_epi16(l01, l23),
                          _mm512_unpacklo_epi16(h01, h23), _mm512_unpackhi_epi16(h01, h23)};
    for (uint32_t q = 0; q < 4u; q++) { /* upper nibbles count 16 times, in both */
        s->all[q] = _mm512_dpbusd_epi32(s->all[q], t[q], x);
        s->upper[q] = _mm512_dpbusd_epi32(s->upper[q], _mm512_and_si512(t[q], upper), x);
    }
}

/* Outputs 0 to 15 of group i in out[i], or outputs 16 to 31. */
SF_INLINE void by_output(const sums *s, bool upper, __m512i *out) {
    __m512i t[4];
    for (uint32_t q = 0; q < 4u; q++) {
        t[q] = upper ? _mm512_srai_epi32(s->upper[q], 4) : _mm512_sub_epi32(s->all[q], s->upper[q]);
    }
    sf_turn(t, out);
}

/* Columns in fours, and those that are left, with one of them times zero. */
typedef struct {
    const uint8_t *const *col;
    const int8_t *h;
    uint32_t whole;
    const uint8_t *last[4];
    int32_t of_last;
    bool more;
} fours;

SF_INLINE fours in_fours(const uint8_t *const *col, const int8_t *h, uint32_t n) {
    const uint32_t whole = n / 4u * 4u;
    fours f = {.col = col, .h = h, .whole = whole, .more = whole < n};
    for (uint32_t r = 0; r < 4u; r++) {
        const bool there = whole + r < n;
        f.last[r] = col[there ? whole + r : 0];
        f.of_last |= there ? (int32_t)((uint32_t)(uint8_t)h[whole + r] << 8u * r) : 0;
    }
    return f;
}

SF_INLINE uint32_t live_groups(uint32_t left) {
    return left < 4u * SF_GROUP ? left / SF_GROUP : 4u;
}
SF_INLINE __mmask64 live_bytes(uint32_t live) {
    return UINT64_MAX >> (64u - 16u * live);
}

void sf_x86_vnni_axpy_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                         int32_t *isum) {
    const fours f = in_fours(col, h, n);
    for (uint32_t j = 0; j < dim; j += 4u * SF_GROUP) {
        const uint32_t live = live_groups(dim - j);
        const __mmask64 bytes = live_bytes(live);
        sums s = no_sums();
        __m512i out[4];
        for (uint32_t r = 0; r < f.whole; r += 4u) {
            add_four(col + r, j / 2u, bytes, (int32_t)sf_load32((const uint8_t *)h + r), &s);
        }
        if (f.more) {
            add_four(f.last, j / 2u, bytes, f.of_last, &s);
        }
        for (uint32_t half = 0; half < 2u; half++) {
            by_output(&s, half > 0, out);
            for (uint32_t i = 0; i < live; i++) {
                int32_t *to = isum + j + SF_GROUP * i + 16u * half;
                _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), out[i]));
            }
        }
    }
}

/* What the sums of a block are multiplied with. */
typedef struct {
    const uint8_t *scales;
    __m128i shift;
    __m512i total;
} block;

SF_INLINE block block_of(const uint8_t *scales, uint32_t k, int32_t sum) {
    return (block){scales, _mm_cvtsi32_si128((int32_t)k), _mm512_set1_epi64(sum)};
}

/* acc[0..7] += the sums of outputs from j on, scaled. Scales lie in the lower words of 64 bits,
 * minima above them. */
SF_INLINE void add_eight(const block *b, uint32_t j, __m256i sum, int64_t *acc) {
    const __m512i dm = sf_halves16(sf_load256(b->scales + 4u * j));
    const __m512i s = _mm512_sll_epi64(_mm512_cvtepi32_epi64(sum), b->shift);
    const __m512i all = _mm512_add_epi64(_mm512_mul_epi32(s, dm),
                                         _mm512_mul_epi32(b->total, _mm512_srli_epi64(dm, 32)));
    _mm512_storeu_si512(acc + j, _mm512_add_epi64(_mm512_loadu_si512(acc + j), all));
}
/* The same of sixteen. */
SF_INLINE void add_scaled(const block *b, uint32_t j, __m512i sum, int64_t *acc) {
    add_eight(b, j, _mm512_castsi512_si256(sum), acc);
    add_eight(b, j + 8u, _mm512_extracti64x4_epi64(sum, 1), acc);
}

void sf_x86_vnni_scale_q4(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim,
                          int32_t *isum, int64_t *acc) {
    const block b = block_of(scales, k, sum);
    for (uint32_t j = 0; j < dim; j += 16u) {
        add_scaled(&b, j, _mm512_loadu_si512(isum + j), acc);
        _mm512_storeu_si512(isum + j, _mm512_setzero_si512());
    }
}

void sf_x86_vnni_floats(const int64_t *acc, uint32_t n, int32_t s, float *out) {
    const __m256 scale = _mm256_set1_ps(sf_pow2(-(24 + SF_SHIFT_SPAN + s)));
    for (uint32_t j = 0; j < n; j += 8u) {
        const __mmask8 live = (__mmask8)(n - j < 8u ? (1u << (n - j)) - 1u : 0xFFu);
        const __m256 f = _mm512_cvtepi64_ps(_mm512_loadu_si512(acc + j));
        _mm256_mask_storeu_ps(out + j, live, _mm256_mul_ps(f, scale));
    }
}

/* Outputs of `live` groups from j on. The same line of each later column is asked for between the
 * columns at hand, `some` of them at a time, since processors forget some of what they are asked
 * for at once; a line of the later scales beside each line of these. */
SF_INLINE void groups_of_block(const sf_block *b, const fours *f, const block *of, uint32_t some,
                               uint32_t j, uint32_t live, int64_t *acc) {
    const __mmask64 bytes = live_bytes(live);
    uint32_t asked = 0;
    sums s = no_sums();
    __m512i out[4];
    for (uint32_t r = 0; r < f->whole; r += 4u) {
        for (uint32_t i = 0; i < some && asked < b->laters; i++) {
            sf_ask_line(b->later[asked++] + j / 2u);
        }
        add_four(f->col + r, j / 2u, bytes, (int32_t)sf_load32((const uint8_t *)f->h + r), &s);
    }
    while (asked < b->laters) {
        sf_ask_line(b->later[asked++] + j / 2u);
    }
    if (f->more) {
        add_four(f->last, j / 2u, bytes, f->of_last, &s);
    }
    for (uint32_t half = 0; half < 2u; half++) {
        by_output(&s, half > 0, out);
        for (uint32_t i = 0; i < live; i++) {
            const uint32_t at = j + SF_GROUP * i + 16u * half;
            sf_ask_line(b->later_scales + 4u * at);
            add_scaled(of, at, out[i], acc);
        }
    }
}

void sf_x86_vnni_block_q4(const sf_block *b, uint32_t dim, int64_t *acc) {
    const fours f = in_fours(b->col, b->h, b->n);
    const block of = block_of(b->scales, b->k, b->sum);
    const uint32_t some = b->laters * 4u / (b->n + 1u) + 1u;
    uint32_t j = 0;
    for (; j + 4u * SF_GROUP <= dim; j += 4u * SF_GROUP) {
        groups_of_block(b, &f, &of, some, j, 4, acc);
    }
    if (j < dim) {
        groups_of_block(b, &f, &of, some, j, live_groups(dim - j), acc);
    }
    sf_ask_last_lines(b, dim);
}
