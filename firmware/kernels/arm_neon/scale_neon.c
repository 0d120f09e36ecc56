/* Sums of columns take their scales with NEON, eight at a time. */
#include "arm_neon/neon.h"

SF_ARM_NEON_HAS(SF_DECLARE)

/* acc[0..3] += s * d */
SF_INLINE void add4(int64_t *acc, int32x4_t s, int32x4_t d) {
    vst1q_s64(acc, vmlal_s32(vld1q_s64(acc), vget_low_s32(s), vget_low_s32(d)));
    vst1q_s64(acc + 2, vmlal_high_s32(vld1q_s64(acc + 2), s, d));
}
/* acc[0..3] += s * d + sum * m */
SF_INLINE void add4_affine(int64_t *acc, int32x4_t s, int32x4_t d, int32x4_t sum, int32x4_t m) {
    const int64x2_t low = vmlal_s32(vld1q_s64(acc), vget_low_s32(s), vget_low_s32(d));
    const int64x2_t high = vmlal_high_s32(vld1q_s64(acc + 2), s, d);
    vst1q_s64(acc, vmlal_s32(low, vget_low_s32(sum), vget_low_s32(m)));
    vst1q_s64(acc + 2, vmlal_high_s32(high, sum, m));
}

void sf_arm_neon_scale_q4(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim,
                          int32_t *isum, int64_t *acc) {
    const int32x4_t shift = vdupq_n_s32((int32_t)k), total = vdupq_n_s32(sum);
    for (uint32_t j = 0; j < dim; j += 8u) {
        const uint16x8x2_t dm = vld2q_u16((const uint16_t *)(const void *)scales);
        const uint8x16_t d = vreinterpretq_u8_u16(dm.val[0]), m = vreinterpretq_u8_u16(dm.val[1]);
        add4_affine(acc, vshlq_s32(vld1q_s32(isum), shift), sf_halves4(vget_low_u8(d)), total,
                    sf_halves4(vget_low_u8(m)));
        add4_affine(acc + 4, vshlq_s32(vld1q_s32(isum + 4), shift), sf_halves4(vget_high_u8(d)),
                    total, sf_halves4(vget_high_u8(m)));
        vst1q_s32(isum, vdupq_n_s32(0));
        vst1q_s32(isum + 4, vdupq_n_s32(0));
        scales += 32;
        isum += 8;
        acc += 8;
    }
}

void sf_arm_neon_scale_q8(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim,
                          int32_t *isum, int64_t *acc) {
    const int32x4_t shift = vdupq_n_s32((int32_t)k);
    (void)sum;
    for (uint32_t j = 0; j < dim; j += 8u) {
        const uint8x16_t d = vld1q_u8(scales);
        add4(acc, vshlq_s32(vld1q_s32(isum), shift), sf_halves4(vget_low_u8(d)));
        add4(acc + 4, vshlq_s32(vld1q_s32(isum + 4), shift), sf_halves4(vget_high_u8(d)));
        vst1q_s32(isum, vdupq_n_s32(0));
        vst1q_s32(isum + 4, vdupq_n_s32(0));
        scales += 16;
        isum += 8;
        acc += 8;
    }
}
