/* The NEON tier (64-bit Arm). Sums are exact integers, so they equal plain C bit for bit. */
#ifndef SF_NEON_H
#define SF_NEON_H

#if defined(__aarch64__) && defined(__ARM_NEON) && !defined(SF_PLAIN)
#define SF_NEON 1
#include <arm_neon.h>
#endif

#endif
