/* The image in flash is whole: every section of its table has the CRC-32 that the table says. */
#include "sf_flash.h"
#include "sf_port.h"
#include "sf_state.h"

enum { HEADER = 64, ENTRY = 32, COUNT_AT = 12, TABLE_AT = 24 };
enum { OFFSET = 8, LENGTH = 16, SUM = 24 }; /* of an entry */

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

int sf_check_image(void) {
    uint8_t header[HEADER], entry[ENTRY];
    uint32_t end = 0;
    memcpy(header, sf_port_flash_base(), HEADER);
    const uint32_t count = sf_load32(header + COUNT_AT), at = sf_load32(header + TABLE_AT);
    if (at % 4u != 0 || at > SF_IMAGE_BYTES || count > (SF_IMAGE_BYTES - at) / ENTRY) {
        return SF_ERR_DAMAGED;
    }
    for (uint32_t i = 0; i < count; i++) {
        memcpy(entry, sf_port_flash_base() + at + ENTRY * i, ENTRY);
        const uint32_t offset = sf_load32(entry + OFFSET), bytes = sf_load32(entry + LENGTH);
        /* Sections follow each other, with a few bytes between, up to the end of the image. */
        if (sf_load32(entry + OFFSET + 4) != 0 || sf_load32(entry + LENGTH + 4) != 0 ||
            offset < end || offset > SF_IMAGE_BYTES || bytes > SF_IMAGE_BYTES - offset) {
            return SF_ERR_DAMAGED;
        }
        uint32_t crc = 0;
        const int code = sf_flash_crc(offset, bytes, &crc);
        if (code != SF_OK) {
            return code;
        }
        if (crc != sf_load32(entry + SUM)) {
            return SF_ERR_DAMAGED;
        }
        end = offset + bytes;
    }
    return end == SF_IMAGE_BYTES ? SF_OK : SF_ERR_DAMAGED;
}
