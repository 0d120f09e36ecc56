/* Rows times an activation vector with NEON, two groups at a time, for a tier that has nibble_sums
 * and byte_sums (of the products of two groups: two lanes of the first, two of the second) and
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

/* u = 2 u + the bits of a word, a byte each. */
SF_INLINE void add_bits(uint8x16_t *u, const uint8_t *word) {
    const uint8_t first[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    const uint8_t second[16] = {2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3};
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    const uint8x16_t v = vreinterpretq_u8_u32(vdupq_n_u32(sf_load32(word)));
    u[0] = vsubq_u8(vaddq_u8(u[0], u[0]), vtstq_u8(vqtbl1q_u8(v, vld1q_u8(first)), bit));
    u[1] = vsubq_u8(vaddq_u8(u[1], u[1]), vtstq_u8(vqtbl1q_u8(v, vld1q_u8(second)), bit));
}
/* The weights of a group, from its highest bits down. */
SF_INLINE void proxy_group(const uint8_t *w, uint32_t bits, int8x16_t *out) {
    uint8x16_t u[2] = {vdupq_n_u8(0), vdupq_n_u8(0)};
    for (uint32_t j = bits; j-- > 0;) {
        add_bits(u, w + 4u * j);
    }
    out[0] = vreinterpretq_s8_u8(u[0]);
    out[1] = vreinterpretq_s8_u8(u[1]);
}

void SF_NAME(dot_proxy)(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                        float *out) {
    const int32_t less = bits == 1u ? 1 : (int32_t)(1u << (bits - 1u)) - 1;
    const int32x4_t twice = vdupq_n_s32(bits == 1u ? 1 : 0); /* one more to shift */
    const uint32_t last = x->groups - 1u;
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r], *d = row[r] + (size_t)x->groups * bits * 4u;
        int64x2_t acc = vdupq_n_s64(0);
        for (uint32_t g = 0; g < x->groups; g += 2u, w += 8u * bits, d += 4) {
            int8x16x4_t u;
            proxy_group(w, bits, u.val);
            if (g == last) { /* alone */
                const int8x16x2_t q = vld1q_s8_x2(x->q + (size_t)g * SF_GROUP);
                const int8x16_t zero = vdupq_n_s8(0);
                u.val[2] = u.val[3] = zero;
                const int32x4_t sums =
                    nibble_sums(u, (int8x16x4_t){{q.val[0], q.val[1], zero, zero}});
                const int32x4_t k = vaddq_s32(vdupq_n_s32(x->k[g]), twice);
                const int32x2_t more = {less * x->sum[g], 0};
                const int32x4_t one = vdupq_n_s32(sf_half(sf_load16(d)));
                acc = add_scaled(acc, vshlq_s32(sums, k), one);
                acc = vmlsl_s32(acc, more, vget_low_s32(one));
                break;
            }
            const two_groups two = load_two(x, g);
            const int32x4_t s = sf_two_halves(d);
            proxy_group(w + 4u * bits, bits, u.val + 2);
            const int32x4_t sums = vshlq_s32(nibble_sums(u, two.q), vaddq_s32(two.k, twice));
            acc = add_scaled(acc, sums, vzip1q_s32(s, s));
            acc = vmlsl_s32(acc, vmul_n_s32(two.sum, less), vget_low_s32(s));
        }
        out[r] = sf_sum_to_float(vaddvq_s64(acc), x->s);
    }
}
