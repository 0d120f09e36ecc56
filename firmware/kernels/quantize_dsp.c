/* Activations to block floating point on a Cortex-M with DSP; the same integers as quantize.c. */
#include "arm_dsp.h"

#ifdef SF_DSP

/* Exponent and 7 bits of the largest magnitude of n > 0 values: the upper half of its float. */
static uint32_t top_half(const float *x, uint32_t n) {
    const uint32_t mask = 0x7FFF7FFFu;
    uint32_t best = 0;
    for (uint32_t i = 0; i + 1u < n; i += 2u) {
        uint32_t d, w = sf_high2(sf_bits(x[i]), sf_bits(x[i + 1u])) & mask;
        __asm("uqsub16 %0, %1, %2" : "=r"(d) : "r"(w), "r"(best));
        __asm("uadd16 %0, %0, %1" : "+r"(best) : "r"(d));
    }
    uint32_t low = best & 0xFFFFu, high = best >> 16;
    if (n % 2u != 0) {
        const uint32_t w = sf_bits(x[n - 1u]) >> 16 & 0x7FFFu;
        low = w > low ? w : low;
    }
    return low > high ? low : high;
}

/* Nearest integer, ties to even. */
static inline uint32_t nearest(float x) {
    __asm("vcvtr.s32.f32 %0, %0" : "+t"(x));
    return sf_bits(x);
}

static inline int32_t clamp(uint32_t r, int32_t limit) {
    const int32_t v = (int32_t)r;
    return v > limit ? limit : (v < -limit ? -limit : v);
}

/* 8-bit values of one exponent; returns their sum. */
static int32_t narrow(const float *x, uint32_t n, float scale, uint32_t top, int8_t *q) {
    int32_t sum = 0;
    uint32_t i = 0;
    /* Only a magnitude whose upper bits are all ones rounds up to 128. */
    if ((top & 0x7Fu) != 0x7Fu && ((uintptr_t)q & 3u) == 0) {
        for (; i + 3u < n; i += 4u) {
            const uint32_t even = sf_low2(nearest(x[i] * scale), nearest(x[i + 2u] * scale));
            const uint32_t odd = sf_low2(nearest(x[i + 1u] * scale), nearest(x[i + 3u] * scale));
            uint32_t a, b;
            __asm("uxtb16 %0, %1" : "=r"(a) : "r"(even));
            __asm("uxtb16 %0, %1" : "=r"(b) : "r"(odd));
            sum = sf_mac2(even, 0x00010001u, sum);
            sum = sf_mac2(odd, 0x00010001u, sum);
            a |= b << 8;
            memcpy(q + i, &a, sizeof a);
        }
    }
    for (; i < n; i++) {
        const int32_t r = clamp(nearest(x[i] * scale), 127);
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

void sf_quantize(const float *x, uint32_t n, sf_bfp *v) {
    const uint32_t groups = (n + SF_GROUP - 1u) / SF_GROUP;
    int32_t lowest = SF_S_MAX;
    v->groups = groups;
    for (uint32_t g = 0; g < groups; g++) {
        const uint32_t len = n - g * SF_GROUP < SF_GROUP ? n - g * SF_GROUP : SF_GROUP;
        const uint32_t top = top_half(x + g * SF_GROUP, len);
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

int32_t sf_quantize16(const float *x, uint32_t n, int16_t *q) {
    const uint32_t top = top_half(x, n);
    const int32_t s = top >= 0x0080u ? exponent_for(top, 14, 60) : 60;
    const float scale = top >= 0x0080u ? sf_pow2(s) : 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        q[i] = (int16_t)clamp(nearest(x[i] * scale), 32767);
    }
    return s;
}

int32_t sf_quantize8(const float *x, uint32_t n, int8_t *q) {
    const uint32_t top = top_half(x, n);
    const int32_t s = top >= 0x0080u ? exponent_for(top, 6, 60) : 60;
    (void)narrow(x, n, top >= 0x0080u ? sf_pow2(s) : 0.0f, top, q);
    return s;
}

#endif
