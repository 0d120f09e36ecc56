/* Shared by the MVE tier (Cortex-M55). Sums are exact integers, so they equal plain C bit for bit.
 */
#ifndef SF_MVE_H
#define SF_MVE_H

#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2) && !defined(SF_PLAIN)
#define SF_MVE 1
#include <arm_mve.h>
#endif

#endif
