/* Two rows times two activation vectors: an instruction adds eight products to each of four sums,
 * of the first row with the first and the second token and of the second row with them. */
#include "arm_i8mm/has.h"
#include "arm_neon/neon.h"

SF_ARM_I8MM_HAS(SF_DECLARE)

/* A group of two tokens, in eights of one and of the other. */
typedef struct {
    int8x16x4_t q;
    int32x4_t k, sum; /* of the tokens, twice; the lowest byte of k shifts */
} two_tokens;

SF_INLINE int8x16_t first_eights(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}
SF_INLINE int8x16_t second_eights(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}
/* 32 bytes each. */
SF_INLINE int8x16x4_t eights(const int8_t *p, const int8_t *q) {
    const int8x16x2_t a = vld1q_s8_x2(p), b = vld1q_s8_x2(q);
    return (int8x16x4_t){{first_eights(a.val[0], b.val[0]), second_eights(a.val[0], b.val[0]),
                          first_eights(a.val[1], b.val[1]), second_eights(a.val[1], b.val[1])}};
}
/* 32 nibbles each. */
SF_INLINE int8x16x4_t nibble_eights(const uint8_t *p, const uint8_t *q) {
    const int8x16_t v = vreinterpretq_s8_u8(vld1q_u8(p)), w = vreinterpretq_s8_u8(vld1q_u8(q));
    const uint8x16_t a = vreinterpretq_u8_s8(first_eights(v, w)), four = vdupq_n_u8(15);
    const uint8x16_t b = vreinterpretq_u8_s8(second_eights(v, w));
    return (int8x16x4_t){
        {vreinterpretq_s8_u8(vandq_u8(a, four)), vreinterpretq_s8_u8(vandq_u8(b, four)),
         vreinterpretq_s8_u8(vshrq_n_u8(a, 4)), vreinterpretq_s8_u8(vshrq_n_u8(b, 4))}};
}

SF_INLINE two_tokens load_tokens(const sf_bfp *x, size_t g) {
    const uint8x16_t k = vld1q_dup_u8(x[0].k + g), l = vld1q_dup_u8(x[1].k + g);
    const int32x4_t a = vld1q_dup_s32(x[0].sum + g), b = vld1q_dup_s32(x[1].sum + g);
    return (two_tokens){eights(x[0].q + g * SF_GROUP, x[1].q + g * SF_GROUP),
                        vzip1q_s32(vreinterpretq_s32_u8(k), vreinterpretq_s32_u8(l)),
                        vzip1q_s32(a, b)};
}

/* The four sums of a group with their shifts. */
SF_INLINE int32x4_t shifted_sums(int8x16x4_t w, const two_tokens *x) {
    int32x4_t s = vdupq_n_s32(0);
    for (uint32_t i = 0; i < 4u; i++) {
        s = vmmlaq_s32(s, w.val[i], x->q.val[i]);
    }
    return vshlq_s32(s, x->k);
}

/* acc of two rows += s * d */
SF_INLINE void add_scaled(int64x2_t *acc, int32x4_t s, int32x4_t d) {
    acc[0] = vmlal_s32(acc[0], vget_low_s32(s), vget_low_s32(d));
    acc[1] = vmlal_high_s32(acc[1], s, d);
}
/* Scales of two rows, twice each. */
SF_INLINE int32x4_t scales_of(const uint8_t *d, const uint8_t *e) {
    uint16x4_t h = vld1_dup_u16((const uint16_t *)(const void *)d);
    h = vld1_lane_u16((const uint16_t *)(const void *)e, h, 1);
    const int32x4_t s = sf_halves4(vreinterpret_u8_u16(h));
    return vzip1q_s32(s, s);
}

SF_INLINE void add_q4(int64x2_t *acc, const uint8_t *v, const uint8_t *w, const uint8_t *d,
                      const uint8_t *e, const two_tokens *x) {
    uint32x2_t h = vld1_dup_u32((const uint32_t *)(const void *)d);
    h = vld1_lane_u32((const uint32_t *)(const void *)e, h, 1);
    const int32x4_t dm = sf_halves4(vreinterpret_u8_u32(h));
    add_scaled(acc, shifted_sums(nibble_eights(v, w), x), vtrn1q_s32(dm, dm));
    add_scaled(acc, x->sum, vtrn2q_s32(dm, dm));
}
/* The nibbles are q + 8. */
SF_INLINE void add_s4(int64x2_t *acc, const uint8_t *v, const uint8_t *w, const uint8_t *d,
                      const uint8_t *e, const two_tokens *x) {
    const int32x4_t s = shifted_sums(nibble_eights(v, w), x);
    add_scaled(acc, vsubq_s32(s, vshlq_n_s32(x->sum, 3)), scales_of(d, e));
}
SF_INLINE void add_q8(int64x2_t *acc, const uint8_t *v, const uint8_t *w, const uint8_t *d,
                      const uint8_t *e, const two_tokens *x) {
    add_scaled(acc, shifted_sums(eights((const int8_t *)v, (const int8_t *)w), x), scales_of(d, e));
}

/* dot2_GRID, of rows with `bytes` of weights and `scale` of scales a group: four pairs of rows
 * share what is loaded of the activations. The last of an odd number of rows is its own pair. */
#define ROWS(grid, bytes, scale)                                                                   \
    SF_INLINE void pairs_##grid(const uint8_t *const *row, uint32_t pairs, uint32_t n,             \
                                const sf_bfp *x, float *const *out, uint32_t to) {                 \
        const size_t at = (size_t)x->groups * (bytes), groups = x->groups;                         \
        int64x2_t acc[8];                                                                          \
        for (uint32_t r = 0; r < 2u * pairs; r++) {                                                \
            acc[r] = vdupq_n_s64(0);                                                               \
        }                                                                                          \
        for (size_t g = 0; g < groups; g++) {                                                      \
            const two_tokens two = load_tokens(x, g);                                              \
            for (uint32_t r = 0; r < 2u * pairs; r += 2u) {                                        \
                const uint8_t *v = row[r], *w = row[n > 1u ? r + 1u : r];                          \
                add_##grid(acc + r, v + g * (bytes), w + g * (bytes), v + at + g * (scale),        \
                           w + at + g * (scale), &two);                                            \
            }                                                                                      \
        }                                                                                          \
        for (uint32_t r = 0; r < n; r++) {                                                         \
            out[0][to + r] = sf_sum_to_float(vgetq_lane_s64(acc[r], 0), x[0].s);                   \
            out[1][to + r] = sf_sum_to_float(vgetq_lane_s64(acc[r], 1), x[1].s);                   \
        }                                                                                          \
    }                                                                                              \
    void sf_arm_i8mm_dot2_##grid(const uint8_t *const *row, uint32_t n, const sf_bfp *x,           \
                                 float *const *out) {                                              \
        uint32_t r = 0;                                                                            \
        for (; r + 8u <= n; r += 8u) {                                                             \
            pairs_##grid(row + r, 4u, 8u, x, out, r);                                              \
        }                                                                                          \
        for (; r + 2u <= n; r += 2u) {                                                             \
            pairs_##grid(row + r, 1u, 2u, x, out, r);                                              \
        }                                                                                          \
        if (r < n) {                                                                               \
            pairs_##grid(row + r, 1u, 1u, x, out, r);                                              \
        }                                                                                          \
    }

ROWS(q4, SF_GROUP / 2u, 4u)
ROWS(q8, SF_GROUP, 2u)
ROWS(s4, SF_GROUP / 2u, 2u)
