/* Shared by the tiers of 64-bit Arm. Sums are exact integers, so they equal plain C bit for bit. */
#ifndef SF_NEON_H
#define SF_NEON_H

#include "arm_dotprod/has.h"
#include "arm_neon/has.h"
#include "sf_kernels.h"

#include <arm_neon.h>

#endif
