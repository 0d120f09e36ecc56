/* Plain C, which the compiler makes vectors of; attention calls quantize16. */
#include "arm_neon/neon.h"

SF_ARM_NEON_HAS(SF_DECLARE)

#define SF_NAME(kernel) sf_arm_neon_##kernel
#include "plain/quantize.c"
