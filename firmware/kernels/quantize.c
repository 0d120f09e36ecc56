/* Activations to block floating point: scales are powers of two, so nothing is divided. */
#include "sf_kernels.h"
#include "tiers.h"

#ifndef SF_TIER_QUANTIZE

/* Exponent that brings a magnitude with these bits to [2^top, 2^(top+1)). */
static int32_t exponent_for(uint32_t magnitude, int32_t top, int32_t max) {
    const int32_t s = top - ((int32_t)(magnitude >> 23) - 127);
    return s < SF_S_MIN ? SF_S_MIN : (s > max ? max : s);
}

static uint32_t max_magnitude(const float *x, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t b = sf_bits(x[i]) & 0x7FFFFFFFu;
        best = b > best ? b : best;
    }
    return best;
}

#ifdef SF_ARMV6M

typedef int32_t scale;

static scale scale_for(uint32_t top, int32_t s) {
    return top >= 0x00800000u ? 150 - s : 300; /* from 280 on, every float gives 0 */
}

static int32_t scaled(float x, scale base, int32_t limit) {
    return sf_v6m_quantize(x, base, limit);
}

#else

typedef float scale;

static scale scale_for(uint32_t top, int32_t s) {
    return top >= 0x00800000u ? sf_pow2(s) : 0.0f;
}

static int32_t scaled(float x, scale factor, int32_t limit) {
    const int32_t v = sf_rint(x * factor);
    return v > limit ? limit : (v < -limit ? -limit : v);
}

#endif

void sf_quantize(const float *x, uint32_t n, sf_bfp *v) {
    const uint32_t groups = (n + SF_GROUP - 1u) / SF_GROUP;
    int32_t lowest = SF_S_MAX;
    v->groups = groups;
    for (uint32_t g = 0; g < groups; g++) {
        const uint32_t len = n - g * SF_GROUP < SF_GROUP ? n - g * SF_GROUP : SF_GROUP;
        const uint32_t top = max_magnitude(x + g * SF_GROUP, len);
        v->k[g] = (uint8_t)(top >> 23); /* the exponent field, for the second walk */
        if (top >= 0x00800000u) {
            const int32_t s = exponent_for(top, 6, SF_S_MAX);
            lowest = s < lowest ? s : lowest;
        }
    }
    v->s = lowest;
    for (uint32_t g = 0; g < groups; g++) {
        const float *in = x + g * SF_GROUP;
        int8_t *q = v->q + g * SF_GROUP;
        const uint32_t len = n - g * SF_GROUP < SF_GROUP ? n - g * SF_GROUP : SF_GROUP;
        const uint32_t top = (uint32_t)v->k[g] << 23;
        int32_t sum = 0;
        int32_t s = top >= 0x00800000u ? exponent_for(top, 6, SF_S_MAX) : lowest;
        if (s > lowest + SF_SHIFT_SPAN) {
            s = lowest + SF_SHIFT_SPAN;
        }
        const scale by = scale_for(top, s);
        for (uint32_t i = 0; i < len; i++) {
            const int32_t r = scaled(in[i], by, 127);
            q[i] = (int8_t)r;
            sum += r;
        }
        for (uint32_t i = len; i < SF_GROUP; i++) {
            q[i] = 0;
        }
        v->k[g] = (uint8_t)(lowest + SF_SHIFT_SPAN - s);
        v->sum[g] = sum * (int32_t)(1u << v->k[g]);
    }
}

int32_t sf_quantize16(const float *x, uint32_t n, int16_t *q) {
    const uint32_t top = max_magnitude(x, n);
    const int32_t s = top >= 0x00800000u ? exponent_for(top, 14, 60) : 60;
    const scale by = scale_for(top, s);
    for (uint32_t i = 0; i < n; i++) {
        q[i] = (int16_t)scaled(x[i], by, 32767);
    }
    return s;
}

int32_t sf_quantize8(const float *x, uint32_t n, int8_t *q) {
    const uint32_t top = max_magnitude(x, n);
    const int32_t s = top >= 0x00800000u ? exponent_for(top, 6, 60) : 60;
    const scale by = scale_for(top, s);
    for (uint32_t i = 0; i < n; i++) {
        q[i] = (int8_t)scaled(x[i], by, 127);
    }
    return s;
}

#endif
