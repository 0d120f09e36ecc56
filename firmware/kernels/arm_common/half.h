/* binary16 to units of 2^-24 on an Arm with a floating-point unit: exact, two instructions. */
#ifndef SF_ARM_HALF_H
#define SF_ARM_HALF_H

#include "sf_kernels.h"

/* Two halves of memory, aligned to 4. */
static inline void sf_two_halves(const uint8_t *p, int32_t *low, int32_t *high) {
    float a = sf_from_bits(sf_load32(p)), b;
    __asm("vcvtt.f32.f16 %0, %1" : "=t"(b) : "t"(a));
    __asm("vcvtb.f32.f16 %0, %0" : "+t"(a));
    __asm("vcvt.s32.f32 %0, %0, #24" : "+t"(a));
    __asm("vcvt.s32.f32 %0, %0, #24" : "+t"(b));
    *low = (int32_t)sf_bits(a);
    *high = (int32_t)sf_bits(b);
}

static inline int32_t sf_one_half(const uint8_t *p) {
    float a = sf_from_bits(sf_load16(p));
    __asm("vcvtb.f32.f16 %0, %0" : "+t"(a));
    __asm("vcvt.s32.f32 %0, %0, #24" : "+t"(a));
    return (int32_t)sf_bits(a);
}

#endif
