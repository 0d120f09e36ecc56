/* Matrices by columns with NEON. */
#include "arm_neon/neon.h"

SF_ARM_NEON_HAS(SF_DECLARE)

static inline void add8(int32_t *y, int16x8_t s) {
    vst1q_s32(y, vaddw_s16(vld1q_s32(y), vget_low_s16(s)));
    vst1q_s32(y + 4, vaddw_high_s16(vld1q_s32(y + 4), s));
}

/* Sixteen columns of 15 * 127 fit sums of 16 bits. */
void sf_arm_neon_axpy_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                         int32_t *isum) {
    const uint8x16_t four = vdupq_n_u8(15);
    for (uint32_t from = 0; from < n; from += 16u) {
        const uint32_t to = n - from < 16u ? n : from + 16u;
        for (uint32_t j = 0; j < dim; j += SF_GROUP) {
            int16x8_t a = vdupq_n_s16(0), b = a, c = a, d = a;
            for (uint32_t r = from; r < to; r++) {
                const uint8x16_t w = vld1q_u8(col[r] + j / 2u);
                const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(w, four));
                const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(w, 4));
                const int8x16_t k = vdupq_n_s8(h[r]);
                a = vmlal_s8(a, vget_low_s8(low), vget_low_s8(k));
                b = vmlal_high_s8(b, low, k);
                c = vmlal_s8(c, vget_low_s8(high), vget_low_s8(k));
                d = vmlal_high_s8(d, high, k);
            }
            add8(isum + j, a);
            add8(isum + j + 8u, b);
            add8(isum + j + 16u, c);
            add8(isum + j + 24u, d);
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
