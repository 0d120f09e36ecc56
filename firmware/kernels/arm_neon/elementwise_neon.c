/* Activations with NEON, four at a time. */
#include "arm_neon/neon.h"

SF_ARM_NEON_HAS(SF_DECLARE)

/* 0xFFFFFFFF / d for d from 2^16 to 2^17: no quotient is as near to a whole number as the rounding
 * of a double, so cutting it off gives the quotient of integers. */
SF_INLINE uint32x2_t inverse2(uint32x2_t d) {
    const float64x2_t all = vdupq_n_f64(4294967295.0);
    return vmovn_u64(vcvtq_u64_f64(vdivq_f64(all, vcvtq_f64_u64(vmovl_u32(d)))));
}
/* a - (f * t >> 16) */
SF_INLINE uint32x4_t step(uint32_t a, uint32x4_t f, uint32x4_t t) {
    return vsubq_u32(vdupq_n_u32(a), vshrq_n_u32(vmulq_u32(f, t), 16));
}

/* sf_sigmoid of four. */
SF_INLINE float32x4_t sigmoid4(float32x4_t x) {
    const float32x4_t t = vmulq_n_f32(vabsq_f32(x), 94548.46f);
    /* The limit, too, where t is no number. */
    const uint32x4_t u = vcvtq_u32_f32(vminnmq_f32(t, vdupq_n_f32(2031616.0f)));
    const uint32x4_t f = vandq_u32(u, vdupq_n_u32(0xFFFFu));
    const int32x4_t e = vreinterpretq_s32_u32(vshrq_n_u32(u, 16));
    const uint32x4_t first = step(15699u, f, step(3498u, f, vdupq_n_u32(453u)));
    const uint32x4_t m = step(65536u, f, step(45422u, f, first));
    const uint32x4_t d = vaddq_u32(vdupq_n_u32(65536u), vshlq_u32(m, vnegq_s32(e)));
    const uint32x4_t inverse = vcombine_u32(inverse2(vget_low_u32(d)), inverse2(vget_high_u32(d)));
    const int32x4_t power = vshlq_n_s32(vsubq_s32(vdupq_n_s32(127 - 32), e), 23); /* 2^-(32 + e) */
    const float32x4_t below =
        vmulq_f32(vcvtq_f32_u32(vmulq_u32(m, inverse)), vreinterpretq_f32_s32(power));
    const float32x4_t above = vmulq_n_f32(vcvtq_f32_u32(inverse), 1.0f / 65536.0f);
    return vbslq_f32(vcltzq_f32(x), below, above);
}

void sf_arm_neon_silu(const float *x, uint32_t n, float *out) {
    uint32_t i = 0;
    for (; i + 4u <= n; i += 4u) {
        const float32x4_t v = vld1q_f32(x + i);
        vst1q_f32(out + i, vmulq_f32(v, sigmoid4(v)));
    }
    sf_plain_silu(x + i, n - i, out + i);
}

void sf_arm_neon_gelu_tanh(const float *x, uint32_t n, float *out) {
    uint32_t i = 0;
    for (; i + 4u <= n; i += 4u) {
        const float32x4_t v = vld1q_f32(x + i);
        const float32x4_t inner = vmulq_n_f32(vmulq_f32(v, v), 0.07135481f);
        const float32x4_t z = vmulq_f32(v, vaddq_f32(inner, vdupq_n_f32(1.5957691f)));
        vst1q_f32(out + i, vmulq_f32(v, sigmoid4(z)));
    }
    sf_plain_gelu_tanh(x + i, n - i, out + i);
}
