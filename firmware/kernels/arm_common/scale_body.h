/* Scaling the sums of a matrix by columns on a Cortex-M with a floating-point unit. SF_NAME(kernel)
 * is the tier's name of a kernel. */
#include "arm_common/half.h"

/* Two sums a turn. */
void SF_NAME(scale_q8)(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                       int64_t *acc) {
    register const uint8_t *d __asm("r0") = scales;
    register uint32_t shift __asm("r1") = k;
    register int32_t *s __asm("r2") = isum;
    register int64_t *a __asm("r3") = acc;
    register const int32_t *end __asm("lr") = isum + dim;
    (void)sum;
    /* clang-format off */
    __asm volatile("mov r7, #0\n\t"
          "1:\n\t"
          "vldmia r0!, {s15}\n\t"
          "vcvtb.f32.f16 s14, s15\n\t"
          "vcvtt.f32.f16 s15, s15\n\t"
          "vcvt.s32.f32 s14, s14, #24\n\t"
          "vcvt.s32.f32 s15, s15, #24\n\t"
          "vmov r4, r5, s14, s15\n\t"
          "ldm r2, {r6, r8}\n\t"
          "strd r7, r7, [r2], #8\n\t"
          "lsl r6, r6, r1\n\t"
          "lsl r8, r8, r1\n\t"
          "ldm r3, {r9, r10, r11, r12}\n\t"
          "smlal r9, r10, r6, r4\n\t"
          "smlal r11, r12, r8, r5\n\t"
          "stm r3!, {r9, r10, r11, r12}\n\t"
          "cmp r2, lr\n\t"
          "bne 1b"
          : "+r"(d), "+r"(s), "+r"(a)
          : "r"(shift), "r"(end)
          : "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "s14", "s15", "cc", "memory");
    /* clang-format on */
}

void SF_NAME(scale_q4)(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                       int64_t *acc) {
    for (uint32_t j = 0; j < dim; j++) {
        int32_t d, m;
        sf_two_halves(scales + 4u * j, &d, &m);
        acc[j] += (int64_t)(int32_t)((uint32_t)isum[j] << k) * d;
        acc[j] += (int64_t)sum * m;
        isum[j] = 0;
    }
}
