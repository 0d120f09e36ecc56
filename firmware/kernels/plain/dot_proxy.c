/* Rows of k-bit weights times an activation vector; a weight is d * (2u - 1) with 1 bit,
 * d * (u - top) with more. Row: blocks of eight groups, of planes that have a word a group, then
 * d [groups]; the last block has what is left. Bytes of a word hold weights 4 s, 4 s + 1, 4 s + 2
 * and 4 s + 3 at the same bits. */
#include "sf_kernels.h"

/* The u of a group, four in each of eight words, from words that lie `step` bytes apart. */
static void stored_weights(const uint8_t *w, uint32_t step, uint32_t bits, uint32_t *u) {
    switch (bits) {
    case 1:
        for (uint32_t s = 0, v = sf_load32(w); s < 8u; s++) {
            u[s] = v >> s & 0x01010101u;
        }
        return;
    case 4:
        for (uint32_t s = 0; s < 4u; s++, w += step) {
            const uint32_t v = sf_load32(w);
            u[s] = v & 0x0F0F0F0Fu;
            u[s + 4u] = v >> 4 & 0x0F0F0F0Fu;
        }
        return;
    default: break;
    }
    for (uint32_t s = 0; s < 4u; s++) {
        const uint32_t v = sf_load32(w + s / 2u * step) >> s % 2u * 2u;
        u[s] = v & 0x03030303u;
        u[s + 4u] = v >> 4 & 0x03030303u;
    }
    if (bits == 3u) {
        for (uint32_t s = 0, v = sf_load32(w + 2u * step); s < 8u; s++) {
            u[s] |= (v >> s & 0x01010101u) << 2;
        }
    }
}

/* The sum of their products with q [32], below 2^16. */
static int32_t products(const uint32_t *u, const int8_t *q) {
    int32_t sum = 0;
    for (uint32_t s = 0; s < 8u; s++, q += 4) {
        const uint32_t v = u[s];
        sum += (int32_t)(v & 0xFFu) * q[0] + (int32_t)(v >> 8 & 0xFFu) * q[1] +
               (int32_t)(v >> 16 & 0xFFu) * q[2] + (int32_t)(v >> 24) * q[3];
    }
    return sum;
}

void sf_plain_dot_proxy(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                        float *out) {
    const int32_t factor = bits == 1u ? 2 : 1;
    const int32_t less = bits == 1u ? 1 : (int32_t)(1u << (bits - 1u)) - 1;
    const uint32_t groups = x->groups;
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *scales = row[r] + groups * bits * 4u;
        int64_t acc = 0;
        for (uint32_t g = 0; g < groups; g++) {
            const uint32_t c = g % 8u, left = groups - (g - c), step = left < 8u ? 4u * left : 32u;
            uint32_t u[8];
            stored_weights(row[r] + (g - c) * bits * 4u + 4u * c, step, bits, u);
            const int32_t isum = factor * products(u, x->q + SF_GROUP * g);
            const int32_t sum = isum * (int32_t)(1u << x->k[g]) - less * x->sum[g];
            acc += (int64_t)sum * sf_half(sf_load16(scales + 2u * g));
        }
        out[r] = sf_sum_to_float(acc, x->s);
    }
}

static uint32_t count_ones(uint32_t v) {
    v -= v >> 1 & 0x55555555u;
    v = (v & 0x33333333u) + (v >> 2 & 0x33333333u);
    return ((v + (v >> 4)) & 0x0F0F0F0Fu) * 0x01010101u >> 24;
}

void sf_plain_dot_signs(const uint8_t *const *row, uint32_t n, const uint32_t *sign,
                        uint32_t groups, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        uint32_t same = SF_GROUP * groups;
        for (uint32_t g = 0; g < groups; g++) {
            same -= count_ones(sf_load32(row[r] + 4u * g) ^ sign[g]);
        }
        out[r] = (float)(int32_t)same;
    }
}
