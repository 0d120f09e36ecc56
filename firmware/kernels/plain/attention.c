/* Query heads over an int8 KV cache: integer dot products, integer softmax, integer mixing. */
#include "attend.h"

const uint32_t sf_exp2_steps[32] = {
    0x7FFEA840u, 0x7D40AA20u, 0x7A91ABE0u, 0x77F0ADE0u, 0x755FAF80u, 0x72DBB140u, 0x7065B2E0u,
    0x6DFCB4A0u, 0x6BA1B620u, 0x6952B7E0u, 0x6711B940u, 0x64DBBAE0u, 0x62B2BC60u, 0x6095BDC0u,
    0x5E83BF20u, 0x5C7CC0A0u, 0x5A81C200u, 0x5891C340u, 0x56ABC480u, 0x54CFC5E0u, 0x52FEC720u,
    0x5137C840u, 0x4F79C980u, 0x4DC5CAC0u, 0x4C1BCBC0u, 0x4A79CD00u, 0x48E1CE00u, 0x4751CF20u,
    0x45CAD020u, 0x444BD120u, 0x42D4D240u, 0x4166D320u,
};

/* score[t] = q . k[t] for n positions. */
static void dots(const int16_t *restrict q, const int8_t *restrict k, uint32_t stride, uint32_t n,
                 uint32_t dim, int32_t *restrict score) {
    for (uint32_t t = 0; t < n; t++, k += stride) {
        int32_t dot = 0;
        for (uint32_t i = 0; i < dim; i++) {
            dot += (int32_t)q[i] * k[i];
        }
        score[t] = dot;
    }
}

/* acc[i] = the sum of c[t] * v[t][i] over n positions. */
static void mix(const int32_t *restrict c, const int8_t *restrict v, uint32_t stride, uint32_t n,
                uint32_t dim, int32_t *restrict acc) {
    for (uint32_t i = 0; i < dim; i++) {
        acc[i] = 0;
    }
    for (uint32_t t = 0; t < n; t++, v += stride) {
        for (uint32_t i = 0; i < dim; i++) {
            acc[i] += c[t] * v[i];
        }
    }
}

#define SF_NAME(kernel) sf_plain_##kernel
#include "attention_body.h"
