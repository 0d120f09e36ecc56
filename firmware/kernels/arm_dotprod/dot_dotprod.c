#include "arm_neon/neon.h"

SF_ARM_DOTPROD_HAS(SF_DECLARE)

SF_INLINE int32x4_t byte_sums(int8x16x4_t w, int8x16x4_t x) {
    const int32x4_t zero = vdupq_n_s32(0);
    return vpaddq_s32(vdotq_s32(vdotq_s32(zero, w.val[0], x.val[0]), w.val[1], x.val[1]),
                      vdotq_s32(vdotq_s32(zero, w.val[2], x.val[2]), w.val[3], x.val[3]));
}
SF_INLINE int32x4_t nibble_sums(int8x16x4_t w, int8x16x4_t x) {
    return byte_sums(w, x);
}
SF_INLINE int32x4_t lane_sums(const int8x16_t *w, const int8x16_t *x) {
    int32x4_t sum = vdupq_n_s32(0);
    for (uint32_t s = 0; s < 8u; s++) {
        sum = vdotq_s32(sum, w[s], x[s]);
    }
    return sum;
}

enum { ROWS_OF_TWO = 4 };
#define SF_NAME(kernel) sf_arm_dotprod_##kernel
#include "arm_neon/dot_body.h"
