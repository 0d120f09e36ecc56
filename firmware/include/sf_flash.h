/* Weights in flash. The forward pass names parts and takes tiles of rows; where a part lies
 * (mapped, pinned in RAM, streamed) is the plan's business and that of firmware/flash/. */
#ifndef SF_FLASH_H
#define SF_FLASH_H

#include "sf_kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Rows of a tile: threads share those of a machine that has them. */
#ifdef SF_RUN_TIME_TIERS
#define SF_SPAN 1024u
#else
#define SF_SPAN SF_TILE
#endif

/* Rows that are read together: a matrix, or one plane of the FFN records. */
typedef struct {
    uint32_t at;     /* byte offset of row 0 in the image */
    uint32_t stride; /* from row to row */
    uint32_t bytes;  /* of a row */
    uint32_t rows;
    uint32_t pinned; /* rows from 0 on that are resident in RAM */
    uint32_t pin;    /* where they lie in the resident RAM */
    bool ffn : 1;    /* counts as FFN bytes */
    bool tables : 1; /* scales: rows come one by one */
    uint8_t input;   /* threshold of the inputs whose columns these are; 0: not columns of inputs */
    uint8_t grid;    /* enum sf_grid: how a row stores its weights */
    uint8_t shift;   /* of a product by columns that carry their scales: sf_axpy_s4 */
} sf_part;

/* Rows of a part, all from 0 on or those of an ascending index list. */
typedef struct {
    const sf_part *part;
    const uint16_t *idx;
    uint32_t n;       /* rows to give */
    uint32_t next;    /* rows given */
    uint32_t ahead;   /* rows submitted (streamed parts) */
    uint32_t in_slot; /* rows of the oldest slot already given */
    bool turn;        /* the ring carries its rows */
    bool holds;       /* the tile given last lies in a slot of the ring */
    bool early;       /* some of its rows were read before it was opened */
} sf_stream;

typedef struct {
    const uint8_t *row[SF_SPAN]; /* valid until the next call on the stream */
    uint32_t first;              /* position of row[0] in the list */
    uint32_t rows;
} sf_tile;

/* Memory is slower than the kernels of a machine that chooses them at run time, and rows of a list
 * lie apart: kernels take SF_LISTED of them while as many are asked for, SF_AHEAD after them. Of
 * columns that carry their scales they take SF_OWN while the next SF_OWN are asked for; kernels of
 * x86 take all and ask for later ones by themselves. */
#ifdef SF_RUN_TIME_TIERS
/* Into the second cache of x86, which has more reads on their way than the first. */
#ifdef __x86_64__
#define SF_LISTED 16u
#define SF_AHEAD 32u
#define SF_NEAR 2
#define SF_OWN SF_SPAN
#else
#define SF_LISTED 4u
#define SF_AHEAD 16u
#define SF_NEAR 3
#define SF_OWN SF_TILE
#endif
#else
#define SF_LISTED SF_TILE
#define SF_AHEAD 0u
#define SF_OWN SF_TILE
#define SF_NEAR 3
#endif

#define SF_LINE 64u /* bytes that memory gives at once */

/* Asks for each line of memory that a row touches, its last one too; not for the line `asked`. Says
 * which line was the last. */
static inline uintptr_t sf_ask_for_row(const uint8_t *row, uint32_t bytes, uintptr_t asked) {
    const uintptr_t end = (uintptr_t)row + bytes;
    uintptr_t line = (uintptr_t)row - (uintptr_t)row % SF_LINE;
#ifdef SF_RUN_TIME_TIERS
    __asm__ volatile(""); /* or gcc leaves out calls that do nothing but ask */
#endif
    for (line += line == asked ? SF_LINE : 0u; SF_AHEAD > 0u && line < end; line += SF_LINE) {
        __builtin_prefetch((const void *)line, 0, SF_NEAR);
    }
    return line - SF_LINE;
}
/* The same for n rows of a tile from this one on, as far as there are any; neighbours share lines.
 */
static inline void sf_ask_for(const sf_tile *t, uint32_t from, uint32_t n, uint32_t bytes) {
    uintptr_t asked = 0;
    for (uint32_t r = from; SF_AHEAD > 0u && r < t->rows && r < from + n; r++) {
        asked = sf_ask_for_row(t->row[r], bytes, asked);
    }
}
/* The same of those before a row `end`. */
static inline void sf_ask_before(const sf_tile *t, uint32_t end, uint32_t from, uint32_t n,
                                 uint32_t bytes) {
    if (from < end) {
        sf_ask_for(t, from, n < end - from ? n : end - from, bytes);
    }
}

void sf_stream_open(sf_stream *s, const sf_part *part, const uint16_t *idx, uint32_t n);
/* Starts reading rows that the next list of this part may ask for; only streams of whole parts may
 * be opened before it. What the list asks for beyond them is read then. */
void sf_stream_early(const sf_part *part, const uint16_t *idx, uint32_t n);
/* The next rows; false at the end, or after a failed read (sf_flash_error). */
bool sf_stream_next(sf_stream *s, sf_tile *t);
/* One row by number, valid until the next call of this function. */
const uint8_t *sf_flash_row(const sf_part *part, uint32_t row);
/* Small constant data (vectors, tables), mapped and not counted. */
const uint8_t *sf_flash_map(uint32_t at, uint32_t bytes);
/* A token begins; head: it will read the head. */
void sf_flash_token(bool head);
/* *crc of bytes at `at`, read as the weights are read; only before sf_flash_start(). SF_ERR_FLASH
 * when a read fails. */
int sf_flash_crc(uint32_t at, uint32_t bytes, uint32_t *crc);
/* Loads the resident parts; SF_ERR_FLASH when a read fails. */
int sf_flash_start(void);
/* SF_OK, SF_ERR_FLASH once any read failed, SF_ERR_DAMAGED once the image changed; clears. */
int sf_flash_error(void);

/* The asynchronous reads under it, one implementation a board: submit never blocks for data,
 * a ticket is waited for exactly once, and tickets may finish in any order. */
typedef uint32_t sf_ticket;
#define SF_NO_TICKET UINT32_MAX /* the queue is full: wait for an older one first */
sf_ticket sf_flash_submit(uint32_t offset, uint32_t bytes, void *buffer);
bool sf_flash_poll(sf_ticket t);
int sf_flash_wait(sf_ticket t);

#endif
