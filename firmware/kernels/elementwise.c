/* Norm, activations and RoPE. Sums are integers; what is float is elementwise. */
#include "arm_dsp.h"
#include "armv6m.h"
#include "sf_kernels.h"

#include <math.h>

#ifndef SF_ARMV6M
float sf_sqrt(float x) {
    return sqrtf(x);
}
#endif

#ifdef SF_DSP

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

#endif

void sf_rmsnorm(const float *x, const float *w, uint32_t n, float eps, float *out) {
#ifdef SF_DSP
    const uint32_t top = sf_top_half(x, n) << 16;
#else
    uint32_t top = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t b = sf_bits(x[i]) & 0x7FFFFFFFu;
        top = b > top ? b : top;
    }
#endif
    int32_t s = 14 - ((int32_t)(top >> 23) - 127);
    s = s < SF_S_MIN ? SF_S_MIN : (s > 60 ? 60 : s);
#ifdef SF_DSP
    const uint64_t sum = squares(x, n, sf_pow2(s));
#else
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
#ifdef SF_ARMV6M
        const uint32_t q = (uint32_t)sf_v6m_round(sf_bits(x[i]), 150 - s);
        sum += q * q; /* at most 2^30 */
#else
        const int32_t q = sf_rint(x[i] * sf_pow2(s));
        sum += (uint64_t)((int64_t)q * q);
#endif
    }
#endif
    const float mean = sf_whole(sum) / (float)n * sf_pow2(-2 * s);
    const float inverse = 1.0f / sf_sqrt(mean + eps);
#ifdef SF_DSP
    scaled(x, w, n, inverse, out);
#else
    for (uint32_t i = 0; i < n; i++) {
        const float y = x[i] * inverse;
        out[i] = y * w[i];
    }
#endif
}

#ifdef SF_ARMV6M

float sf_sigmoid(float x) {
    const uint32_t limit = 0x49F80000u; /* 31 * 65536 */
    uint32_t e, t = sf_bits(sf_from_bits(sf_bits(x) & 0x7FFFFFFFu) * 94548.46f);
    t = t < limit ? t : limit; /* NaN too */
    const uint32_t m = sf_exp2n(sf_v6m_truncate(t), &e);
    const uint32_t inverse = 0xFFFFFFFFu / (65536u + (m >> e));
    const uint32_t b = sf_bits(x);
    if (b > 0x80000000u && b <= 0xFF800000u) { /* below 0 */
        return sf_v6m_float((int64_t)(m * inverse), -32 - (int32_t)e);
    }
    return sf_v6m_float((int64_t)inverse, -16);
}

#else

float sf_sigmoid(float x) {
    float t = __builtin_fabsf(x) * 94548.46f; /* log2(e) * 65536 */
    uint32_t e;
    if (!(t < 2031616.0f)) { /* 31 * 65536; NaN too */
        t = 2031616.0f;
    }
    const uint32_t m = sf_exp2n((uint32_t)t, &e);
    const uint32_t inverse = 0xFFFFFFFFu / (65536u + (m >> e));
    if (x < 0.0f) {
        return (float)(m * inverse) * sf_pow2(-32 - (int32_t)e);
    }
    return (float)inverse * sf_pow2(-16);
}

#endif

#ifdef SF_DSP

/* sf_sigmoid and the product; whether x is below 0 is asked of its sign, because for -0 both
 * sides are one half. */
void sf_silu(const float *x, uint32_t n, float *out) {
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

void sf_multiply(float *a, const float *b, uint32_t n) {
    for (const float *end = a + (n & ~7u); a != end;) {
        EIGHT("vmul.f32");
    }
    for (uint32_t i = 0; i < (n & 7u); i++) {
        a[i] *= b[i];
    }
}

void sf_add(float *a, const float *b, uint32_t n) {
    for (const float *end = a + (n & ~7u); a != end;) {
        EIGHT("vadd.f32");
    }
    for (uint32_t i = 0; i < (n & 7u); i++) {
        a[i] += b[i];
    }
}

#else

void sf_silu(const float *x, uint32_t n, float *out) {
    for (uint32_t i = 0; i < n; i++) {
        out[i] = x[i] * sf_sigmoid(x[i]);
    }
}

void sf_multiply(float *a, const float *b, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        a[i] *= b[i];
    }
}

void sf_add(float *a, const float *b, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        a[i] += b[i];
    }
}

#endif

void sf_gelu_tanh(const float *x, uint32_t n, float *out) {
    /* 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3) */
    for (uint32_t i = 0; i < n; i++) {
        const float square = x[i] * x[i];
        const float inner = 0.07135481f * square;
        out[i] = x[i] * sf_sigmoid(x[i] * (inner + 1.5957691f));
    }
}

void sf_relu(const float *x, uint32_t n, float *out) {
    for (uint32_t i = 0; i < n; i++) {
        out[i] = x[i] > 0.0f ? x[i] : 0.0f;
    }
}

void sf_rope_angles(const uint32_t *inc, uint32_t half, uint32_t pos, float *cs) {
    for (uint32_t i = 0; i < half; i++) {
        const uint32_t phase = pos * inc[i];
        const uint32_t quadrant = (phase + 0x20000000u) >> 30;
        const int32_t r = (int32_t)(phase - (quadrant << 30));
        const float x = (float)r * 1.4629180793e-9f; /* 2 pi / 2^32 */
        const float z = x * x;
        float s = z * -1.9515296e-4f;
        s = (s + 8.332161e-3f) * z;
        s = (s - 1.6666655e-1f) * z;
        s = s * x;
        s = s + x;
        float c = z * 2.4433157e-5f;
        c = (c - 1.3887316e-3f) * z;
        c = (c + 4.1666646e-2f) * z;
        c = (c - 0.5f) * z;
        c = c + 1.0f;
        cs[2u * i] = quadrant & 1u ? s : c;
        cs[2u * i + 1u] = quadrant & 1u ? c : s;
        if (quadrant == 1u || quadrant == 2u) {
            cs[2u * i] = -cs[2u * i];
        }
        if (quadrant >= 2u) {
            cs[2u * i + 1u] = -cs[2u * i + 1u];
        }
    }
}

void sf_rope(float *head, const float *cs, uint32_t half) {
    for (uint32_t i = 0; i < half; i++) {
        const float a = head[i];
        const float b = head[i + half];
        const float ac = a * cs[2u * i];
        const float as = a * cs[2u * i + 1u];
        const float bc = b * cs[2u * i];
        const float bs = b * cs[2u * i + 1u];
        head[i] = ac - bs;
        head[i + half] = bc + as;
    }
}
