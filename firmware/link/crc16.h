/* CRC-16/CCITT-FALSE: polynomial 0x1021, start 0xffff, no reflection. */
#ifndef SF_CRC16_H
#define SF_CRC16_H

#include <stddef.h>
#include <stdint.h>

#define SF_CRC16_START 0xffffu

uint16_t sf_crc16(uint16_t crc, const uint8_t *data, size_t n);

#endif
