/* Rows times an activation vector with NEON, two groups at a time, for a tier that has nibble_sums
 * and byte_sums (of the products of two groups: two lanes of the first, two of the second),
 * lane_sums (of eight vectors of weights of 0 to 15 that have four groups side by side) and
 * SF_NAME(kernel), its name of a kernel, and whose registers hold ROWS_OF_TWO rows with two tokens.
 */
#include "arm_neon/neon.h"

/* Activations of two groups, in each lane of sums the shift of its group, and their sums. */
typedef struct {
    int8x16x4_t q;
    int32x4_t k; /* the lowest byte shifts */
    int32x2_t sum;
} two_groups;

SF_INLINE two_groups load_two(const sf_bfp *x, size_t g) {
    const uint8_t of[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    uint16_t k;
    memcpy(&k, x->k + g, sizeof k);
    const uint8x16_t both = vreinterpretq_u8_u16(vdupq_n_u16(k));
    return (two_groups){vld1q_s8_x4(x->q + g * SF_GROUP),
                        vreinterpretq_s32_u8(vqtbl1q_u8(both, vld1q_u8(of))), vld1_s32(x->sum + g)};
}

/* The nibbles of two groups. */
SF_INLINE int8x16x4_t nibbles(const uint8_t *p) {
    const uint8x16_t four = vdupq_n_u8(15);
    const uint8x16x2_t w = vld1q_u8_x2(p);
    return (int8x16x4_t){{vreinterpretq_s8_u8(vandq_u8(w.val[0], four)),
                          vreinterpretq_s8_u8(vshrq_n_u8(w.val[0], 4)),
                          vreinterpretq_s8_u8(vandq_u8(w.val[1], four)),
                          vreinterpretq_s8_u8(vshrq_n_u8(w.val[1], 4))}};
}

SF_INLINE int64x2_t add_scaled(int64x2_t acc, int32x4_t sums, int32x4_t d) {
    return vmlal_high_s32(vmlal_s32(acc, vget_low_s32(sums), vget_low_s32(d)), sums, d);
}

/* Two groups of a row: weights, their scale for each lane of sums, and what is times the sums of
 * the activations. */
typedef struct {
    int8x16x4_t w;
    int32x4_t d;
    int32x2_t m;
} two_weights;

SF_INLINE two_weights load_q4(const uint8_t *w, const uint8_t *scales) {
    const int32x4_t dm = sf_halves4(vld1_u8(scales));
    return (two_weights){nibbles(w), vtrn1q_s32(dm, dm), vget_low_s32(vuzp2q_s32(dm, dm))};
}
/* The nibbles are q + 8. */
SF_INLINE two_weights load_s4(const uint8_t *w, const uint8_t *scales) {
    const int32x4_t d = sf_two_halves(scales);
    return (two_weights){nibbles(w), vzip1q_s32(d, d), vget_low_s32(d)};
}
SF_INLINE two_weights load_q8(const uint8_t *w, const uint8_t *scales) {
    const int32x4_t d = sf_two_halves(scales);
    return (two_weights){vld1q_s8_x4((const int8_t *)w), vzip1q_s32(d, d), vdup_n_s32(0)};
}

SF_INLINE int64x2_t add_q4(int64x2_t acc, const two_weights *w, const two_groups *x) {
    acc = add_scaled(acc, vshlq_s32(nibble_sums(w->w, x->q), x->k), w->d);
    return vmlal_s32(acc, x->sum, w->m);
}
SF_INLINE int64x2_t add_s4(int64x2_t acc, const two_weights *w, const two_groups *x) {
    acc = add_scaled(acc, vshlq_s32(nibble_sums(w->w, x->q), x->k), w->d);
    return vmlsl_s32(acc, vshl_n_s32(x->sum, 3), w->m);
}
SF_INLINE int64x2_t add_q8(int64x2_t acc, const two_weights *w, const two_groups *x) {
    return add_scaled(acc, vshlq_s32(byte_sums(w->w, x->q), x->k), w->d);
}

/* The last of an odd number of groups, apart from the loops. */
#define SF_APART static __attribute__((noinline))
SF_INLINE int32_t nibble_sum(const uint8_t *w, const int8_t *q) {
    int32_t sum = 0;
    for (uint32_t i = 0; i < SF_GROUP / 2u; i++) {
        sum += (int32_t)(w[i] & 15u) * q[i] + (int32_t)(w[i] >> 4) * q[i + SF_GROUP / 2u];
    }
    return sum;
}
SF_APART int64_t one_q4(const uint8_t *w, const uint8_t *d, const int8_t *q, uint32_t k,
                        int32_t sum) {
    return (int64_t)(nibble_sum(w, q) * (int32_t)(1u << k)) * sf_half(sf_load16(d)) +
           (int64_t)sum * sf_half(sf_load16(d + 2));
}
SF_APART int64_t one_s4(const uint8_t *w, const uint8_t *d, const int8_t *q, uint32_t k,
                        int32_t sum) {
    return (int64_t)(nibble_sum(w, q) * (int32_t)(1u << k) - 8 * sum) * sf_half(sf_load16(d));
}
SF_APART int64_t one_q8(const uint8_t *w, const uint8_t *d, const int8_t *q, uint32_t k,
                        int32_t sum) {
    int32_t s = 0;
    (void)sum;
    for (uint32_t i = 0; i < SF_GROUP; i++) {
        s += (int32_t)((const int8_t *)w)[i] * q[i];
    }
    return (int64_t)(s * (int32_t)(1u << k)) * sf_half(sf_load16(d));
}

/* dot_GRID and dot2_GRID, of rows with `bytes` of weights and `scale` of scales a group: four rows
 * share what is loaded of the activations, tokens what is loaded of a row. */
#define ROWS(grid, bytes, scale)                                                                   \
    SF_INLINE void rows_##grid(const uint8_t *const *row, uint32_t n, const sf_bfp *x,             \
                               uint32_t tokens, float *const *out, uint32_t to) {                  \
        const size_t at = (size_t)x->groups * (bytes), groups = x->groups;                         \
        int64x2_t acc[4][2];                                                                       \
        size_t g = 0;                                                                              \
        for (uint32_t r = 0; r < n; r++) {                                                         \
            acc[r][0] = acc[r][1] = vdupq_n_s64(0);                                                \
        }                                                                                          \
        for (; g + 1u < groups; g += 2u) {                                                         \
            const two_groups first = load_two(x, g), second = load_two(x + tokens - 1u, g);        \
            for (uint32_t r = 0; r < n; r++) {                                                     \
                const two_weights w =                                                              \
                    load_##grid(row[r] + g * (bytes), row[r] + at + g * (scale));                  \
                acc[r][0] = add_##grid(acc[r][0], &w, &first);                                     \
                if (tokens == 2u) {                                                                \
                    acc[r][1] = add_##grid(acc[r][1], &w, &second);                                \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        for (uint32_t r = 0; r < n; r++) {                                                         \
            for (uint32_t t = 0; t < tokens; t++) {                                                \
                int64_t sum = vaddvq_s64(acc[r][t]);                                               \
                if (g < groups) {                                                                  \
                    sum += one_##grid(row[r] + g * (bytes), row[r] + at + g * (scale),             \
                                      x[t].q + g * SF_GROUP, x[t].k[g], x[t].sum[g]);              \
                }                                                                                  \
                out[t][to + r] = sf_sum_to_float(sum, x[t].s);                                     \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    SF_INLINE void all_##grid(const uint8_t *const *row, uint32_t n, const sf_bfp *x,              \
                              uint32_t tokens, float *const *out) {                                \
        uint32_t r = 0;                                                                            \
        const uint32_t few = tokens == 2u ? ROWS_OF_TWO : 4u;                                      \
        for (; r + few <= n; r += few) {                                                           \
            rows_##grid(row + r, few, x, tokens, out, r);                                          \
        }                                                                                          \
        for (; r < n; r++) {                                                                       \
            rows_##grid(row + r, 1u, x, tokens, out, r);                                           \
        }                                                                                          \
    }                                                                                              \
    void SF_NAME(dot_##grid)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) { \
        all_##grid(row, n, x, 1u, &out);                                                           \
    }                                                                                              \
    void SF_NAME(dot2_##grid)(const uint8_t *const *row, uint32_t n, const sf_bfp *x,              \
                              float *const *out) {                                                 \
        all_##grid(row, n, x, 2u, out);                                                            \
    }

ROWS(q4, SF_GROUP / 2u, 4u)
ROWS(s4, SF_GROUP / 2u, 2u)
ROWS(q8, SF_GROUP, 2u)

enum { R8_BYTES = SF_GROUP + 4 };

/* A first byte below 0 of a half has taken one from the second. */
SF_INLINE int8x16_t taken_r8(int8x16_t w) {
    const uint16x8_t below = vandq_u16(vreinterpretq_u16_s8(w), vdupq_n_u16(0x80));
    return vreinterpretq_s8_u16(vaddq_u16(below, below));
}

SF_APART int64_t one_r8(const uint8_t *half, const int8_t *q, uint32_t k) {
    const int8_t *w = (const int8_t *)half;
    int32_t sum = 0;
    for (uint32_t i = 0; i < SF_GROUP; i += 2u) {
        sum += w[i] * q[i] + (w[i + 1u] + (w[i] < 0 ? 1 : 0)) * q[i + 1u];
    }
    return (int64_t)sum * (int32_t)(1u << k);
}

void SF_NAME(dot_r8)(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r] + 4;
        int64x2_t acc = vdupq_n_s64(0);
        uint32_t g = 0;
        for (; g + 1u < x->groups; g += 2u, w += 2 * R8_BYTES) {
            const two_groups two = load_two(x, g);
            const int8x16x2_t a = vld1q_s8_x2((const int8_t *)w);
            const int8x16x2_t b = vld1q_s8_x2((const int8_t *)w + R8_BYTES);
            const int8x16x4_t all = {{a.val[0], a.val[1], b.val[0], b.val[1]}};
            const int8x16x4_t taken = {
                {taken_r8(a.val[0]), taken_r8(a.val[1]), taken_r8(b.val[0]), taken_r8(b.val[1])}};
            const int32x4_t sums = vaddq_s32(byte_sums(all, two.q), nibble_sums(taken, two.q));
            acc = vpadalq_s32(acc, vshlq_s32(sums, two.k));
        }
        int64_t sum = vaddvq_s64(acc);
        float d;
        memcpy(&d, row[r] + (size_t)x->groups * R8_BYTES, sizeof d);
        if (g < x->groups) {
            sum += one_r8(w, x->q + (size_t)g * SF_GROUP, x->k[g]);
        }
        out[r] = sf_row_sum_to_float(sum, x->s) * d;
    }
}

/* Activations of four groups for proxies, a lane of 32 bits each; groups that there are not are 0.
 */
typedef struct {
    int8x16_t q[8]; /* 4 s to 4 s + 3 of each group */
    int32x4_t shift;
    int32x4_t less; /* what stored weights have too much */
} four_lanes;
enum { FOURS = 16 }; /* that are at hand: wider rows are taken in parts */

/* So many words, at most four. */
SF_INLINE uint8x16_t some_words(const uint8_t *p, uint32_t count) {
    uint32_t v[4] = {0};
    for (uint32_t i = 0; i < count; i++) {
        v[i] = sf_load32(p + 4u * i);
    }
    return vreinterpretq_u8_u32(vld1q_u32(v));
}

SF_INLINE four_lanes load_lanes(uint32_t bits, const sf_bfp *x, uint32_t g) {
    const int32_t less = bits == 1u ? 1 : (int32_t)(1u << (bits - 1u)) - 1;
    int32_t k[4] = {0}, sum[4] = {0};
    int32x4_t v[2][4];
    four_lanes a;
    for (uint32_t i = 0; i < 4u; i++) {
        v[0][i] = v[1][i] = vdupq_n_s32(0);
        if (g + i < x->groups) {
            const int8_t *q = x->q + (size_t)(g + i) * SF_GROUP;
            v[0][i] = vreinterpretq_s32_s8(vld1q_s8(q));
            v[1][i] = vreinterpretq_s32_s8(vld1q_s8(q + 16));
            k[i] = x->k[g + i] + (bits == 1u ? 1 : 0);
            sum[i] = less * x->sum[g + i];
        }
    }
    for (uint32_t i = 0; i < 2u; i++) {
        const int32x4x2_t even = vzipq_s32(v[i][0], v[i][2]), odd = vzipq_s32(v[i][1], v[i][3]);
        for (uint32_t j = 0; j < 2u; j++) {
            const int32x4x2_t two = vzipq_s32(even.val[j], odd.val[j]);
            a.q[4u * i + 2u * j] = vreinterpretq_s8_s32(two.val[0]);
            a.q[4u * i + 2u * j + 1u] = vreinterpretq_s8_s32(two.val[1]);
        }
    }
    a.shift = vld1q_s32(k);
    a.less = vld1q_s32(sum);
    return a;
}

SF_INLINE uint8x16_t shifted(uint8x16_t v, uint32_t right) {
    return right == 0u ? v : vshlq_u8(v, vdupq_n_s8((int8_t)-(int32_t)right));
}
/* Stored weights 4 s to 4 s + 3 of each group, from the planes of a block: the upper half of a byte
 * has s from 4 on. */
SF_INLINE int8x16_t four_weights(const uint8x16_t *w, uint32_t bits, uint32_t s) {
    const uint32_t each = bits == 3u ? 2u : bits, some = 4u / each; /* of a half */
    const uint32_t by = s % 4u % some * each + s / 4u * 4u;
    uint8x16_t u = shifted(w[s % 4u / some], by);
    uint32_t most = (1u << each) - 1u;
    if (bits == 3u) {
        const uint8x16_t high =
            s < 2u ? vshlq_u8(w[2], vdupq_n_s8((int8_t)(2u - s))) : shifted(w[2], s - 2u);
        u = vbslq_u8(vdupq_n_u8(4), high, u);
        most = 7u;
    }
    /* Nothing comes behind the highest bits of a byte. */
    return vreinterpretq_s8_u8(by + each == 8u ? u : vandq_u8(u, vdupq_n_u8((uint8_t)most)));
}

/* acc and the products of so many groups from g on, at most four. */
SF_INLINE int64x2_t add_four(int64x2_t acc, const uint8_t *row, uint32_t bits, uint32_t groups,
                             uint32_t g, uint32_t count, const four_lanes *a) {
    const uint32_t first = g / 8u * 8u; /* of the block */
    const uint32_t plane = groups - first < 8u ? groups - first : 8u;
    const uint8_t *p = row + 4u * ((size_t)first * bits + g - first);
    const uint8_t *d = row + 4u * (size_t)groups * bits + 2u * g;
    uint8x16_t w[4];
    int8x16_t u[8];
    uint16_t half[4] = {0};
    for (uint32_t j = 0; j < bits; j++, p += 4u * plane) {
        w[j] = count == 4u ? vld1q_u8(p) : some_words(p, count);
    }
    for (uint32_t s = 0; s < 8u; s++) {
        u[s] = four_weights(w, bits, s);
    }
    for (uint32_t i = 0; count < 4u && i < count; i++) {
        half[i] = (uint16_t)sf_load16(d + 2u * i);
    }
    const int32x4_t sums = vsubq_s32(vshlq_s32(lane_sums(u, a->q), a->shift), a->less);
    return add_scaled(acc, sums,
                      sf_halves4(count == 4u ? vld1_u8(d) : vreinterpret_u8_u16(vld1_u16(half))));
}

SF_INLINE void proxy_rows(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                          float *out) {
    int64x2_t acc[SF_TILE];
    four_lanes a[FOURS];
    for (uint32_t from = 0; from < x->groups; from += 4u * FOURS) {
        const uint32_t left = x->groups - from, some = left / 4u < FOURS ? left / 4u : FOURS;
        const bool part = some < FOURS && left % 4u > 0u;
        for (uint32_t i = 0; i < some + (part ? 1u : 0u); i++) {
            a[i] = load_lanes(bits, x, from + 4u * i);
        }
        for (uint32_t r = 0; r < n; r++) {
            int64x2_t sum = from > 0u ? acc[r] : vdupq_n_s64(0);
            for (uint32_t i = 0; i < some; i++) {
                sum = add_four(sum, row[r], bits, x->groups, from + 4u * i, 4u, a + i);
            }
            if (part) {
                sum = add_four(sum, row[r], bits, x->groups, from + 4u * some, left % 4u, a + some);
            }
            acc[r] = sum;
        }
    }
    for (uint32_t r = 0; r < n; r++) {
        out[r] = sf_sum_to_float(vaddvq_s64(acc[r]), x->s);
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
