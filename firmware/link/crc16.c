#include "crc16.h"

uint16_t sf_crc16(uint16_t crc, const uint8_t *data, size_t n) {
    /* Four bits a step: 32 bytes of table instead of 512. */
    static const uint16_t table[16] = {
        0x0000, 0x1021, 0x2042, 0x3063, 0x4084, 0x50a5, 0x60c6, 0x70e7,
        0x8108, 0x9129, 0xa14a, 0xb16b, 0xc18c, 0xd1ad, 0xe1ce, 0xf1ef,
    };
    uint32_t c = crc;
    for (size_t i = 0; i < n; i++) {
        c ^= (uint32_t)data[i] << 8;
        c = ((c << 4) ^ table[(c >> 12) & 15u]) & 0xffffu;
        c = ((c << 4) ^ table[(c >> 12) & 15u]) & 0xffffu;
    }
    return (uint16_t)c;
}
