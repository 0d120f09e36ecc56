/* Activations to block floating point on a Cortex-M with DSP; the same integers as quantize.c. */
#include "dsp.h"

static inline int32_t clamp(int32_t v, int32_t limit) {
    return v > limit ? limit : (v < -limit ? -limit : v);
}

/* 8-bit values of one exponent; returns their sum. */
static int32_t narrow(const float *x, uint32_t n, float scale, uint32_t top, int8_t *q) {
    int32_t sum = 0;
    uint32_t i = 0;
    /* Only a magnitude whose upper bits are all ones rounds up to 128. */
    if ((top & 0x7Fu) != 0x7Fu && ((uintptr_t)q & 3u) == 0) {
        const float *from = x;
        int8_t *to = q;
        /* clang-format off */
#define FOUR(word, a, b, c, d) /* products of floats to bytes, and their sum with 128 added to each */ \
    "vmul.f32 " a ", " a ", %[f]\n\tvmul.f32 " b ", " b ", %[f]\n\t"                              \
    "vmul.f32 " c ", " c ", %[f]\n\tvmul.f32 " d ", " d ", %[f]\n\t"                              \
    "vcvtr.s32.f32 " a ", " a "\n\tvcvtr.s32.f32 " b ", " b "\n\t"                                \
    "vcvtr.s32.f32 " c ", " c "\n\tvcvtr.s32.f32 " d ", " d "\n\t"                                \
    "vmov " word ", r12, " a ", " b "\n\t"                                                        \
    "bfi " word ", r12, #8, #8\n\t"                                                               \
    "vmov r12, lr, " c ", " d "\n\t"                                                              \
    "bfi " word ", r12, #16, #8\n\tbfi " word ", lr, #24, #8\n\t"                                \
    "eor r12, " word ", #0x80808080\n\t"                                                          \
    "usada8 %[s], r12, %[zero], %[s]\n\t"
        for (; i + 7u < n; i += 8u) {
            __asm volatile("vldmia %[x]!, {s8, s9, s10, s11, s12, s13, s14, s15}\n\t"
                  FOUR("r4", "s8", "s9", "s10", "s11") FOUR("r5", "s12", "s13", "s14", "s15")
                  "strd r4, r5, [%[q]], #8"
                  : [x] "+r"(from), [q] "+r"(to), [s] "+r"(sum)
                  : [f] "t"(scale), [zero] "r"(0)
                  : "r4", "r5", "r12", "lr", "s8", "s9", "s10", "s11", "s12", "s13", "s14", "s15", "memory");
        }
        for (; i + 3u < n; i += 4u) {
            __asm volatile("vldmia %[x]!, {s12, s13, s14, s15}\n\t"
                  FOUR("r4", "s12", "s13", "s14", "s15")
                  "str r4, [%[q]], #4"
                  : [x] "+r"(from), [q] "+r"(to), [s] "+r"(sum)
                  : [f] "t"(scale), [zero] "r"(0)
                  : "r4", "r12", "lr", "s12", "s13", "s14", "s15", "memory");
        }
#undef FOUR
        /* clang-format on */
        sum -= 128 * (int32_t)i;
    }
    for (; i < n; i++) {
        const int32_t r = clamp(sf_nearest(x[i] * scale), 127);
        q[i] = (int8_t)r;
        sum += r;
    }
    return sum;
}

/* Exponent that brings a magnitude with this upper half to [2^top, 2^(top+1)). */
static int32_t exponent_for(uint32_t half, int32_t top, int32_t max) {
    const int32_t s = top - ((int32_t)(half >> 7) - 127);
    return s < SF_S_MIN ? SF_S_MIN : (s > max ? max : s);
}

void sf_arm_dsp_quantize(const float *x, uint32_t n, sf_bfp *v) {
    const uint32_t groups = (n + SF_GROUP - 1u) / SF_GROUP;
    int32_t lowest = SF_S_MAX;
    v->groups = groups;
    for (uint32_t g = 0; g < groups; g++) {
        const uint32_t len = n - g * SF_GROUP < SF_GROUP ? n - g * SF_GROUP : SF_GROUP;
        const uint32_t top = sf_top_half(x + g * SF_GROUP, len);
        v->sum[g] = (int32_t)top; /* until its turn below */
        if (top >= 0x0080u) {
            const int32_t s = exponent_for(top, 6, SF_S_MAX);
            lowest = s < lowest ? s : lowest;
        }
    }
    v->s = lowest;
    for (uint32_t g = 0; g < groups; g++) {
        const float *in = x + g * SF_GROUP;
        int8_t *q = v->q + g * SF_GROUP;
        const uint32_t len = n - g * SF_GROUP < SF_GROUP ? n - g * SF_GROUP : SF_GROUP;
        const uint32_t top = (uint32_t)v->sum[g];
        int32_t s = top >= 0x0080u ? exponent_for(top, 6, SF_S_MAX) : lowest;
        if (s > lowest + SF_SHIFT_SPAN) {
            s = lowest + SF_SHIFT_SPAN;
        }
        const float scale = top >= 0x0080u ? sf_pow2(s) : 0.0f;
        const int32_t sum = narrow(in, len, scale, top, q);
        for (uint32_t i = len; i < SF_GROUP; i++) {
            q[i] = 0;
        }
        v->k[g] = (uint8_t)(lowest + SF_SHIFT_SPAN - s);
        v->sum[g] = (int32_t)((uint32_t)sum << v->k[g]);
    }
}

int32_t sf_arm_dsp_quantize16(const float *x, uint32_t n, int16_t *q) {
    const uint32_t top = sf_top_half(x, n);
    const int32_t s = top >= 0x0080u ? exponent_for(top, 14, 60) : 60;
    const float scale = top >= 0x0080u ? sf_pow2(s) : 0.0f;
    uint32_t i = 0;
    /* As in narrow: only such a magnitude rounds up to 2^15. */
    if ((top & 0x7Fu) != 0x7Fu && ((uintptr_t)q & 3u) == 0) {
        const float *from = x;
        int16_t *to = q;
        for (; i + 3u < n; i += 4u) {
            /* clang-format off */
            __asm volatile("vldmia %[x]!, {s12, s13, s14, s15}\n\t"
                  "vmul.f32 s12, s12, %[f]\n\tvmul.f32 s13, s13, %[f]\n\t"
                  "vmul.f32 s14, s14, %[f]\n\tvmul.f32 s15, s15, %[f]\n\t"
                  "vcvtr.s32.f32 s12, s12\n\tvcvtr.s32.f32 s13, s13\n\t"
                  "vcvtr.s32.f32 s14, s14\n\tvcvtr.s32.f32 s15, s15\n\t"
                  "vmov r12, lr, s12, s13\n\tpkhbt r12, r12, lr, lsl #16\n\tstr r12, [%[q]], #4\n\t"
                  "vmov r12, lr, s14, s15\n\tpkhbt r12, r12, lr, lsl #16\n\tstr r12, [%[q]], #4"
                  : [x] "+r"(from), [q] "+r"(to)
                  : [f] "t"(scale)
                  : "r12", "lr", "s12", "s13", "s14", "s15", "memory");
            /* clang-format on */
        }
    }
    for (; i < n; i++) {
        q[i] = (int16_t)clamp(sf_nearest(x[i] * scale), 32767);
    }
    return s;
}

int32_t sf_arm_dsp_quantize8(const float *x, uint32_t n, int8_t *q) {
    const uint32_t top = sf_top_half(x, n);
    const int32_t s = top >= 0x0080u ? exponent_for(top, 6, 60) : 60;
    (void)narrow(x, n, top >= 0x0080u ? sf_pow2(s) : 0.0f, top, q);
    return s;
}
