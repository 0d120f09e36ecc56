/* Plain C, which the compiler makes vectors of. */
#include "avx2.h"

#define SF_NAME(kernel) sf_x86_avx2_##kernel
#include "plain/quantize.c"
