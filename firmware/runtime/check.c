/* The image in flash is whole: every section of its table has the CRC-32 that the table says. */
#include "sf_flash.h"
#include "sf_port.h"
#include "sf_state.h"

enum { HEADER = 64, ENTRY = 32, COUNT_AT = 12, TABLE_AT = 24 };
enum { OFFSET = 8, LENGTH = 16, SUM = 24 }; /* of an entry */

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
