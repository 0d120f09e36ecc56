/* Norm, activations and RoPE. Sums are integers; what is float is elementwise. */
#include "sf_kernels.h"

#include <math.h>

/* A tier may compile this again, with its flags and its name. */
#ifndef SF_NAME
#define SF_NAME(kernel) sf_plain_##kernel
#endif

void SF_NAME(rmsnorm)(const float *x, const float *w, uint32_t n, float eps, float *out) {
    uint32_t top = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t b = sf_bits(x[i]) & 0x7FFFFFFFu;
        top = b > top ? b : top;
    }
    const int32_t s = sf_norm_exponent(top);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        const int32_t q = sf_rint(x[i] * sf_pow2(s));
        sum += (uint64_t)((int64_t)q * q);
    }
    const float mean = sf_whole(sum) / (float)n * sf_pow2(-2 * s);
    const float inverse = 1.0f / sqrtf(mean + eps);
    for (uint32_t i = 0; i < n; i++) {
        const float y = x[i] * inverse;
        out[i] = y * w[i];
    }
}

void SF_NAME(layernorm)(const float *x, const float *w, const float *b, uint32_t n, float eps,
                        float *out) {
    uint32_t top = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t bits = sf_bits(x[i]) & 0x7FFFFFFFu;
        top = bits > top ? bits : top;
    }
    const int32_t s = sf_norm_exponent(top);
    int64_t sum = 0, squares = 0;
    for (uint32_t i = 0; i < n; i++) {
        const int32_t q = sf_rint(x[i] * sf_pow2(s));
        sum += q;
        squares += (int64_t)q * q;
    }
    const uint64_t spread = (uint64_t)((int64_t)n * squares - sum * sum);
    const float mean = sf_sum_to_float(sum, -(24 + SF_SHIFT_SPAN)) / (float)n * sf_pow2(-s);
    const float variance = sf_whole(spread) / (float)n / (float)n * sf_pow2(-2 * s);
    const float inverse = 1.0f / sqrtf(variance + eps);
    for (uint32_t i = 0; i < n; i++) {
        const float y = (x[i] - mean) * inverse;
        const float scaled = y * w[i];
        out[i] = scaled + b[i];
    }
}

float SF_NAME(sigmoid)(float x) {
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

#ifndef SF_SILU /* the tier has its own */
void SF_NAME(silu)(const float *x, uint32_t n, float *out) {
    for (uint32_t i = 0; i < n; i++) {
        out[i] = x[i] * SF_NAME(sigmoid)(x[i]);
    }
}
#endif

void SF_NAME(multiply)(float *a, const float *b, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        a[i] *= b[i];
    }
}

void SF_NAME(add)(float *a, const float *b, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        a[i] += b[i];
    }
}

void SF_NAME(gelu_tanh)(const float *x, uint32_t n, float *out) {
    /* 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3) */
    for (uint32_t i = 0; i < n; i++) {
        const float square = x[i] * x[i];
        const float inner = 0.07135481f * square;
        out[i] = x[i] * SF_NAME(sigmoid)(x[i] * (inner + 1.5957691f));
    }
}

void SF_NAME(gelu)(const float *x, uint32_t n, float *out) {
    /* The normal distribution as a sigmoid of an odd polynomial. */
    for (uint32_t i = 0; i < n; i++) {
        const float square = x[i] * x[i];
        const float z = square < 49.0f ? square : 49.0f;
        float p = z * -7.0304013e-4f;
        p = (p + 7.4011322e-2f) * z;
        p = p + 1.5950158f;
        out[i] = x[i] * SF_NAME(sigmoid)(x[i] * p);
    }
}

void SF_NAME(relu)(const float *x, uint32_t n, float *out) {
    for (uint32_t i = 0; i < n; i++) { /* in integers, for cores without floats */
        const uint32_t b = sf_bits(x[i]);
        out[i] = sf_from_bits(b - 1u < 0x7F800000u ? b : 0u);
    }
}

void SF_NAME(rope_angles)(const uint32_t *inc, uint32_t half, uint32_t pos, float *cs) {
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

void SF_NAME(rope)(float *head, const float *cs, uint32_t half) {
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
