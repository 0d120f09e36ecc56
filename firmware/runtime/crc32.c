/* CRC-32 as zlib and Ethernet have it: polynomial 0x04C11DB7, reflected. */
#include "sf_crc32.h"

#include <string.h>

#if defined(__x86_64__) || defined(__aarch64__)
/* Eight bytes a step by eight tables of 1 KB, made at the first call. */
static uint32_t table[8][256];

static void make_tables(void) {
    for (uint32_t i = 0; i < 256u; i++) {
        uint32_t c = i;
        for (uint32_t k = 0; k < 8u; k++) {
            c = (c & 1u) != 0 ? 0xEDB88320u ^ c >> 1 : c >> 1;
        }
        table[0][i] = c;
    }
    for (uint32_t i = 0; i < 256u; i++) {
        for (uint32_t k = 1; k < 8u; k++) {
            table[k][i] = table[k - 1u][i] >> 8 ^ table[0][table[k - 1u][i] & 0xFFu];
        }
    }
}

uint32_t sf_crc32(uint32_t crc, const uint8_t *p, size_t n) {
    uint32_t c = ~crc;
    if (table[0][1] == 0) {
        make_tables();
    }
    for (; n >= 8u; n -= 8u, p += 8u) {
        uint32_t low, high;
        memcpy(&low, p, sizeof low);
        memcpy(&high, p + 4, sizeof high);
        low ^= c;
        c = table[7][low & 0xFFu] ^ table[6][low >> 8 & 0xFFu] ^ table[5][low >> 16 & 0xFFu] ^
            table[4][low >> 24] ^ table[3][high & 0xFFu] ^ table[2][high >> 8 & 0xFFu] ^
            table[1][high >> 16 & 0xFFu] ^ table[0][high >> 24];
    }
    for (; n > 0; n--) {
        c = c >> 8 ^ table[0][(c ^ *p++) & 0xFFu];
    }
    return ~c;
}
#else
/* Four bits a step by 64 bytes of table: memory is scarcer than time at start. */
uint32_t sf_crc32(uint32_t crc, const uint8_t *p, size_t n) {
    static const uint32_t table[16] = {
        0x00000000u, 0x1DB71064u, 0x3B6E20C8u, 0x26D930ACu, 0x76DC4190u, 0x6B6B51F4u,
        0x4DB26158u, 0x5005713Cu, 0xEDB88320u, 0xF00F9344u, 0xD6D6A3E8u, 0xCB61B38Cu,
        0x9B64C2B0u, 0x86D3D2D4u, 0xA00AE278u, 0xBDBDF21Cu,
    };
    uint32_t c = ~crc;
    for (; n > 0; n--) {
        c ^= *p++;
        c = c >> 4 ^ table[c & 15u];
        c = c >> 4 ^ table[c & 15u];
    }
    return ~c;
}
#endif
