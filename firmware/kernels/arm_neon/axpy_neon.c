/* Matrices by columns with NEON. */
#include "arm_neon/neon.h"

SF_ARM_NEON_HAS(SF_DECLARE)

SF_INLINE void add8(int32_t *y, int16x8_t s) {
    vst1q_s32(y, vaddw_s16(vld1q_s32(y), vget_low_s16(s)));
    vst1q_s32(y + 4, vaddw_high_s16(vld1q_s32(y + 4), s));
}

/* 32 outputs a group from byte `at` of n columns on; sums of 16 of 15 * 127 have 16 bits. */
SF_INLINE void groups_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, size_t at,
                         uint32_t groups, int32_t *isum) {
    const uint8x16_t four = vdupq_n_u8(15);
    int16x8_t s[8];
    for (uint32_t i = 0; i < 4u * groups; i++) {
        s[i] = vdupq_n_s16(0);
    }
    for (uint32_t r = 0; r < n; r++) {
        const int8x16_t k = vld1q_dup_s8(h + r);
        for (uint32_t g = 0; g < groups; g++) {
            const uint8x16_t w = vld1q_u8(col[r] + at + 16u * g);
            const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(w, four));
            const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(w, 4));
            s[4u * g] = vmlal_s8(s[4u * g], vget_low_s8(low), vget_low_s8(k));
            s[4u * g + 1u] = vmlal_high_s8(s[4u * g + 1u], low, k);
            s[4u * g + 2u] = vmlal_s8(s[4u * g + 2u], vget_low_s8(high), vget_low_s8(k));
            s[4u * g + 3u] = vmlal_high_s8(s[4u * g + 3u], high, k);
        }
    }
    for (uint32_t i = 0; i < 4u * groups; i++) {
        add8(isum + 8u * i, s[i]);
    }
}

void sf_arm_neon_axpy_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                         int32_t *isum) {
    for (uint32_t from = 0; from < n; from += 16u) {
        const uint32_t some = n - from < 16u ? n - from : 16u;
        uint32_t j = 0;
        for (; j + 2u * SF_GROUP <= dim; j += 2u * SF_GROUP) {
            groups_q4(col + from, h + from, some, j / 2u, 2u, isum + j);
        }
        if (j < dim) {
            groups_q4(col + from, h + from, some, j / 2u, 1u, isum + j);
        }
    }
}

/* Two columns of -128 * 127 fit sums of 16 bits. */
void sf_arm_neon_axpy_q8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                         int32_t *isum) {
    for (uint32_t r = 0; r < n; r += 2u) {
        const int8_t *w = (const int8_t *)col[r];
        const int8_t *v = r + 1u < n ? (const int8_t *)col[r + 1u] : w;
        const int8x16_t k = vdupq_n_s8(h[r]);
        const int8x16_t m = vdupq_n_s8(r + 1u < n ? h[r + 1u] : 0);
        for (uint32_t j = 0; j < dim; j += 16u) {
            const int8x16_t a = vld1q_s8(w + j), b = vld1q_s8(v + j);
            const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(k));
            const int16x8_t high = vmull_high_s8(a, k);
            add8(isum + j, vmlal_s8(low, vget_low_s8(b), vget_low_s8(m)));
            add8(isum + j + 8u, vmlal_high_s8(high, b, m));
        }
    }
}

/* Factors of a column for four groups, as sf_s4_factor. */
SF_INLINE int32x4_t factors_s4(int32_t a, uint16x4_t halves, int32_t shift) {
    const int32x4_t h = vreinterpretq_s32_u32(vmovl_u16(halves));
    const int32x4_t e = vandq_s32(vshrq_n_s32(h, 10), vdupq_n_s32(31));
    const uint32x4_t normal = vtstq_s32(e, e); /* -1 */
    const int32x4_t m = vandq_s32(h, vdupq_n_s32(0x3FF));
    const int32x4_t one = vreinterpretq_s32_u32(vandq_u32(normal, vdupq_n_u32(0x400)));
    const int32x4_t product = vmulq_n_s32(vorrq_s32(m, one), a);
    const uint32x4_t minus = vtstq_s32(h, vdupq_n_s32(0x8000));
    const int32x4_t up = vsubq_s32(vaddq_s32(e, vreinterpretq_s32_u32(normal)), vdupq_n_s32(shift));
    return vrshlq_s32(vbslq_s32(minus, vnegq_s32(product), product), up);
}

enum { S4_GROUPS = 4 }; /* whose factors are at hand */

/* Factors of columns as 256 times a signed byte plus one without a sign. */
typedef struct {
    int8_t high[SF_TILE][S4_GROUPS];
    uint8_t low[SF_TILE][S4_GROUPS];
    int32_t total[S4_GROUPS];
} s4_factors;

/* Of n columns for four groups, whose scales are at byte `at`. */
SF_INLINE void make_factors(const uint8_t *const *col, const int32_t *a, uint32_t n, size_t at,
                            uint32_t shift, s4_factors *f) {
    int32x4_t total = vdupq_n_s32(0);
    for (uint32_t r = 0; r < n; r++) {
        const uint16x4_t halves = vreinterpret_u16_u8(vld1_u8(col[r] + at));
        const int32x4_t t = factors_s4(a[r], halves, (int32_t)shift);
        const int16x8_t both = vcombine_s16(vmovn_s32(t), vshrn_n_s32(t, 8));
        const uint32x2_t bytes = vreinterpret_u32_s8(vmovn_s16(both));
        vst1_lane_u32((uint32_t *)(void *)f->low[r], bytes, 0);
        vst1_lane_u32((uint32_t *)(void *)f->high[r], bytes, 1);
        total = vaddq_s32(total, t);
    }
    vst1q_s32(f->total, total);
}

/* y[0..7] += 256 high + low - less */
SF_INLINE void add8_parts(int32_t *y, int16x8_t high, uint16x8_t low, int32x4_t less) {
    const int32x4_t a = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low)));
    const int32x4_t b = vreinterpretq_s32_u32(vmovl_high_u16(low));
    const int32x4_t c = vaddq_s32(a, vshll_n_s16(vget_low_s16(high), 8));
    const int32x4_t d = vaddq_s32(b, vshll_high_n_s16(high, 8));
    vst1q_s32(y, vaddq_s32(vld1q_s32(y), vsubq_s32(c, less)));
    vst1q_s32(y + 4, vaddq_s32(vld1q_s32(y + 4), vsubq_s32(d, less)));
}

/* y[0..31] += the sums of group i of the factors, from byte `at` of columns on; sums of 16 of 15 *
 * 255 and of 15 * -128 have 16 bits. */
SF_INLINE void s4_group(const uint8_t *const *col, uint32_t n, size_t at, const s4_factors *f,
                        uint32_t i, int32_t *y) {
    int16x8_t high[4];
    uint16x8_t low[4];
    for (uint32_t k = 0; k < 4u; k++) {
        high[k] = vdupq_n_s16(0);
        low[k] = vdupq_n_u16(0);
    }
    for (uint32_t r = 0; r < n; r++) {
        const uint8x16_t w = vld1q_u8(col[r] + at);
        const uint8x16_t nibble[2] = {vandq_u8(w, vdupq_n_u8(15)), vshrq_n_u8(w, 4)};
        const int8x16_t h = vld1q_dup_s8(&f->high[r][i]);
        const uint8x16_t l = vld1q_dup_u8(&f->low[r][i]);
        for (uint32_t k = 0; k < 2u; k++) {
            const int8x16_t v = vreinterpretq_s8_u8(nibble[k]);
            high[2u * k] = vmlal_s8(high[2u * k], vget_low_s8(v), vget_low_s8(h));
            high[2u * k + 1u] = vmlal_high_s8(high[2u * k + 1u], v, h);
            low[2u * k] = vmlal_u8(low[2u * k], vget_low_u8(nibble[k]), vget_low_u8(l));
            low[2u * k + 1u] = vmlal_high_u8(low[2u * k + 1u], nibble[k], l);
        }
    }
    const int32x4_t less = vdupq_n_s32(8 * f->total[i]); /* the nibbles are q + 8 */
    for (uint32_t k = 0; k < 4u; k++) {
        add8_parts(y + 8u * k, high[k], low[k], less);
    }
}

void sf_arm_neon_axpy_s4(const uint8_t *const *col, const int32_t *a, uint32_t n, uint32_t dim,
                         uint32_t shift, int32_t *acc) {
    const uint32_t groups = dim / SF_GROUP;
    if (groups < S4_GROUPS) {
        sf_plain_axpy_s4(col, a, n, dim, shift, acc);
        return;
    }
    s4_factors f;
    for (uint32_t g = 0; g < groups;) {
        const uint32_t from = groups - g < S4_GROUPS ? groups - S4_GROUPS : g; /* some again */
        make_factors(col, a, n, dim / 2u + 2u * from, shift, &f);
        for (; g < from + S4_GROUPS; g++) {
            s4_group(col, n, (size_t)g * 16u, &f, g - from, acc + (size_t)g * SF_GROUP);
        }
    }
}

/* acc[0..3] += s << k */
SF_INLINE void add4_wide(int64_t *acc, int32x4_t s, int64x2_t k) {
    vst1q_s64(acc, vaddq_s64(vld1q_s64(acc), vshlq_s64(vmovl_s32(vget_low_s32(s)), k)));
    vst1q_s64(acc + 2, vaddq_s64(vld1q_s64(acc + 2), vshlq_s64(vmovl_high_s32(s), k)));
}

/* Sixteen outputs, of which each half has an even and an odd one. */
void sf_arm_neon_axpy_r8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                         uint32_t k, int64_t *acc) {
    const int64x2_t shift = vdupq_n_s64((int64_t)k);
    for (uint32_t j = 0; j < dim; j += 16u) {
        int32x4_t even[2] = {vdupq_n_s32(0), vdupq_n_s32(0)}, odd[2] = {even[0], even[0]};
        for (uint32_t r = 0; r < n; r++) {
            const int16x8_t v = vreinterpretq_s16_u8(vld1q_u8(col[r] + j));
            const int16x8_t up = vshlq_n_s16(v, 8), a = vshrq_n_s16(up, 8);
            /* One below 0 has taken one from that beside it. */
            const int16x8_t b = vsubq_s16(vshrq_n_s16(v, 8), vshrq_n_s16(up, 15));
            even[0] = vmlal_n_s16(even[0], vget_low_s16(a), h[r]);
            even[1] = vmlal_high_n_s16(even[1], a, h[r]);
            odd[0] = vmlal_n_s16(odd[0], vget_low_s16(b), h[r]);
            odd[1] = vmlal_high_n_s16(odd[1], b, h[r]);
        }
        for (uint32_t i = 0; i < 2u; i++) {
            add4_wide(acc + j + 8u * i, vzip1q_s32(even[i], odd[i]), shift);
            add4_wide(acc + j + 8u * i + 4u, vzip2q_s32(even[i], odd[i]), shift);
        }
    }
}
