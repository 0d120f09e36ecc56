/* The flash interface over memory-mapped flash: a read is a pointer, and is counted. */
#include "sf_flash.h"

#include "sf_port.h"
#include "sf_state.h"

void sf_stream_open(sf_stream *s, uint32_t at, uint32_t stride, uint32_t bytes, const uint16_t *idx,
                    uint32_t n) {
    *s = (sf_stream){.idx = idx, .at = at, .stride = stride, .bytes = bytes, .n = n, .next = 0};
}

bool sf_stream_next(sf_stream *s, sf_tile *t) {
    const uint8_t *base = sf_port_flash_base();
    uint32_t reads = 0;
    if (s->next >= s->n) {
        return false;
    }
    t->first = s->next;
    t->rows = s->n - s->next < SF_TILE ? s->n - s->next : SF_TILE;
    for (uint32_t r = 0; r < t->rows; r++) {
        const uint32_t i = s->next + r;
        const uint32_t row = s->idx ? s->idx[i] : i;
        /* Neighbours whose bytes touch are one read. */
        const bool touches =
            i > 0 && s->stride == s->bytes && (!s->idx || s->idx[i - 1u] + 1u == row);
        t->row[r] = base + s->at + s->stride * row;
        reads += touches ? 0u : 1u;
    }
    s->next += t->rows;
    sf_count_read(t->rows * s->bytes, reads);
    return true;
}

const uint8_t *sf_flash_read(uint32_t at, uint32_t bytes) {
    sf_count_read(bytes, 1);
    return sf_port_flash_base() + at;
}

const uint8_t *sf_flash_map(uint32_t at, uint32_t bytes) {
    (void)bytes;
    return sf_port_flash_base() + at;
}
