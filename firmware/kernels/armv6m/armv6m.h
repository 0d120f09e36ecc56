/* What the kernels of Armv6-M (Cortex-M0, M0+) share. It has no 64-bit multiply, no count of
 * leading zeros, no unaligned loads and floats in software. So: weights come in whole words,
 * products have at most 32 bits, powers of two are shifts, conversions work on the bits of a float.
 */
#ifndef SF_ARMV6M_H
#define SF_ARMV6M_H

#include "sf_kernels.h"

/* The square root, rounded as the standard says. */
float sf_sqrt(float x);

/* In loops_v6m.S; all pointers are to whole words. */

/* n signed bytes as words; n a multiple of 4, not 0, here and below. */
void sf_v6m_widen(const int8_t *q, uint32_t n, int32_t *out);
/* Sum of w[i] * x[i] for n signed bytes. */
int32_t sf_v6m_dot8(const void *w, const int32_t *x, uint32_t n);
/* 32 bytes as the pairs of activations that nibbles are multiplied with. */
void sf_v6m_pairs(const int8_t *q, int32_t *pairs);
/* Some groups of activations, and where the weights and scales of the first lie in a row. A group
 * is 32 words, or 16 pairs; then 32 - k; for nibbles also the sum of its activations, of s4 minus
 * eight times that. */
typedef struct {
    const int32_t *x, *end;
    uint32_t at, scales;
} sf_v6m_part;
/* acc[r] += what sf_dot_q8, sf_dot_q4 and sf_dot_s4 sum up over those groups of row[r]. */
void sf_v6m_rows8(const uint8_t *const *row, int64_t *acc, const sf_v6m_part *part, uint32_t n);
void sf_v6m_rows4(const uint8_t *const *row, int64_t *acc, const sf_v6m_part *part, uint32_t n);
void sf_v6m_rows_s4(const uint8_t *const *row, int64_t *acc, const sf_v6m_part *part, uint32_t n);
/* acc[j] += isum[j] * scale of row j, as in sf_scale_q8 and sf_scale_q4; clears isum. */
void sf_v6m_columns8(int64_t *acc, int32_t *isum, const uint8_t *scales, const uint8_t *end,
                     uint32_t from_32);
void sf_v6m_columns4(int64_t *acc, int32_t *isum, const uint8_t *scales, const uint8_t *end,
                     uint32_t from_32, int32_t sum);
/* y[0..3] += sum over r < n of h[r] times the four signed bytes at col[r] + at. */
void sf_v6m_axpy8(const uint8_t *const *col, const int32_t *h, uint32_t n, uint32_t at, int32_t *y);
/* y[0..3] += the low nibbles, y[16..19] += the high ones; n <= 16. */
void sf_v6m_axpy4(const uint8_t *const *col, const int32_t *h, uint32_t n, uint32_t at, int32_t *y);
/* The same for any n > 0 and factors of 16 bits; each sum begins with `first`. */
void sf_v6m_axpy_s4(const uint8_t *const *col, const int32_t *t, uint32_t n, uint32_t at,
                    int32_t *y, int32_t first);
/* y[0..3] += sum over t < n of c[t] times the four signed bytes at v + t * stride. */
void sf_v6m_mix(const int8_t *v, uint32_t stride, const int32_t *c, uint32_t n, int32_t *y);

/* v * 2^e, rounded as a conversion of v is; the result is a normal float or 0. */
static inline float sf_v6m_float(int64_t v, int32_t e) {
    return sf_sum_to_float(v, -(24 + SF_SHIFT_SPAN) - e);
}

/* Magnitude of the float with these bits, times 2^(150 - base), as the nearest integer, ties to
 * even. 0xFFFF from 2^17 on. */
static inline int32_t sf_v6m_round(uint32_t bits, int32_t base) {
    const int32_t down = base - (int32_t)(bits << 1 >> 24);
    const uint32_t m = (bits << 9 >> 9) | 0x00800000u;
    if (down > 24) {
        return 0;
    }
    if (down < 7) {
        return 0xFFFF;
    }
    const uint32_t whole = m >> down;
    return (int32_t)(whole + ((m << (32 - down)) + (whole & 1u) > 0x80000000u ? 1u : 0u));
}

/* The same with its sign, at most limit. */
static inline int32_t sf_v6m_quantize(float x, int32_t base, int32_t limit) {
    const uint32_t bits = sf_bits(x);
    int32_t v = sf_v6m_round(bits, base);
    v = v > limit ? limit : v;
    return (bits >> 31) != 0 ? -v : v;
}

/* Integer part of a float that is not negative and below 2^24. */
static inline uint32_t sf_v6m_truncate(uint32_t bits) {
    const uint32_t e = bits >> 23;
    return e < 127u ? 0u : ((bits << 9 >> 9) | 0x00800000u) >> (150u - e);
}

#endif
