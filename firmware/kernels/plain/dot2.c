/* Rows times two activation vectors, for tiers that do no better: one after the other. */
#include "sf_kernels.h"

void sf_plain_dot2_q4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *const *out) {
    sf_dot_q4(row, n, x, out[0]);
    sf_dot_q4(row, n, x + 1, out[1]);
}

void sf_plain_dot2_q8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *const *out) {
    sf_dot_q8(row, n, x, out[0]);
    sf_dot_q8(row, n, x + 1, out[1]);
}

void sf_plain_dot2_s4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *const *out) {
    sf_dot_s4(row, n, x, out[0]);
    sf_dot_s4(row, n, x + 1, out[1]);
}
