#include "cobs.h"

size_t sf_cobs_encode(const uint8_t *src, size_t n, uint8_t *dst) {
    size_t code_at = 0; /* where the length of the open group goes */
    size_t out = 1;
    uint8_t code = 1;
    for (size_t i = 0; i < n; i++) {
        if (src[i] != 0) {
            dst[out++] = src[i];
            code++;
        }
        /* A full group ends without a zero; at the very end none needs to follow it. */
        if (src[i] == 0 || (code == 0xffu && i + 1 < n)) {
            dst[code_at] = code;
            code_at = out++;
            code = 1;
        }
    }
    dst[code_at] = code;
    return out;
}

size_t sf_cobs_decode(const uint8_t *src, size_t n, uint8_t *dst) {
    size_t in = 0;
    size_t out = 0;
    while (in < n) {
        const uint8_t code = src[in++];
        if (code == 0 || (size_t)code - 1u > n - in) {
            return SF_COBS_BAD;
        }
        for (uint8_t i = 1; i < code; i++) {
            if (src[in] == 0) {
                return SF_COBS_BAD;
            }
            dst[out++] = src[in++];
        }
        if (code != 0xffu && in < n) {
            dst[out++] = 0;
        }
    }
    return out;
}
