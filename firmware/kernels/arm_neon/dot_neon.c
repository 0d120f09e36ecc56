#include "arm_neon/neon.h"

SF_ARM_NEON_HAS(SF_DECLARE)

static inline int32x4_t mac16(int32x4_t sum, int8x16_t w, int8x16_t x) {
    sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(w), vget_low_s8(x)));
    return vpadalq_s16(sum, vmull_high_s8(w, x));
}

#define SF_NAME(kernel) sf_arm_neon_##kernel
#include "arm_neon/dot_body.h"
