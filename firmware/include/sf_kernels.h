/* Kernels: integer sums, elementwise floats. docs/SPEC.md, section "Numbers", defines each. */
#ifndef SF_KERNELS_H
#define SF_KERNELS_H

#include <float.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "tier.h" /* of the folder of kernels that this program is built with */

/* An x87 unit keeps more bits of a result than a float has. */
_Static_assert(FLT_EVAL_METHOD == 0, "other bits: on 32-bit x86 compile with -msse2 -mfpmath=sse");

#define SF_GROUP 32u     /* elements that share a scale */
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
/* Limits that a model was trained with: the bits of a float for all, and a byte for each to add. */
typedef struct {
    uint32_t base;
    const uint8_t *code; /* NULL: there are none, and all is kept */
} sf_limits;
static inline sf_limits sf_limits_at(const float *words) {
    return (sf_limits){sf_bits(words[0]), (const uint8_t *)(const void *)(words + 1)};
}
/* |v| >= limit i for numbers. */
static inline bool sf_reaches(float v, sf_limits limits, uint32_t i) {
    return sf_bits(v) << 1 >= (limits.base + ((uint32_t)limits.code[i] << 18)) << 1;
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

/* An accumulated sum as a float; s is the activation's. */
static inline float sf_plain_sum_to_float(int64_t acc, int32_t s) {
    return (float)acc * sf_pow2(-(24 + SF_SHIFT_SPAN + s));
}
#ifdef SF_TIER_SUM_TO_FLOAT
float sf_sum_to_float(int64_t acc, int32_t s);
#else
static inline float sf_sum_to_float(int64_t acc, int32_t s) {
#if defined(__ARM_FEATURE_FMA) && !defined(__aarch64__) /* one instruction converts there */
    /* 24 bits above and 24 below are exact, and a fused product rounds once. */
    const uint32_t high = (uint32_t)(acc >> 32);
    if (high + 0x8000u < 0x10000u) {
        const float below = (float)((uint32_t)acc & 0xFFFFFFu);
        return __builtin_fmaf((float)(int32_t)(acc >> 24), 16777216.0f, below) *
               sf_pow2(-(24 + SF_SHIFT_SPAN + s));
    }
#endif
    return sf_plain_sum_to_float(acc, s);
}
#endif
/* The same of r8, without the scale of its row. */
static inline float sf_row_sum_to_float(int64_t acc, int32_t s) {
    return sf_sum_to_float(acc, s - 24);
}
/* What a group of a column of s4 is multiplied by, |result| < 2^15: the activation a, |a| < 2^20,
 * times the scale in units of 2^(shift - 24), rounded. The scale is a mantissa times a power of
 * two, so the product has 31 bits. shift >= 1 is the matrix's: its scales are below 2^(shift - 28).
 */
static inline int32_t sf_s4_factor(int32_t a, uint32_t half, uint32_t shift) {
    const uint32_t e = (half >> 10) & 31u, m = half & 0x3FFu;
    const int32_t d = (int32_t)(e ? m | 0x400u : m);
    const uint32_t down = shift - (e ? e - 1u : 0u);
    const int32_t product = a * ((half & 0x8000u) ? -d : d);
    return down > 31u ? 0 : (product + (int32_t)(1u << (down - 1u))) >> down;
}
/* Its sums as floats; s is the activation's. */
static inline float sf_s4_to_float(int32_t acc, uint32_t shift, int32_t s) {
    return (float)acc * sf_pow2((int32_t)shift - (24 + SF_SHIFT_SPAN + s));
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
/* How far the values of a norm are scaled up before they are rounded, from the bits of the largest
 * magnitude. */
static inline int32_t sf_norm_exponent(uint32_t top) {
    const int32_t s = 14 - ((int32_t)(top >> 23) - 127);
    return s < SF_S_MIN ? SF_S_MIN : (s > 60 ? 60 : s);
}

/* 2^-(x/65536) = m * 2^-(16+e): returns m in (32768, 65536], *e = x >> 16. */
static inline uint32_t sf_exp2n(uint32_t x, uint32_t *e) {
    const uint32_t f = x & 0xFFFFu;
    uint32_t t = 3498u - ((f * 453u) >> 16);
    t = 15699u - ((f * t) >> 16);
    t = 45422u - ((f * t) >> 16);
    *e = x >> 16;
    return 65536u - ((f * t) >> 16);
}
/* Columns of one block of inputs, n <= SF_GROUP of them with their activations h, and the scales of
 * the block. Meanwhile the kernel asks for `later` columns of the same size and for scales. */
typedef struct {
    const uint8_t *const *col;
    const int8_t *h;
    uint32_t n;
    const uint8_t *scales;
    uint32_t k;  /* the block's shift, */
    int32_t sum; /* and sum of activations, shifted */
    const uint8_t *const *later;
    uint32_t laters; /* <= SF_GROUP */
    const uint8_t *later_scales;
} sf_block;

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

/* Every kernel; a tier has some of them, and what it lacks is that of plain C, to the same bits. */
typedef struct {
    /* x [n] -> v, groups of 32. */
    void (*quantize)(const float *x, uint32_t n, sf_bfp *v);
    /* x [n] -> q [n] with one exponent; returns s: x ~ q * 2^-s. */
    int32_t (*quantize16)(const float *x, uint32_t n, int16_t *q);
    int32_t (*quantize8)(const float *x, uint32_t n, int8_t *q);

    /* out[r] = row[r] . x for n <= SF_TILE rows of x->groups*32 weights. */
    void (*dot_q4)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out);
    void (*dot_q8)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out);
    void (*dot_r8)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out);
    void (*dot_s4)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out);
    /* The same for two vectors of equal length, x[0] and x[1]: out[0][r] and out[1][r]. */
    void (*dot2_q4)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *const *out);
    void (*dot2_q8)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *const *out);
    void (*dot2_s4)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *const *out);
    /* dot for proxy rows of 1 to 4 bits a weight. */
    void (*dot_proxy)(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                      float *out);
    /* out[r] = how many of the signs of row r (a bit set below zero) are those of sign [groups]
     * words. */
    void (*dot_signs)(const uint8_t *const *row, uint32_t n, const uint32_t *sign, uint32_t groups,
                      float *out);
    /* isum[j] += sum_r h[r] * col[r][j] for n <= SF_GROUP columns of dim weights. */
    void (*axpy_q4)(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                    int32_t *isum);
    void (*axpy_q8)(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                    int32_t *isum);
    /* acc[j] += (sum_r h[r] * col[r][j]) << k; the scales of r8 are those of outputs. */
    void (*axpy_r8)(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                    uint32_t k, int64_t *acc);
    /* acc[j] += sum_r factor(a[r], scale) * q of col[r][j] for n <= SF_OWN columns of dim weights
     * of s4 (sf_s4_factor); a is an activation with its shift, q << k, |q| <= 127. */
    void (*axpy_s4)(const uint8_t *const *col, const int32_t *a, uint32_t n, uint32_t dim,
                    uint32_t shift, int32_t *acc);
    /* acc[j] += (isum[j] << k) * d[j] + sum * m[j]; scales as in the image; clears isum. */
    void (*scale_q4)(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                     int64_t *acc);
    void (*scale_q8)(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                     int64_t *acc);
    /* Both for all columns of a block that an input asks for; NULL where the two are as fast. */
    void (*block_q4)(const sf_block *b, uint32_t dim, int64_t *acc);
    /* out [n] = n sums as floats, sf_sum_to_float; acc has whole groups. */
    void (*floats)(const int64_t *acc, uint32_t n, int32_t s, float *out);

    /* The rows largest of x [n], n <= 65536, the least index first among equals: their indices,
     * ascending, in pick [rows]. */
    void (*pick_largest)(const float *x, uint32_t n, uint32_t rows, uint16_t *pick);
    /* v [n], n <= 65536, becomes 0 where |v| < limit; returns how many are left, and their indices,
     * ascending, in pick [n]. */
    uint32_t (*keep_reaching)(float *v, uint32_t n, float limit, uint16_t *pick);
    /* One row as floats: x [dim]. */
    void (*row_q4)(const uint8_t *row, uint32_t dim, float *x);
    void (*row_q8)(const uint8_t *row, uint32_t dim, float *x);
    void (*row_r8)(const uint8_t *row, uint32_t dim, float *x);
    void (*row_s4)(const uint8_t *row, uint32_t dim, float *x);

    /* out = x / rms(x) * w; out may be x. */
    void (*rmsnorm)(const float *x, const float *w, uint32_t n, float eps, float *out);
    /* out = (x - mean) / standard deviation * w + b; n < 2^16; out may be x. */
    void (*layernorm)(const float *x, const float *w, const float *b, uint32_t n, float eps,
                      float *out);
    float (*sigmoid)(float x);
    /* Elementwise x [n] -> out [n]; out may be x. */
    void (*silu)(const float *x, uint32_t n, float *out);
    void (*gelu_tanh)(const float *x, uint32_t n, float *out);
    void (*gelu)(const float *x, uint32_t n, float *out);
    void (*relu)(const float *x, uint32_t n, float *out);
    /* a [n] times b; a [n] plus b. */
    void (*multiply)(float *a, const float *b, uint32_t n);
    void (*add)(float *a, const float *b, uint32_t n);
    /* cos and sin of pos * inc * 2pi / 2^32 for each pair: cs [half][2]. */
    void (*rope_angles)(const uint32_t *inc, uint32_t half, uint32_t pos, float *cs);
    /* Rotates one head [2*half] in place, half-split pairs. */
    void (*rope)(float *head, const float *cs, uint32_t half);
    /* q [heads][head_dim], out the same; scratch: q16 [2][head_dim], score [2][kv_len, even],
     * acc [2][head_dim]. */
    void (*attention)(const sf_attn *a, uint32_t heads, const float *q, int16_t *q16,
                      int32_t *score, int32_t *acc, float *out);
} sf_kernels;

/* All of them, for plain C has each. */
#define SF_PLAIN_HAS(X)                                                                            \
    X(plain, quantize)                                                                             \
    X(plain, quantize16)                                                                           \
    X(plain, quantize8)                                                                            \
    X(plain, dot_q4)                                                                               \
    X(plain, dot_q8)                                                                               \
    X(plain, dot_r8)                                                                               \
    X(plain, dot_s4)                                                                               \
    X(plain, dot2_q4)                                                                              \
    X(plain, dot2_q8)                                                                              \
    X(plain, dot2_s4)                                                                              \
    X(plain, dot_proxy)                                                                            \
    X(plain, dot_signs)                                                                            \
    X(plain, axpy_q4)                                                                              \
    X(plain, axpy_q8)                                                                              \
    X(plain, axpy_r8)                                                                              \
    X(plain, axpy_s4)                                                                              \
    X(plain, scale_q4)                                                                             \
    X(plain, scale_q8)                                                                             \
    X(plain, floats)                                                                               \
    X(plain, pick_largest)                                                                         \
    X(plain, keep_reaching)                                                                        \
    X(plain, row_q4)                                                                               \
    X(plain, row_q8)                                                                               \
    X(plain, row_r8)                                                                               \
    X(plain, row_s4)                                                                               \
    X(plain, rmsnorm)                                                                              \
    X(plain, layernorm)                                                                            \
    X(plain, sigmoid)                                                                              \
    X(plain, silu)                                                                                 \
    X(plain, gelu_tanh)                                                                            \
    X(plain, gelu)                                                                                 \
    X(plain, relu)                                                                                 \
    X(plain, multiply)                                                                             \
    X(plain, add)                                                                                  \
    X(plain, rope_angles)                                                                          \
    X(plain, rope)                                                                                 \
    X(plain, attention)

/* From a list of kernels their declarations, or a table of them: later entries replace earlier. */
#define SF_DECLARE(tier, kernel) __typeof__(*((const sf_kernels *)0)->kernel) sf_##tier##_##kernel;
#define SF_ENTRY(tier, kernel) .kernel = sf_##tier##_##kernel,

SF_PLAIN_HAS(SF_DECLARE)

#ifdef SF_RUN_TIME_TIERS
/* The kernels that this program uses: until sf_choose_tier those of plain C. */
extern sf_kernels sf_tier;

/* Takes the best tier that this CPU runs. */
void sf_choose_tier(void);
/* Takes the tier with this name; false where there is none or this CPU lacks what it needs. */
bool sf_use_tier(const char *name);
/* Name of tier i, from plain C up; NULL behind the last. */
const char *sf_tier_name(uint32_t i);
#else
/* The compiler knows every entry, so that calls are direct and tables take no memory. */
SF_TIER_HAS(SF_DECLARE)
#pragma GCC diagnostic push
#ifdef __clang__
#pragma GCC diagnostic ignored "-Winitializer-overrides"
#else
#pragma GCC diagnostic ignored "-Woverride-init"
#endif
static const sf_kernels sf_tier = {SF_PLAIN_HAS(SF_ENTRY) SF_TIER_HAS(SF_ENTRY)};
#pragma GCC diagnostic pop

static inline void sf_choose_tier(void) {
}
#endif

#define sf_quantize sf_tier.quantize
#define sf_quantize16 sf_tier.quantize16
#define sf_quantize8 sf_tier.quantize8
#define sf_dot_q4 sf_tier.dot_q4
#define sf_dot_q8 sf_tier.dot_q8
#define sf_dot_r8 sf_tier.dot_r8
#define sf_dot_s4 sf_tier.dot_s4
#define sf_dot2_q4 sf_tier.dot2_q4
#define sf_dot2_q8 sf_tier.dot2_q8
#define sf_dot2_s4 sf_tier.dot2_s4
#define sf_dot_proxy sf_tier.dot_proxy
#define sf_dot_signs sf_tier.dot_signs
#define sf_axpy_q4 sf_tier.axpy_q4
#define sf_axpy_q8 sf_tier.axpy_q8
#define sf_axpy_r8 sf_tier.axpy_r8
#define sf_axpy_s4 sf_tier.axpy_s4
#define sf_scale_q4 sf_tier.scale_q4
#define sf_scale_q8 sf_tier.scale_q8
#define sf_block_q4 sf_tier.block_q4
#define sf_floats sf_tier.floats
#define sf_pick_largest sf_tier.pick_largest
#define sf_keep_reaching sf_tier.keep_reaching
#define sf_row_q4 sf_tier.row_q4
#define sf_row_q8 sf_tier.row_q8
#define sf_row_r8 sf_tier.row_r8
#define sf_row_s4 sf_tier.row_s4
#define sf_rmsnorm sf_tier.rmsnorm
#define sf_layernorm sf_tier.layernorm
#define sf_sigmoid sf_tier.sigmoid
#define sf_silu sf_tier.silu
#define sf_gelu_tanh sf_tier.gelu_tanh
#define sf_gelu sf_tier.gelu
#define sf_relu sf_tier.relu
#define sf_multiply sf_tier.multiply
#define sf_add sf_tier.add
#define sf_rope_angles sf_tier.rope_angles
#define sf_rope sf_tier.rope
#define sf_attention sf_tier.attention

#endif
