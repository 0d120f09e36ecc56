#include "arm_neon/neon.h"

SF_ARM_DOTPROD_HAS(SF_DECLARE)

static inline int32x4_t mac16(int32x4_t sum, int8x16_t w, int8x16_t x) {
    return vdotq_s32(sum, w, x);
}

#define SF_NAME(kernel) sf_arm_dotprod_##kernel
#include "arm_neon/dot_body.h"
