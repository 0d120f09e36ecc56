/* Attention with NEON: heads of keys and values in 16 bits, softmax four positions at a time. */
#include "arm_neon/neon.h"
#include "plain/attend.h"

SF_ARM_NEON_HAS(SF_DECLARE)

/* The part of dots that lies in some sixteens of q and k, added to what score has from those
 * before.
 */
SF_INLINE void dots_sixteens(const int16_t *restrict q, const int8_t *restrict k, uint32_t stride,
                             uint32_t n, uint32_t sixteens, bool more, int32_t *restrict score) {
    int16x8_t x[8];
    for (uint32_t i = 0; i < 2u * sixteens; i++) {
        x[i] = vld1q_s16(q + 8u * i);
    }
    for (uint32_t t = 0; t < n; t++, k += stride) {
        int32x4_t a = vdupq_n_s32(0), b = a;
        for (uint32_t i = 0; i < sixteens; i++) {
            const int8x16_t w = vld1q_s8(k + 16u * i);
            const int16x8_t low = vmovl_s8(vget_low_s8(w)), high = vmovl_high_s8(w);
            a = vmlal_s16(a, vget_low_s16(low), vget_low_s16(x[2u * i]));
            b = vmlal_high_s16(b, low, x[2u * i]);
            a = vmlal_s16(a, vget_low_s16(high), vget_low_s16(x[2u * i + 1u]));
            b = vmlal_high_s16(b, high, x[2u * i + 1u]);
        }
        score[t] = (more ? score[t] : 0) + vaddvq_s32(vaddq_s32(a, b));
    }
}

static void dots(const int16_t *restrict q, const int8_t *restrict k, uint32_t stride, uint32_t n,
                 uint32_t dim, int32_t *restrict score) {
    uint32_t i = 0;
    for (; i + 64u <= dim; i += 64u) {
        dots_sixteens(q + i, k + i, stride, n, 4u, i > 0, score);
    }
    for (; i + 16u <= dim; i += 16u) {
        dots_sixteens(q + i, k + i, stride, n, 1u, i > 0, score);
    }
    for (uint32_t t = 0; i < dim && t < n; t++) {
        int32_t dot = i > 0 ? score[t] : 0;
        for (uint32_t j = i; j < dim; j++) {
            dot += (int32_t)q[j] * k[t * stride + j];
        }
        score[t] = dot;
    }
}

/* acc of sixteens of each value; coefficients have 16 bits. */
SF_INLINE void mix_sixteens(const int32_t *restrict c, const int8_t *restrict v, uint32_t stride,
                            uint32_t n, uint32_t sixteens, int32_t *restrict acc) {
    int32x4_t s[16];
    for (uint32_t i = 0; i < 4u * sixteens; i++) {
        s[i] = vdupq_n_s32(0);
    }
    for (uint32_t t = 0; t < n; t++, v += stride) {
        const int16_t x = (int16_t)c[t];
        for (uint32_t i = 0; i < sixteens; i++) {
            const int8x16_t w = vld1q_s8(v + 16u * i);
            const int16x8_t low = vmovl_s8(vget_low_s8(w)), high = vmovl_high_s8(w);
            s[4u * i] = vmlal_n_s16(s[4u * i], vget_low_s16(low), x);
            s[4u * i + 1u] = vmlal_high_n_s16(s[4u * i + 1u], low, x);
            s[4u * i + 2u] = vmlal_n_s16(s[4u * i + 2u], vget_low_s16(high), x);
            s[4u * i + 3u] = vmlal_high_n_s16(s[4u * i + 3u], high, x);
        }
    }
    for (uint32_t i = 0; i < 4u * sixteens; i++) {
        vst1q_s32(acc + 4u * i, s[i]);
    }
}

static void mix(const int32_t *restrict c, const int8_t *restrict v, uint32_t stride, uint32_t n,
                uint32_t dim, int32_t *restrict acc) {
    uint32_t i = 0;
    for (; i + 64u <= dim; i += 64u) {
        mix_sixteens(c, v + i, stride, n, 4u, acc + i);
    }
    for (; i + 16u <= dim; i += 16u) {
        mix_sixteens(c, v + i, stride, n, 1u, acc + i);
    }
    for (; i < dim; i++) {
        acc[i] = 0;
        for (uint32_t t = 0; t < n; t++) {
            acc[i] += c[t] * v[t * stride + i];
        }
    }
}

/* Four exponents, one from each position. */
SF_INLINE int32x4_t exponents4(const int8_t *e, uint32_t step) {
    int8x8_t v = vld1_dup_s8(e);
    v = vld1_lane_s8(e + step, v, 1);
    v = vld1_lane_s8(e + 2u * step, v, 2);
    v = vld1_lane_s8(e + 3u * step, v, 3);
    return vmovl_s16(vget_low_s16(vmovl_s8(v)));
}
/* How far to shift right for four distances; NEON shifts left, and by -32 to nothing. */
SF_INLINE int32x4_t right4(int32x4_t distance) {
    return vnegq_s32(vminq_s32(distance, vdupq_n_s32(32)));
}

static uint32_t some_scores(const sf_attn *a, uint32_t n, uint32_t factor, int32_t *score,
                            int32_t *best) {
    const int8_t *e = a->ks + a->first * a->estride;
    const uint32x4_t f = vdupq_n_u32(factor);
    const int32x4_t least = vdupq_n_s32(a->k_least);
    int32x4_t most = vdupq_n_s32(INT32_MIN);
    uint32_t t = 0;
    for (; t + 4u <= n; t += 4u, e += 4u * a->estride) {
        const int32x4_t s = vld1q_s32(score + t);
        const int32x4_t down = right4(vsubq_s32(exponents4(e, a->estride), least));
        const int32x4_t by = vreinterpretq_s32_u32(vshlq_u32(f, down));
        const int64x2_t low = vmull_s32(vget_low_s32(s), vget_low_s32(by));
        const int64x2_t high = vmull_high_s32(s, by);
        const int32x4_t v = vuzp2q_s32(vreinterpretq_s32_s64(low), vreinterpretq_s32_s64(high));
        vst1q_s32(score + t, v);
        most = vmaxq_s32(most, v);
    }
    *best = vmaxvq_s32(most);
    return t;
}

/* sf_exp2_part of four: bytes of the table of steps. */
SF_INLINE uint32x4_t exp2_part4(uint32x4_t x, uint8x16x4_t first, uint8x16x4_t second) {
    const uint32x4_t of = vandq_u32(vshrq_n_u32(x, 7), vdupq_n_u32(31));
    const uint32x4_t bytes = vmlaq_u32(vdupq_n_u32(0x03020100u), of, vdupq_n_u32(0x04040404u));
    const uint8x16_t at = vreinterpretq_u8_u32(bytes);
    const uint8x16_t low = vqtbl4q_u8(first, at);
    const uint8x16_t step = vqtbx4q_u8(low, second, vsubq_u8(at, vdupq_n_u8(64)));
    const int32x4_t s = vreinterpretq_s32_u8(step);
    const int32x4_t slope = vshrq_n_s32(vshlq_n_s32(s, 16), 16);
    const uint32x4_t rest = vandq_u32(vshlq_n_u32(x, 4), vdupq_n_u32(0x7F0u));
    return vreinterpretq_u32_s32(vmlaq_s32(s, slope, vreinterpretq_s32_u32(rest)));
}

static uint32_t some_weights(const sf_attn *a, uint32_t n, uint32_t left, int32_t best,
                             int32_t *score, uint32_t *total) {
    const uint32_t headroom = sf_headroom(n), shift = sf_coefficient_shift(headroom);
    const uint8_t *table = (const uint8_t *)sf_exp2_steps;
    const uint8x16x4_t first = vld1q_u8_x4(table), second = vld1q_u8_x4(table + 64);
    const uint32x4_t top = vdupq_n_u32((uint32_t)best), limit = vdupq_n_u32(SF_X_LIMIT >> left);
    const uint32x4_t nothing = vdupq_n_u32(SF_X_LIMIT);
    const int32x4_t up = vdupq_n_s32((int32_t)left), room = vdupq_n_s32((int32_t)headroom);
    const int32x4_t least = vdupq_n_s32(a->v_least - (int32_t)shift);
    const int8_t *e = a->vs + a->first * a->estride;
    uint32x4_t sum = vdupq_n_u32(0);
    uint32_t t = 0;
    for (; t + 4u <= n; t += 4u, e += 4u * a->estride) {
        uint32x4_t x = vsubq_u32(top, vreinterpretq_u32_s32(vld1q_s32(score + t)));
        x = vbslq_u32(vcgtq_u32(x, limit), nothing, vshlq_u32(x, up));
        const int32x4_t whole = vreinterpretq_s32_u32(vshrq_n_u32(x, 12));
        const uint32x4_t part = exp2_part4(x, first, second);
        const uint32x4_t p = vshlq_u32(part, vnegq_s32(vaddq_s32(whole, room)));
        const int32x4_t far = vsubq_s32(exponents4(e, a->estride), least);
        vst1q_s32(score + t, vreinterpretq_s32_u32(vrshlq_u32(p, right4(far))));
        sum = vaddq_u32(sum, p);
    }
    *total = vaddvq_u32(sum);
    return t;
}

#define SF_OWN_SOFTMAX
#define SF_NAME(kernel) sf_arm_neon_##kernel
#include "plain/attention_body.h"
