/* Shared by the tier of the Cortex-M4, M7 and M33: two 16-bit products an instruction. Sums are
 * exact integers, so they equal plain C bit for bit. */
#ifndef SF_ARM_DSP_H
#define SF_ARM_DSP_H

#define SF_DSP 1 /* in files that the tiers of Arm share */

#include "arm_common/half.h"

#include <string.h>

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

/* Of a group, for every 4 elements the pairs (0, 2) and (1, 3), shifted left; what leaves a low
 * half is cut. */
static inline uint32_t *sf_widen(const int8_t *q, uint32_t shift, uint32_t *out) {
    const uint32_t cut = ((1u << shift) - 1u) << 16;
    for (uint32_t i = 0; i < SF_GROUP; i += 4u) {
        const uint32_t w = sf_load32((const uint8_t *)q + i);
        *out++ = sf_even(w) << shift & ~cut;
        *out++ = sf_odd(w) << shift & ~cut;
    }
    return out;
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

/* Rows of s4 and q8 go two at a time, because they share the loads of their activations. A group of
 * both leaves three words: the two sums, and how far they move. */
enum { SF_PAIR_SUM = 3 };

/* Writes how far the groups move. The scales are taken two groups a step: the one too many is 0. */
static inline void sf_pair_shifts(const sf_bfp *x, uint32_t from, uint32_t groups, int32_t *sum) {
    for (uint32_t g = 0; g < groups; g++) {
        sum[g * SF_PAIR_SUM + 2u] = x->k[from + g];
    }
    if (groups % 2u != 0) {
        memset(sum + groups * SF_PAIR_SUM, 0, SF_PAIR_SUM * sizeof sum[0]);
    }
}

/* acc[0] and acc[1] are, or grow by, the sums of groups of two rows times their scales, which are
 * halves at d and at e. */
static inline void sf_pair_scaled(const int32_t *sum, uint32_t groups, const uint8_t *d,
                                  const uint8_t *e, bool first, int64_t *acc) {
    register const int32_t *s __asm("r0") = sum;
    register const uint8_t *p __asm("r1") = d;
    register const uint8_t *q __asm("r2") = e;
    register uint32_t al __asm("r3") = first ? 0 : (uint32_t)acc[0];
    register uint32_t ah __asm("r4") = first ? 0 : (uint32_t)((uint64_t)acc[0] >> 32);
    register uint32_t bl __asm("r5") = first ? 0 : (uint32_t)acc[1];
    register uint32_t bh __asm("r6") = first ? 0 : (uint32_t)((uint64_t)acc[1] >> 32);
    const uint8_t *end = d + (groups + 1u) / 2u * 4u;
    /* clang-format off */
    __asm volatile("1:\n\t"
          "vldmia r1!, {s12}\n\tvldmia r2!, {s13}\n\t"
          "vcvtb.f32.f16 s14, s12\n\tvcvtb.f32.f16 s15, s13\n\t"
          "vcvtt.f32.f16 s12, s12\n\tvcvtt.f32.f16 s13, s13\n\t"
          "vcvt.s32.f32 s14, s14, #24\n\tvcvt.s32.f32 s15, s15, #24\n\t"
          "vcvt.s32.f32 s12, s12, #24\n\tvcvt.s32.f32 s13, s13, #24\n\t"
          "ldmia r0!, {r8, r9, r10}\n\t"
          "vmov r11, r12, s14, s15\n\t"
          "lsl r8, r8, r10\n\tlsl r9, r9, r10\n\t"
          "smlal r3, r4, r8, r11\n\tsmlal r5, r6, r9, r12\n\t"
          "ldmia r0!, {r8, r9, r10}\n\t"
          "vmov r11, r12, s12, s13\n\t"
          "lsl r8, r8, r10\n\tlsl r9, r9, r10\n\t"
          "smlal r3, r4, r8, r11\n\tsmlal r5, r6, r9, r12\n\t"
          "cmp r1, %[end]\n\t"
          "bne 1b"
          : "+r"(s), "+r"(p), "+r"(q), "+r"(al), "+r"(ah), "+r"(bl), "+r"(bh)
          : [end] "r"(end)
          : "r8", "r9", "r10", "r11", "r12", "s12", "s13", "s14", "s15", "cc", "memory");
    /* clang-format on */
    acc[0] = (int64_t)((uint64_t)ah << 32 | al);
    acc[1] = (int64_t)((uint64_t)bh << 32 | bl);
}

#endif
