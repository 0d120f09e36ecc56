/* A row of the embedding as floats. */
#include "sf_kernels.h"

void sf_plain_row_q4(const uint8_t *row, uint32_t dim, float *x) {
    const uint8_t *scales = row + dim / 2u;
    for (uint32_t g = 0; g < dim / SF_GROUP; g++) {
        const uint32_t dm = sf_load32(scales + 4u * g);
        const float d = (float)sf_half(dm & 0xFFFFu) * sf_pow2(-24);
        const float m = (float)sf_half(dm >> 16) * sf_pow2(-24);
        for (uint32_t i = 0; i < SF_GROUP / 2u; i++) {
            const uint32_t w = row[g * (SF_GROUP / 2u) + i];
            const float lo = d * (float)(w & 15u);
            const float hi = d * (float)(w >> 4);
            x[g * SF_GROUP + i] = lo + m;
            x[g * SF_GROUP + SF_GROUP / 2u + i] = hi + m;
        }
    }
}

void sf_plain_row_q8(const uint8_t *row, uint32_t dim, float *x) {
    for (uint32_t g = 0; g < dim / SF_GROUP; g++) {
        const float d = (float)sf_half(sf_load16(row + dim + 2u * g)) * sf_pow2(-24);
        for (uint32_t i = 0; i < SF_GROUP; i++) {
            x[g * SF_GROUP + i] = d * (float)(int8_t)row[g * SF_GROUP + i];
        }
    }
}
