/* Shared by the tier of the Cortex-M4, M7 and M33: two 16-bit products an instruction. Sums are
 * exact integers, so they equal plain C bit for bit. */
#ifndef SF_ARM_DSP_H
#define SF_ARM_DSP_H

#define SF_DSP 1 /* in files that the tiers of Arm share */

#include "arm_common/half.h"

/* Bytes 0 and 2 as two signed halves; bytes 1 and 3. */
static inline uint32_t sf_even(uint32_t w) {
    uint32_t r;
    __asm("sxtb16 %0, %1" : "=r"(r) : "r"(w));
    return r;
}
static inline uint32_t sf_odd(uint32_t w) {
    uint32_t r;
    __asm("sxtb16 %0, %1, ror #8" : "=r"(r) : "r"(w));
    return r;
}

/* x.low * y.low + x.high * y.high */
static inline int32_t sf_mul2(uint32_t x, uint32_t y) {
    int32_t r;
    __asm("smuad %0, %1, %2" : "=r"(r) : "r"(x), "r"(y));
    return r;
}
/* The same, added to acc. */
static inline int32_t sf_mac2(uint32_t x, uint32_t y, int32_t acc) {
    int32_t r;
    __asm("smlad %0, %1, %2, %3" : "=r"(r) : "r"(x), "r"(y), "r"(acc));
    return r;
}
/* The low halves of x and y, or the high ones, as one word. */
static inline uint32_t sf_low2(uint32_t x, uint32_t y) {
    uint32_t r;
    __asm("pkhbt %0, %1, %2, lsl #16" : "=r"(r) : "r"(x), "r"(y));
    return r;
}
static inline uint32_t sf_high2(uint32_t x, uint32_t y) {
    uint32_t r;
    __asm("pkhtb %0, %2, %1, asr #16" : "=r"(r) : "r"(x), "r"(y));
    return r;
}

/* Nearest integer, ties to even. */
static inline int32_t sf_nearest(float x) {
    __asm("vcvtr.s32.f32 %0, %0" : "+t"(x));
    return (int32_t)sf_bits(x);
}

/* Exponent and 7 bits of the largest magnitude of n > 0 values: the upper half of its float. */
static inline uint32_t sf_top_half(const float *x, uint32_t n) {
    uint32_t best = 0, i = 0;
    const float *p = x;
    /* clang-format off */
#define SF_TOP_OF_FOUR /* best += what two pairs have above it */                                  \
    "ldmia %[p]!, {r4, r5, r12, lr}\n\t"                                                           \
    "pkhtb r4, r4, r5, asr #16\n\tpkhtb r12, r12, lr, asr #16\n\t"                                \
    "bic r4, r4, #0x80008000\n\tbic r12, r12, #0x80008000\n\t"                                    \
    "uqsub16 r4, r4, %[b]\n\tuadd16 %[b], %[b], r4\n\t"                                           \
    "uqsub16 r12, r12, %[b]\n\tuadd16 %[b], %[b], r12\n\t"
    for (; i + 7u < n; i += 8u) {
        __asm(SF_TOP_OF_FOUR SF_TOP_OF_FOUR
              : [p] "+r"(p), [b] "+r"(best) : : "r4", "r5", "r12", "lr", "memory");
    }
#undef SF_TOP_OF_FOUR
    /* clang-format on */
    uint32_t top = best & 0xFFFFu;
    top = best >> 16 > top ? best >> 16 : top;
    for (; i < n; i++) {
        const uint32_t half = sf_bits(x[i]) >> 16 & 0x7FFFu;
        top = half > top ? half : top;
    }
    return top;
}

#endif
