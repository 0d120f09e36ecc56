#include "arm_neon/neon.h"

SF_ARM_NEON_HAS(SF_DECLARE)

/* The products of a group with nibbles, four in each lane: at most 4 * 15 * 127. */
SF_INLINE int16x8_t nibble_products(int8x16_t low, int8x16_t high, int8x16_t x, int8x16_t y) {
    int16x8_t p = vmull_s8(vget_low_s8(low), vget_low_s8(x));
    p = vmlal_high_s8(p, low, x);
    p = vmlal_s8(p, vget_low_s8(high), vget_low_s8(y));
    return vmlal_high_s8(p, high, y);
}
SF_INLINE int32x4_t nibble_sums(int8x16x4_t w, int8x16x4_t x) {
    return vpaddlq_s16(vpaddq_s16(nibble_products(w.val[0], w.val[1], x.val[0], x.val[1]),
                                  nibble_products(w.val[2], w.val[3], x.val[2], x.val[3])));
}

/* Two products fit 16 bits, for no activation is -128. */
SF_INLINE int16x8_t two_products(int8x16_t w, int8x16_t x) {
    return vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x);
}
SF_INLINE int32x4_t byte_sums(int8x16x4_t w, int8x16x4_t x) {
    const int32x4_t a = vpadalq_s16(vpaddlq_s16(two_products(w.val[0], x.val[0])),
                                    two_products(w.val[1], x.val[1]));
    const int32x4_t b = vpadalq_s16(vpaddlq_s16(two_products(w.val[2], x.val[2])),
                                    two_products(w.val[3], x.val[3]));
    return vpaddq_s32(a, b);
}

/* Eight products are at most 8 * 15 * 127. */
SF_INLINE int32x4_t lane_sums(const int8x16_t *w, const int8x16_t *x) {
    int16x8_t low = vmull_s8(vget_low_s8(w[0]), vget_low_s8(x[0]));
    int16x8_t high = vmull_high_s8(w[0], x[0]);
    for (uint32_t s = 1; s < 8u; s++) {
        low = vmlal_s8(low, vget_low_s8(w[s]), vget_low_s8(x[s]));
        high = vmlal_high_s8(high, w[s], x[s]);
    }
    return vpaddlq_s16(vpaddq_s16(low, high));
}

enum { ROWS_OF_TWO = 2 };
#define SF_NAME(kernel) sf_arm_neon_##kernel
#include "arm_neon/dot_body.h"
