/* The C library's part of the firmware, for compilers that come without one. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#undef memcpy
#undef memset

void *memcpy(void *restrict to, const void *restrict from, size_t n) {
    uint8_t *t = to;
    const uint8_t *f = from;
    if ((((uintptr_t)t | (uintptr_t)f) & 3u) == 0) {
        for (; n >= 4; n -= 4, t += 4, f += 4) {
            *(uint32_t *)(void *)t = *(const uint32_t *)(const void *)f;
        }
    }
    for (; n > 0; n--) {
        *t++ = *f++;
    }
    return to;
}

void *memset(void *to, int value, size_t n) {
    uint8_t *t = to;
    for (; n > 0; n--) {
        *t++ = (uint8_t)value;
    }
    return to;
}

int memcmp(const void *a, const void *b, size_t n) {
    const uint8_t *p = a, *q = b;
    for (; n > 0; n--, p++, q++) {
        if (*p != *q) {
            return *p < *q ? -1 : 1;
        }
    }
    return 0;
}

size_t strlen(const char *s) {
    size_t n = 0;
    while (s[n] != '\0') {
        n++;
    }
    return n;
}

/* The nearest float, ties do not occur: the root of a float is never half way between two. Zeros,
 * infinity and NaN are their own root; a negative number has none. */
float sqrtf(float x) {
    union {
        float f;
        uint32_t u;
    } v = {x};
    if (v.u << 1 == 0 || v.u << 1 > 0xFF000000u || v.u == 0x7F800000u) {
        return x;
    }
    if (v.u >> 31 != 0) {
        v.u = 0x7FC00000u; /* NaN */
        return v.f;
    }
    int32_t e = (int32_t)(v.u >> 23);
    uint32_t m = v.u & 0x007FFFFFu;
    if (e == 0) { /* subnormal */
        for (e = 1; m < 0x00800000u; e--) {
            m <<= 1;
        }
    } else {
        m |= 0x00800000u;
    }
    e -= 127;
    if ((e & 1) != 0) { /* the exponent is halved */
        m <<= 1;
        e--;
    }
    /* root = floor(sqrt(m * 2^25)): 25 bits, one more than the result keeps. */
    uint64_t left = (uint64_t)m << 25;
    uint64_t root = 0;
    for (uint64_t bit = (uint64_t)1 << 48; bit != 0; bit >>= 2) {
        if (left >= root + bit) {
            left -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
    }
    v.u = ((uint32_t)(e / 2 + 126) << 23) + (uint32_t)((root + 1u) >> 1);
    return v.f;
}
