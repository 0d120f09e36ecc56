/* The sum of image and link: CRC-32 as zlib has it. */
#ifndef SF_CRC32_H
#define SF_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* Of bytes that follow those of crc (0: none). */
uint32_t sf_crc32(uint32_t crc, const uint8_t *p, size_t n);

#endif
