/* Shared by the AVX2 tier. Sums are exact integers, so they equal plain C bit for bit. */
#ifndef SF_X86_AVX2_H
#define SF_X86_AVX2_H

#include "sf_kernels.h"
#include "x86_avx2/has.h"

#include <immintrin.h>

SF_X86_AVX2_HAS(SF_DECLARE)

#define SF_INLINE static inline __attribute__((always_inline))

SF_INLINE __m256i sf_load256(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}
SF_INLINE __m128i sf_load128(const void *p) {
    return _mm_loadu_si128((const __m128i *)p);
}
SF_INLINE __m128i sf_load64(const void *p) {
    return _mm_loadl_epi64((const __m128i *)p);
}
SF_INLINE void sf_store256(void *p, __m256i v) {
    _mm256_storeu_si256((__m256i *)p, v);
}
SF_INLINE void sf_add8(int32_t *y, __m256i v) {
    sf_store256(y, _mm256_add_epi32(sf_load256(y), v));
}
/* Eight halves in units of 2^-24: 24 is added to their exponents, and 0 stays below half a unit. */
SF_INLINE __m256i sf_halves8(__m128i h) {
    const __m256i f = _mm256_castps_si256(_mm256_cvtph_ps(h));
    return _mm256_cvtps_epi32(
        _mm256_castsi256_ps(_mm256_add_epi32(f, _mm256_set1_epi32(24 << 23))));
}
SF_INLINE int32_t sf_one_half(const uint8_t *p) {
    return _mm_cvtsi128_si32(
        _mm256_castsi256_si128(sf_halves8(_mm_cvtsi32_si128((int32_t)sf_load16(p)))));
}
SF_INLINE __m256i sf_low4(__m256i bytes) {
    return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
}
SF_INLINE __m256i sf_high4(__m256i bytes) {
    return _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15));
}
/* Eight sums of the products of unsigned u < 128 and signed x, four each. */
SF_INLINE __m256i sf_products(__m256i u, __m256i x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(u, x), _mm256_set1_epi16(1));
}
/* The same for signed bytes: the sign of w goes to x, which is not -128. */
SF_INLINE __m256i sf_signed_products(__m256i w, __m256i x) {
    return sf_products(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}
/* Eight sums of 32 bits, added to four of 64. */
SF_INLINE __m256i sf_add_wide(__m256i acc, __m256i s) {
    acc = _mm256_add_epi64(acc, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(s)));
    return _mm256_add_epi64(acc, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(s, 1)));
}
SF_INLINE int64_t sf_total64(__m256i acc) {
    const __m128i s = _mm_add_epi64(_mm256_castsi256_si128(acc), _mm256_extracti128_si256(acc, 1));
    return _mm_cvtsi128_si64(_mm_add_epi64(s, _mm_unpackhi_epi64(s, s)));
}
SF_INLINE int32_t sf_total32(__m256i acc) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(acc), _mm256_extracti128_si256(acc, 1));
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 1)));
}
/* Asks for the line of a byte. */
SF_INLINE void sf_ask_line(const void *at) {
    _mm_prefetch(at, _MM_HINT_T1);
}
/* Memory is slower than the kernels, so they ask ahead for what lies behind n rows at equal
 * distances, and has their size. Rows of a list are asked for when their tile is made; 0 asks for
 * nothing new. Rows that go down in memory, or lie in two places, have nothing behind them. */
#define SF_NEIGHBOURS 65536u
SF_INLINE uintptr_t sf_behind(const uint8_t *const *row, uint32_t n) {
    if (n < 2u) {
        return 0u;
    }
    const uintptr_t stride = (uintptr_t)row[1] - (uintptr_t)row[0];
    const uintptr_t all = (uintptr_t)row[n - 1u] - (uintptr_t)row[0];
    return stride < SF_NEIGHBOURS && all == (n - 1u) * stride ? n * stride : 0u;
}
/* What a kernel that goes row by row asks for with each of them: as much of the row n behind it, a
 * part with each block of so many bytes. A part ends a line later, for rows end with groups of no
 * block. */
typedef struct {
    uintptr_t behind;
    uint32_t part; /* bytes */
} sf_row_asks;
SF_INLINE sf_row_asks sf_asks_by_row(const uint8_t *const *row, uint32_t n, uint32_t bytes,
                                     uint32_t parts) {
    return (sf_row_asks){sf_behind(row, n), bytes / parts};
}
SF_INLINE void sf_ask_behind(const sf_row_asks *a, const uint8_t *row, uint32_t part,
                             uint32_t block) {
    const uintptr_t at = (uintptr_t)row + a->behind + part * a->part;
    for (uint32_t i = 0; a->behind > 0u && i < block + 64u; i += 64u) {
        sf_ask_line((const void *)(at + i));
    }
}
/* What a kernel asks for, in the order of memory, a share of its bytes with each of its steps; into
 * the second cache, for the first has no room for the rows at hand and those behind them. A thread
 * that works on a part of each row asks for that part. */
typedef struct {
    uintptr_t at, end, share;
    uintptr_t stop, stride, skip; /* the end of a part, and the way to the next */
} sf_next;
/* A step reads at most half a KiB of weights: rows that are farther apart are no neighbours.
 */
#define SF_SHARE 2048u

/* What lies behind n rows, for so many steps: so many bytes of each, or 0 for whole rows. */
SF_INLINE sf_next sf_rows_behind(const uint8_t *const *row, uint32_t n, uint32_t bytes,
                                 uint32_t steps) {
    const uintptr_t behind = sf_behind(row, n);
    if (behind == 0u) {
        return (sf_next){0};
    }
    const uintptr_t at = (uintptr_t)row[0] + behind, stride = behind / n;
    if (bytes == 0u || stride < bytes + 64u) {
        const uintptr_t share = behind / steps + 1u;
        return share < SF_SHARE ? (sf_next){at, at, share, UINTPTR_MAX, 0, 0} : (sf_next){0};
    }
    const uintptr_t share = (uintptr_t)n * bytes / steps + 1u;
    return (sf_next){at, at, share, at + bytes, stride, stride - bytes};
}
SF_INLINE void sf_ask(sf_next *next) {
    for (next->end += next->share; next->at < next->end; next->at += 64u) {
        sf_ask_line((const void *)next->at);
        if (next->at + 64u >= next->stop) {
            next->at = next->stop + next->skip - 64u;
            next->end += next->skip;
            next->stop += next->stride;
        }
    }
}

/* The last lines of later columns of a block: the steps of a kernel end before them. */
SF_INLINE void sf_ask_last_lines(const sf_block *b, uint32_t dim) {
    for (uint32_t i = 0; i < b->laters; i++) {
        sf_ask_line(b->later[i] + dim / 2u - 1u);
    }
}

#endif
