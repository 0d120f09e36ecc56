/* Frames of the serial link: COBS(seq, type, payload, CRC-16 LE), then a zero byte. */
#ifndef SF_FRAME_H
#define SF_FRAME_H

#include <stddef.h>
#include <stdint.h>

#define SF_PAYLOAD 1024u
#define SF_FRAME (SF_PAYLOAD + 4u)                /* seq, type, payload, CRC */
#define SF_WIRE (SF_FRAME + SF_FRAME / 254u + 2u) /* with COBS overhead and the zero */

/* CRC-16/CCITT-FALSE. */
uint16_t sf_crc16(const uint8_t *data, size_t n);
/* Returns the encoded length without the zero byte. */
size_t sf_cobs_encode(const uint8_t *in, size_t n, uint8_t *out);
/* Returns the decoded length, or 0 for a damaged frame. out may be in. */
size_t sf_cobs_decode(const uint8_t *in, size_t n, uint8_t *out);

#endif
