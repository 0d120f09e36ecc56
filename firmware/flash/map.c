/* Memory-mapped flash: a read is a pointer, and is counted. */
#include "sf_flash.h"

#include "sf_port.h"
#include "sf_state.h"

void sf_stream_open(sf_stream *s, const sf_part *part, const uint16_t *idx, uint32_t n) {
    *s = (sf_stream){.part = part, .idx = idx, .n = n};
}

void sf_stream_early(const sf_part *part, const uint16_t *idx, uint32_t n) {
    (void)part;
    (void)idx;
    (void)n;
}

bool sf_stream_next(sf_stream *s, sf_tile *t) {
    const sf_part *p = s->part;
    const uint8_t *base = sf_port_flash_base() + p->at;
    uint32_t reads = 0;
    if (s->next >= s->n) {
        return false;
    }
    t->first = s->next;
    t->rows = s->n - s->next < SF_SPAN ? s->n - s->next : SF_SPAN;
    /* Neighbours whose bytes touch are one read. */
    const bool dense = p->stride == p->bytes;
    if (s->idx == NULL) {
        const uint32_t stride = p->stride;
        const uint8_t *row = base + stride * s->next;
        for (uint32_t r = 0; r < t->rows; r += 8u) { /* SF_SPAN is a multiple */
            for (uint32_t i = 0; i < 8u; i++, row += stride) {
                t->row[r + i] = row;
            }
        }
        reads = dense ? (s->next == 0 ? 1u : 0u) : t->rows;
    } else {
        const uint16_t *const i = s->idx + s->next;
        uint32_t joined = dense && s->next > 0 && i[-1] + 1u == i[0];
        for (uint32_t r = 0; r < t->rows; r++) {
            t->row[r] = base + p->stride * i[r];
        }
        for (uint32_t r = 1; dense && r < t->rows; r++) {
            joined += i[r - 1u] + 1u == i[r];
        }
        reads = t->rows - joined;
    }
    s->next += t->rows;
    sf_count_mapped(t->rows * p->bytes, reads, p->ffn);
    return true;
}

const uint8_t *sf_flash_row(const sf_part *part, uint32_t row) {
    sf_count_mapped(part->bytes, 1, part->ffn);
    return sf_port_flash_base() + part->at + part->stride * row;
}

const uint8_t *sf_flash_map(uint32_t at, uint32_t bytes) {
    (void)bytes;
    return sf_port_flash_base() + at;
}

void sf_flash_token(bool head) {
    (void)head;
}

int sf_flash_crc(uint32_t at, uint32_t bytes, uint32_t *crc) {
    *crc = sf_crc32(0, sf_port_flash_base() + at, bytes);
    return SF_OK;
}

int sf_flash_start(void) {
    return SF_OK;
}

int sf_flash_error(void) {
    return sf_port_flash_same() ? SF_OK : SF_ERR_DAMAGED;
}
