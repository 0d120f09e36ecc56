/* Activations to block floating point: scales are powers of two, so nothing is divided. */
#include "sf_kernels.h"

/* A tier may compile this again, with its flags and its name. */
#ifndef SF_NAME
#define SF_NAME(kernel) sf_plain_##kernel
#endif

typedef float scale;

static scale scale_for(uint32_t top, int32_t s) {
    return top >= 0x00800000u ? sf_pow2(s) : 0.0f;
}

static int32_t scaled(float x, scale factor, int32_t limit) {
    const int32_t v = sf_rint(x * factor);
    return v > limit ? limit : (v < -limit ? -limit : v);
}

#include "quantize_body.h"
