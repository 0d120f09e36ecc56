/* Activations to block floating point with MVE; the same integers as quantize.c. */
#include "mve.h"

static int32_t exponent_for(uint32_t magnitude, int32_t top, int32_t max) {
    const int32_t s = top - ((int32_t)(magnitude >> 23) - 127);
    return s < SF_S_MIN ? SF_S_MIN : (s > max ? max : s);
}

static uint32_t max_magnitude(const float *x, uint32_t n) {
    uint32x4_t best = vdupq_n_u32(0);
    for (uint32_t i = 0; i < n; i += 4u) {
        const mve_pred16_t p = vctp32q(n - i);
        const uint32x4_t bits = vreinterpretq_u32_f32(vldrwq_z_f32(x + i, p));
        best = vmaxq_u32(best, vandq_u32(bits, vdupq_n_u32(0x7FFFFFFFu)));
    }
    return vmaxvq_u32(0, best);
}

/* Four nearest integers within a limit; zeros past the end. */
static inline int32x4_t nearest(const float *x, float scale, int32_t limit, mve_pred16_t p) {
    const int32x4_t r = vcvtnq_s32_f32(vmulq_n_f32(vldrwq_z_f32(x, p), scale));
    return vmaxq_s32(vminq_s32(r, vdupq_n_s32(limit)), vdupq_n_s32(-limit));
}

static int32_t narrow(const float *x, uint32_t n, float scale, int8_t *q) {
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i += 4u) {
        const mve_pred16_t p = vctp32q(n - i);
        const int32x4_t r = nearest(x + i, scale, 127, p);
        sum = vaddvaq_s32(sum, r);
        vstrbq_p_s32(q + i, r, p);
    }
    return sum;
}

void sf_arm_mve_quantize(const float *x, uint32_t n, sf_bfp *v) {
    const uint32_t groups = (n + SF_GROUP - 1u) / SF_GROUP;
    int32_t lowest = SF_S_MAX;
    v->groups = groups;
    for (uint32_t g = 0; g < groups; g++) {
        const uint32_t len = n - g * SF_GROUP < SF_GROUP ? n - g * SF_GROUP : SF_GROUP;
        const uint32_t top = max_magnitude(x + g * SF_GROUP, len);
        v->sum[g] = (int32_t)top; /* until its turn below */
        if (top >= 0x00800000u) {
            const int32_t s = exponent_for(top, 6, SF_S_MAX);
            lowest = s < lowest ? s : lowest;
        }
    }
    v->s = lowest;
    for (uint32_t g = 0; g < groups; g++) {
        int8_t *q = v->q + g * SF_GROUP;
        const uint32_t len = n - g * SF_GROUP < SF_GROUP ? n - g * SF_GROUP : SF_GROUP;
        const uint32_t top = (uint32_t)v->sum[g];
        int32_t s = top >= 0x00800000u ? exponent_for(top, 6, SF_S_MAX) : lowest;
        if (s > lowest + SF_SHIFT_SPAN) {
            s = lowest + SF_SHIFT_SPAN;
        }
        const float scale = top >= 0x00800000u ? sf_pow2(s) : 0.0f;
        const int32_t sum = narrow(x + g * SF_GROUP, len, scale, q);
        for (uint32_t i = len; i < SF_GROUP; i++) {
            q[i] = 0;
        }
        v->k[g] = (uint8_t)(lowest + SF_SHIFT_SPAN - s);
        v->sum[g] = (int32_t)((uint32_t)sum << v->k[g]);
    }
}

int32_t sf_arm_mve_quantize16(const float *x, uint32_t n, int16_t *q) {
    const uint32_t top = max_magnitude(x, n);
    const int32_t s = top >= 0x00800000u ? exponent_for(top, 14, 60) : 60;
    const float scale = top >= 0x00800000u ? sf_pow2(s) : 0.0f;
    for (uint32_t i = 0; i < n; i += 4u) {
        const mve_pred16_t p = vctp32q(n - i);
        vstrhq_p_s32(q + i, nearest(x + i, scale, 32767, p), p);
    }
    return s;
}

int32_t sf_arm_mve_quantize8(const float *x, uint32_t n, int8_t *q) {
    const uint32_t top = max_magnitude(x, n);
    const int32_t s = top >= 0x00800000u ? exponent_for(top, 6, 60) : 60;
    (void)narrow(x, n, top >= 0x00800000u ? sf_pow2(s) : 0.0f, q);
    return s;
}
