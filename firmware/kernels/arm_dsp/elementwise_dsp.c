/* Norm and activations on a Cortex-M with DSP and a floating-point unit. */
#include "dsp.h"

#include <math.h>

/* The sum of the squares of x, scaled and rounded. */
static uint64_t squares(const float *x, uint32_t n, float scale) {
    uint64_t sum = 0;
    uint32_t i = 0;
    for (; i + 3u < n; i += 4u) {
        uint32_t low = (uint32_t)sum, high = (uint32_t)(sum >> 32);
        /* clang-format off */
        __asm("vldmia %[x]!, {s12, s13, s14, s15}\n\t"
              "vmul.f32 s12, s12, %[f]\n\tvmul.f32 s13, s13, %[f]\n\t"
              "vmul.f32 s14, s14, %[f]\n\tvmul.f32 s15, s15, %[f]\n\t"
              "vcvtr.s32.f32 s12, s12\n\tvcvtr.s32.f32 s13, s13\n\t"
              "vcvtr.s32.f32 s14, s14\n\tvcvtr.s32.f32 s15, s15\n\t"
              "vmov r12, lr, s12, s13\n\t"
              "smlal %[l], %[h], r12, r12\n\tsmlal %[l], %[h], lr, lr\n\t"
              "vmov r12, lr, s14, s15\n\t"
              "smlal %[l], %[h], r12, r12\n\tsmlal %[l], %[h], lr, lr"
              : [x] "+r"(x), [l] "+r"(low), [h] "+r"(high)
              : [f] "t"(scale)
              : "r12", "lr", "s12", "s13", "s14", "s15", "memory");
        /* clang-format on */
        sum = (uint64_t)high << 32 | low;
    }
    for (; i < n; i++) {
        const int32_t q = sf_nearest(*x++ * scale);
        sum += (uint64_t)((int64_t)q * q);
    }
    return sum;
}

/* out = x * by * w. */
static void scaled(const float *x, const float *w, uint32_t n, float by, float *out) {
    uint32_t i = 0;
    for (; i + 3u < n; i += 4u) {
        /* clang-format off */
        __asm volatile("vldmia %[x]!, {s8, s9, s10, s11}\n\t"
              "vldmia %[w]!, {s12, s13, s14, s15}\n\t"
              "vmul.f32 s8, s8, %[f]\n\tvmul.f32 s9, s9, %[f]\n\t"
              "vmul.f32 s10, s10, %[f]\n\tvmul.f32 s11, s11, %[f]\n\t"
              "vmul.f32 s8, s8, s12\n\tvmul.f32 s9, s9, s13\n\t"
              "vmul.f32 s10, s10, s14\n\tvmul.f32 s11, s11, s15\n\t"
              "vstmia %[o]!, {s8, s9, s10, s11}"
              : [x] "+r"(x), [w] "+r"(w), [o] "+r"(out)
              : [f] "t"(by)
              : "s8", "s9", "s10", "s11", "s12", "s13", "s14", "s15", "memory");
        /* clang-format on */
    }
    for (; i < n; i++) {
        const float y = *x++ * by;
        *out++ = y * *w++;
    }
}

void sf_arm_dsp_rmsnorm(const float *x, const float *w, uint32_t n, float eps, float *out) {
    const int32_t s = sf_norm_exponent(sf_top_half(x, n) << 16);
    const uint64_t sum = squares(x, n, sf_pow2(s));
    const float mean = sf_whole(sum) / (float)n * sf_pow2(-2 * s);
    const float inverse = 1.0f / sqrtf(mean + eps);
    scaled(x, w, n, inverse, out);
}

/* The sigmoid and the product; whether x is below 0 is asked of its sign, because for -0 both
 * sides are one half. */
void sf_arm_dsp_silu(const float *x, uint32_t n, float *out) {
    register const float *from __asm("r0") = x;
    register const float *end __asm("r1") = x + n;
    register float *to __asm("r2") = out;
    register uint32_t a3 __asm("r3") = 453u;
    register uint32_t a2 __asm("r4") = 3498u;
    register uint32_t a1 __asm("r5") = 15699u;
    register uint32_t a0 __asm("r6") = 45422u;
    register uint32_t one __asm("r8") = 65536u;
    register uint32_t limit __asm("r9") = 31u * 65536u;
    if (n == 0) {
        return;
    }
    /* clang-format off */
    __asm volatile("mvn lr, #0\n\t"
          "1:\n\t"
          "vldmia r0!, {s14}\n\t"
          "vabs.f32 s15, s14\n\t"
          "vmul.f32 s15, s15, %[log2]\n\t"
          "vcvt.u32.f32 s15, s15\n\t"
          "vmov r10, r11, s14, s15\n\t"
          "cmp r11, r9\n\t"
          "bhi 4f\n\t"
          "2:\n\t"
          "uxth r12, r11\n\t"
          "mul r7, r12, r3\n\t"
          "sub r7, r4, r7, lsr #16\n\t"
          "mul r7, r12, r7\n\t"
          "sub r7, r5, r7, lsr #16\n\t"
          "mul r7, r12, r7\n\t"
          "sub r7, r6, r7, lsr #16\n\t"
          "mul r7, r12, r7\n\t"
          "sub r7, r8, r7, lsr #16\n\t"
          "lsr r11, r11, #16\n\t"
          "lsr r12, r7, r11\n\t"
          "add r12, r12, r8\n\t"
          "udiv r12, lr, r12\n\t"
          "cmp r10, #0\n\t"
          "blt 3f\n\t"
          "vmov s15, r12\n\t"
          "vcvt.f32.u32 s15, s15, #16\n\t"
          "vmul.f32 s15, s14, s15\n\t"
          "vstmia r2!, {s15}\n\t"
          "cmp r0, r1\n\t"
          "bne 1b\n\t"
          "b 5f\n\t"
          "3:\n\t"
          "mul r7, r7, r12\n\t"
          "rsb r11, r11, #95\n\t" /* 2^-(32 + e) */
          "lsl r11, r11, #23\n\t"
          "vmov s12, s13, r7, r11\n\t"
          "vcvt.f32.u32 s15, s12\n\t"
          "vmul.f32 s15, s15, s13\n\t"
          "vmul.f32 s15, s14, s15\n\t"
          "vstmia r2!, {s15}\n\t"
          "cmp r0, r1\n\t"
          "bne 1b\n\t"
          "b 5f\n\t"
          "4:\n\t"
          "mov r11, r9\n\t"
          "b 2b\n\t"
          "5:"
          : "+r"(from), "+r"(to)
          : "r"(end), "r"(a3), "r"(a2), "r"(a1), "r"(a0), "r"(one), "r"(limit), [log2] "t"(94548.46f)
          : "r7", "r10", "r11", "r12", "lr", "s12", "s13", "s14", "s15", "cc", "memory");
    /* clang-format on */
}

/* Eight of a and b at a time. */
#define EIGHT(op)                                                                                  \
    __asm volatile("vldmia %[b]!, {s8, s9, s10, s11, s12, s13, s14, s15}\n\t"                      \
                   "vldmia %[a], {s0, s1, s2, s3, s4, s5, s6, s7}\n\t" op " s0, s0, s8\n\t" op     \
                   " s1, s1, s9\n\t" op " s2, s2, s10\n\t" op " s3, s3, s11\n\t" op                \
                   " s4, s4, s12\n\t" op " s5, s5, s13\n\t" op " s6, s6, s14\n\t" op               \
                   " s7, s7, s15\n\t"                                                              \
                   "vstmia %[a]!, {s0, s1, s2, s3, s4, s5, s6, s7}"                                \
                   : [a] "+r"(a), [b] "+r"(b)                                                      \
                   :                                                                               \
                   : "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11",     \
                     "s12", "s13", "s14", "s15", "memory")

void sf_arm_dsp_multiply(float *a, const float *b, uint32_t n) {
    for (const float *end = a + (n & ~7u); a != end;) {
        EIGHT("vmul.f32");
    }
    for (uint32_t i = 0; i < (n & 7u); i++) {
        a[i] *= b[i];
    }
}

void sf_arm_dsp_add(float *a, const float *b, uint32_t n) {
    for (const float *end = a + (n & ~7u); a != end;) {
        EIGHT("vadd.f32");
    }
    for (uint32_t i = 0; i < (n & 7u); i++) {
        a[i] += b[i];
    }
}
