/* Norm and activations where floats are software: roundings and powers of two on their bits. */
#include "armv6m.h"

void sf_armv6m_rmsnorm(const float *x, const float *w, uint32_t n, float eps, float *out) {
    uint32_t top = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t b = sf_bits(x[i]) & 0x7FFFFFFFu;
        top = b > top ? b : top;
    }
    const int32_t s = sf_norm_exponent(top);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t q = (uint32_t)sf_v6m_round(sf_bits(x[i]), 150 - s);
        sum += q * q; /* at most 2^30 */
    }
    const float mean = sf_whole(sum) / (float)n * sf_pow2(-2 * s);
    const float inverse = 1.0f / sf_sqrt(mean + eps);
    for (uint32_t i = 0; i < n; i++) {
        const float y = x[i] * inverse;
        out[i] = y * w[i];
    }
}

float sf_armv6m_sigmoid(float x) {
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

void sf_armv6m_silu(const float *x, uint32_t n, float *out) {
    for (uint32_t i = 0; i < n; i++) {
        out[i] = x[i] * sf_armv6m_sigmoid(x[i]);
    }
}

void sf_armv6m_gelu_tanh(const float *x, uint32_t n, float *out) {
    for (uint32_t i = 0; i < n; i++) {
        const float square = x[i] * x[i];
        const float inner = 0.07135481f * square;
        out[i] = x[i] * sf_armv6m_sigmoid(x[i] * (inner + 1.5957691f));
    }
}
