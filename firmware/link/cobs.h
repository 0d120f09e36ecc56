/* Consistent overhead byte stuffing: a frame without a zero byte. */
#ifndef SF_COBS_H
#define SF_COBS_H

#include <stddef.h>
#include <stdint.h>

/* What sf_cobs_decode() answers for bytes that no encoder writes. */
#define SF_COBS_BAD SIZE_MAX
/* Most bytes that n bytes become. */
#define SF_COBS_BOUND(n) ((n) + (n) / 254u + 1u)

/* dst holds SF_COBS_BOUND(n) bytes and does not overlap src. Answers the bytes written. */
size_t sf_cobs_encode(const uint8_t *src, size_t n, uint8_t *dst);
/* dst may be src: writing never overtakes reading. Answers the bytes written or SF_COBS_BAD. */
size_t sf_cobs_decode(const uint8_t *src, size_t n, uint8_t *dst);

#endif
