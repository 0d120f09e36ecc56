/* Numbers that are the same on every machine (xorshift32). */
#ifndef RANDOM32_H
#define RANDOM32_H

#include <stdint.h>

static uint32_t seed = 1;

static uint32_t random32(void) {
    seed ^= seed << 13;
    seed ^= seed >> 17;
    seed ^= seed << 5;
    return seed;
}

#endif
