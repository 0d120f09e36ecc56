/* Which kernels of this machine have a tier of their own; plain C leaves those out. */
#ifndef SF_TIERS_H
#define SF_TIERS_H

#include "arm_dsp.h"
#include "armv6m.h"
#include "mve.h"
#include "neon.h"
#include "x86.h"

#if defined(SF_VNNI) || defined(SF_DSP) || defined(SF_MVE) || defined(SF_NEON) || defined(SF_ARMV6M)
#define SF_TIER_DOT 1
#define SF_TIER_AXPY_Q4 1
#endif
#if defined(SF_DSP) || defined(SF_MVE) || defined(SF_NEON) || defined(SF_ARMV6M)
#define SF_TIER_AXPY_Q8 1
#endif
#if defined(SF_VNNI) || defined(SF_DSP) || defined(SF_MVE) || defined(SF_ARMV6M)
#define SF_TIER_SCALE_Q4 1
#endif
#if defined(SF_DSP) || defined(SF_MVE) || defined(SF_ARMV6M)
#define SF_TIER_SCALE_Q8 1
#define SF_TIER_ATTENTION 1
#endif
#ifdef SF_DSP
#define SF_TIER_DOT_S4 1
#define SF_TIER_AXPY_S4 1
#endif
#if defined(SF_DSP) || defined(SF_MVE)
#define SF_TIER_QUANTIZE 1
#endif

#endif
