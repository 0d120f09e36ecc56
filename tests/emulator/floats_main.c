/* Prints a hash of sums, differences, products, conversions and quotients of floats and integers of
 * every kind. The same program on another machine has to print the same. */
#include "random32.h"
#include "sf_kernels.h"

#include <stddef.h>

enum { PAIRS = 60000 };

/* Any bits; exponents near 1; few bits, for ties; subnormal; the ends. */
static float operand(uint32_t kind) {
    static const uint32_t ends[] = {0,           0x00000001u, 0x007FFFFFu, 0x00800000u,
                                    0x3F800000u, 0x3F800001u, 0x7F7FFFFFu, 0x7F800000u};
    const uint32_t bits = random32(), sign = bits & 0x80000000u;
    switch (kind) {
    case 0: return sf_from_bits(bits);
    case 1: return sf_from_bits(sign | (bits & 0x007FFFFFu) | (115u + (bits >> 23) % 25u) << 23);
    case 2: return sf_from_bits(sign | (bits & 0x00700003u) | (122u + (bits >> 23) % 10u) << 23);
    case 3: return sf_from_bits(sign | (bits & 0x03FFFFFFu));
    default: return sf_from_bits(sign | ends[bits % 8u]);
    }
}

static uint32_t mix(uint32_t h, float value) {
    const uint32_t bits = sf_bits(value);
    return h * 0x01000193u + (bits << 1 > 0xFF000000u ? 0x7FC00000u : bits);
}

#if __STDC_HOSTED__ && !defined(__ARM_ARCH_PROFILE)
#include <math.h>
#define sf_sqrt sqrtf
#else
float sf_sqrt(float x);
#endif

/* sum, difference, product, compare; conversions; division of integers; root, whole number */
static void hashes(uint32_t *h) {
    for (uint32_t i = 0; i < PAIRS; i++) {
        const volatile float a = operand(i % 5u), b = operand(i / 5u % 5u);
        const uint32_t u = random32() >> (i & 31u), v = (random32() >> (i / 32u & 31u)) + 1u;
        h[0] = mix(h[0], a + b);
        h[1] = mix(h[1], a - b);
        h[2] = mix(h[2], a * b);
        h[3] = h[3] * 5u + (a < b ? 1u : 0u) + (a >= b ? 2u : 0u);
        h[4] = mix(h[4], (float)(int32_t)u);
        h[5] = mix(h[5], (float)((int64_t)u * (int32_t)v));
        h[6] = h[6] * 31u + u / v + u % v;
        h[7] = mix(h[7], sf_sqrt(a));
        h[8] = h[8] * 31u + (uint32_t)(sf_truncate((float)u * 3.0f) >> 3);
    }
}

static size_t text(char *out) {
    uint32_t h[9] = {0};
    size_t n = 0;
    hashes(h);
    for (uint32_t i = 0; i < 9u; i++) {
        for (uint32_t d = 0; d < 8u; d++) {
            out[n++] = "0123456789abcdef"[h[i] >> (28u - 4u * d) & 15u];
        }
        out[n++] = ' ';
    }
    out[n - 1u] = '\n';
    return n;
}

#if __STDC_HOSTED__ && !defined(__ARM_ARCH_PROFILE)
#include <stdio.h>

int main(void) {
    char line[96];
    return fwrite(line, text(line), 1, stdout) == 1 ? 0 : 1;
}
#else
#include "bare.h"
#include "sf_port.h"

int main(void) {
    char line[96];
    sf_board_init();
    sf_uart_init();
    const size_t n = text(line);
    sf_port_write((const uint8_t *)line, n);
    for (;;) {
        sf_port_idle();
    }
}
#endif
