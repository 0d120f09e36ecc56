/* Shared by the MVE tier (Cortex-M55). Sums are exact integers, so they equal plain C bit for bit.
 */
#ifndef SF_ARM_MVE_H
#define SF_ARM_MVE_H

#define SF_MVE 1 /* in files that the tiers of Arm share */

#include "arm_common/half.h"

#include <arm_mve.h>

#endif
