/* Kernels: integer sums, elementwise floats. docs/SPEC.md, section "Numbers", defines each. */
#ifndef SF_KERNELS_H
#define SF_KERNELS_H

#include <stdint.h>
#include <string.h>

/* The tier of cores without 64-bit products and with floats in software: kernels/armv6m.h. */
#if defined(__ARM_ARCH_6M__) && !defined(SF_PLAIN)
#define SF_ARMV6M 1
#endif

#define SF_GROUP 32u /* elements that share a scale */
/* Most rows a kernel takes at once; it prepares the activations for them. */
#if defined(__ARM_FEATURE_DSP)
#define SF_TILE 128u
#elif defined(SF_ARMV6M)
#define SF_TILE 32u
#else
#define SF_TILE 16u
#endif
#define SF_SHIFT_SPAN 12 /* widest distance between group exponents of a vector */
#define SF_S_MIN (-40)   /* activation exponents are kept in this range, */
#define SF_S_MAX 80      /* so that every power of two below is a normal float */

/* An activation vector: element i of group g is q[32*g + i] * 2^-(s + span - k[g]). */
typedef struct {
    int8_t *q;    /* [groups*32], zero padded */
    int32_t *sum; /* [groups] sum of q << k */
    uint8_t *k;   /* [groups] left shift that aligns the group, 0..SF_SHIFT_SPAN */
    uint32_t groups;
    int32_t s; /* smallest exponent of a non-zero group */
} sf_bfp;

#ifdef __GNUC__
#define SF_ALIGNED(p, n) __builtin_assume_aligned((p), (n))
#else
#define SF_ALIGNED(p, n) (p)
#endif

static inline uint32_t sf_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline float sf_from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
/* 2^e for -126 <= e <= 127. */
static inline float sf_pow2(int32_t e) {
    return sf_from_bits((uint32_t)(e + 127) << 23);
}
/* Nearest integer, ties to even, |x| < 2^22. */
static inline int32_t sf_rint(float x) {
    return (int32_t)(sf_bits(x + 12582912.0f) - 0x4B400000u);
}
/* Exact value of a half in units of 2^-24, |half| < 64. */
static inline int32_t sf_half(uint32_t h) {
    const uint32_t e = (h >> 10) & 31u;
    const uint32_t m = h & 0x3FFu;
    const int32_t v = (int32_t)(e ? (m | 0x400u) << (e - 1u) : m);
    return (h & 0x8000u) ? -v : v;
}
/* Rows and tables begin at whole words, so these are aligned. */
static inline uint32_t sf_load32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, SF_ALIGNED(p, 4), sizeof v);
    return v;
}
static inline uint32_t sf_load16(const uint8_t *p) {
    uint16_t v;
    memcpy(&v, SF_ALIGNED(p, 2), sizeof v);
    return v;
}

/* x [n] -> v, groups of 32. */
void sf_quantize(const float *x, uint32_t n, sf_bfp *v);
/* x [n] -> q [n] with one exponent; returns s: x ~ q * 2^-s. bits: 8 or 16. */
int32_t sf_quantize16(const float *x, uint32_t n, int16_t *q);
int32_t sf_quantize8(const float *x, uint32_t n, int8_t *q);

/* out[r] = row[r] . x for n <= SF_TILE rows of x->groups*32 weights. */
void sf_dot_q4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out);
void sf_dot_q8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out);
/* 8-bit rows with one scale. */
void sf_dot_r8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out);
/* Symmetric 4-bit rows whose scales follow them. */
void sf_dot_s4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out);
/* The same for proxy rows of 1 to 4 bits a weight. */
void sf_dot_proxy(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                  float *out);
/* out[r] = how many of the signs of row r (a bit set below zero) are those of sign [groups] words.
 */
void sf_dot_signs(const uint8_t *const *row, uint32_t n, const uint32_t *sign, uint32_t groups,
                  float *out);
/* isum[j] += sum_r h[r] * col[r][j] for n <= SF_GROUP columns of dim weights. */
void sf_axpy_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                int32_t *isum);
void sf_axpy_q8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                int32_t *isum);
/* acc[j] += (isum[j] << k) * d[j] + sum * m[j]; scales as in the image; clears isum. */
void sf_scale_q4(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                 int64_t *acc);
void sf_scale_q8(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                 int64_t *acc);
/* acc[j] += (sum_r h[r] * col[r][j]) << k for n <= SF_GROUP columns of dim weights of r8. */
void sf_axpy_r8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim, uint32_t k,
                int64_t *acc);
/* What a group of a column of s4 is multiplied by, |result| < 2^15: the activation a times the
 * scale in units of 2^(shift - 24), rounded; shift >= 1 is the matrix's. */
static inline int32_t sf_s4_factor(int32_t a, uint32_t half, uint32_t shift) {
    const int64_t product = (int64_t)a * sf_half(half);
    return (int32_t)((product + ((int64_t)1 << (shift - 1u))) >> shift);
}
/* acc[j] += sum_r factor(a[r], scale) * q of col[r][j] for n <= SF_TILE columns of dim weights of
 * s4; a is an activation with its shift, q << k. */
void sf_axpy_s4(const uint8_t *const *col, const int32_t *a, uint32_t n, uint32_t dim,
                uint32_t shift, int32_t *acc);
/* Its sums as floats; s is the activation's. */
static inline float sf_s4_to_float(int32_t acc, uint32_t shift, int32_t s) {
    return (float)acc * sf_pow2((int32_t)shift - (24 + SF_SHIFT_SPAN + s));
}
/* An accumulated sum as a float; s is the activation's. */
#ifdef SF_ARMV6M
float sf_sum_to_float(int64_t acc, int32_t s);
#else
static inline float sf_sum_to_float(int64_t acc, int32_t s) {
#if defined(__ARM_FEATURE_FMA) && !defined(SF_PLAIN) /* tests compare with plain C */
    /* 24 bits above and 24 below are exact, and a fused product rounds once. */
    const uint32_t high = (uint32_t)(acc >> 32);
    if (high + 0x8000u < 0x10000u) {
        const float below = (float)((uint32_t)acc & 0xFFFFFFu);
        return __builtin_fmaf((float)(int32_t)(acc >> 24), 16777216.0f, below) *
               sf_pow2(-(24 + SF_SHIFT_SPAN + s));
    }
#endif
    return (float)acc * sf_pow2(-(24 + SF_SHIFT_SPAN + s));
}
#endif
/* The same of r8, without the scale of its row. */
static inline float sf_row_sum_to_float(int64_t acc, int32_t s) {
    return sf_sum_to_float(acc, s - 24);
}
/* A sum below 2^63 as a float, and back, truncated; neither needs a conversion by doubles. */
static inline float sf_whole(uint64_t sum) {
    return sf_sum_to_float((int64_t)sum, -(24 + SF_SHIFT_SPAN));
}
static inline uint64_t sf_truncate(float x) {
    const uint32_t e = sf_bits(x) >> 23;
    const uint64_t m = (sf_bits(x) & 0x007FFFFFu) | 0x00800000u;
    return e < 127u ? 0u : (e < 150u ? m >> (150u - e) : m << (e - 150u));
}
/* The rows largest of x [n], n <= 65536, the least index first among equals: their indices,
 * ascending, in pick [rows]. */
void sf_pick_largest(const float *x, uint32_t n, uint32_t rows, uint16_t *pick);
/* One row as floats: x [dim]. */
void sf_row_q4(const uint8_t *row, uint32_t dim, float *x);
void sf_row_q8(const uint8_t *row, uint32_t dim, float *x);
void sf_row_r8(const uint8_t *row, uint32_t dim, float *x);
void sf_row_s4(const uint8_t *row, uint32_t dim, float *x);

float sf_sqrt(float x);
/* out = x / rms(x) * w; scratch [n]. out may be x. */
void sf_rmsnorm(const float *x, const float *w, uint32_t n, float eps, float *out);

/* 2^-(x/65536) = m * 2^-(16+e): returns m in (32768, 65536], *e = x >> 16. */
static inline uint32_t sf_exp2n(uint32_t x, uint32_t *e) {
    const uint32_t f = x & 0xFFFFu;
    uint32_t t = 3498u - ((f * 453u) >> 16);
    t = 15699u - ((f * t) >> 16);
    t = 45422u - ((f * t) >> 16);
    *e = x >> 16;
    return 65536u - ((f * t) >> 16);
}
float sf_sigmoid(float x);
/* Elementwise x [n] -> out [n]; out may be x. */
void sf_silu(const float *x, uint32_t n, float *out);
void sf_gelu_tanh(const float *x, uint32_t n, float *out);
void sf_relu(const float *x, uint32_t n, float *out);
/* a [n] times b; a [n] plus b. */
void sf_multiply(float *a, const float *b, uint32_t n);
void sf_add(float *a, const float *b, uint32_t n);

/* cos and sin of pos * inc * 2pi / 2^32 for each pair: cs [half][2]. */
void sf_rope_angles(const uint32_t *inc, uint32_t half, uint32_t pos, float *cs);
/* Rotates one head [2*half] in place, half-split pairs. */
void sf_rope(float *head, const float *cs, uint32_t half);

/* Query heads that share one head of keys and values, over positions first..last of a cache with
 * the given stride. */
typedef struct {
    const int8_t *k;  /* [kv_len][stride] */
    const int8_t *v;  /* [kv_len][stride] */
    const int8_t *ks; /* [kv_len][estride] exponents */
    const int8_t *vs; /* [kv_len][estride] */
    uint32_t stride, estride;
    uint32_t first, last; /* inclusive */
    uint32_t head_dim;
    int32_t k_least, v_least; /* exponents; none of ks and vs is less */
    float scale;              /* score scale * log2(e) */
} sf_attn;
/* q [heads][head_dim], out the same; scratch: q16 [2][head_dim], score [2][kv_len, even],
 * acc [2][head_dim]. */
void sf_attention(const sf_attn *a, uint32_t heads, const float *q, int16_t *q16, int32_t *score,
                  int32_t *acc, float *out);

#endif
