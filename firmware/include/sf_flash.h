/* Weights in flash, in tiles of rows. */
#ifndef SF_FLASH_H
#define SF_FLASH_H

#include "sf_kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Rows in flash, all or those of an ascending index list. */
typedef struct {
    const uint16_t *idx;
    uint32_t at, stride, bytes, n, next;
} sf_stream;

typedef struct {
    const uint8_t *row[SF_TILE];
    uint32_t first; /* position of row[0] in the list */
    uint32_t rows;
} sf_tile;

/* n rows of `bytes` at offset at + stride * (idx ? idx[i] : i). */
void sf_stream_open(sf_stream *s, uint32_t at, uint32_t stride, uint32_t bytes, const uint16_t *idx,
                    uint32_t n);
/* The next rows, valid until the call after; false at the end. */
bool sf_stream_next(sf_stream *s, sf_tile *t);
/* One counted read. */
const uint8_t *sf_flash_read(uint32_t at, uint32_t bytes);
/* Small constant data (vectors, tables), not counted. */
const uint8_t *sf_flash_map(uint32_t at, uint32_t bytes);

#endif
