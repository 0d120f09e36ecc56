/* Shared by the AVX-512 VNNI tier; sums are exact integers, so they equal plain C bit for bit. */
#ifndef SF_X86_VNNI_H
#define SF_X86_VNNI_H

#include "sf_kernels.h"
#include "x86_vnni/has.h"

#include <immintrin.h>

SF_X86_VNNI_HAS(SF_DECLARE)

#endif
