#include "frame.h"

uint16_t sf_crc16(const uint8_t *data, size_t n) {
    uint32_t crc = 0xFFFFu;
    for (size_t i = 0; i < n; i++) {
        crc ^= (uint32_t)data[i] << 8;
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc & 0x8000u) ? (crc << 1) ^ 0x1021u : crc << 1;
        }
    }
    return (uint16_t)(crc & 0xFFFFu);
}

size_t sf_cobs_encode(const uint8_t *in, size_t n, uint8_t *out) {
    size_t mark = 0, at = 1;
    uint8_t code = 1;
    for (size_t i = 0; i < n; i++) {
        if (in[i] != 0) {
            out[at++] = in[i];
            code++;
        }
        if (in[i] == 0 || code == 255) {
            out[mark] = code;
            mark = at++;
            code = 1;
        }
    }
    out[mark] = code;
    return at;
}

size_t sf_cobs_decode(const uint8_t *in, size_t n, uint8_t *out) {
    size_t at = 0, i = 0;
    while (i < n) {
        const uint8_t code = in[i++];
        if (code == 0 || i + code - 1u > n) {
            return 0;
        }
        for (uint8_t k = 1; k < code; k++) {
            out[at++] = in[i++];
        }
        if (code != 255 && i < n) {
            out[at++] = 0;
        }
    }
    return at;
}
