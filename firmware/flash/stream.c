/* The first rows of a part are pinned in RAM, the others streamed through rings of buffers.
 *
 * Parts that are always read whole come in the same order for every token, so the ring runs ahead
 * of the forward pass without a predictor: the reads of the next layers, and of the next token, are
 * in flight while this one computes. Rows picked by a mask use a second ring, filled as soon as
 * the mask is known. Depth, buffer count and timing change no output bit. */
#include "sf_flash.h"

#include "sf_port.h"
#include "sf_state.h"
#include "sf_timeline.h"

/* Where a DMA engine reaches only part of the SRAM, board.yaml names the section. */
#ifndef SF_FLASH_BUFFER
#define SF_FLASH_BUFFER
#endif

#define ALIGN_DOWN(x) ((x) / SF_FLASH_ALIGN * SF_FLASH_ALIGN)

typedef struct {
    const uint8_t *data; /* of the first row */
    uint32_t part, first, rows;
    uint32_t last;  /* row that the read reaches, of picked rows */
    uint32_t from;  /* where its memory begins, of picked rows */
    bool early;     /* read before its rows were asked for */
    uint64_t begin; /* when it was submitted */
    sf_ticket ticket;
    bool waiting;
} slot;

_Static_assert(SF_RING_ROW + 2u * SF_FLASH_ALIGN <= SF_RING_BYTES, "a buffer holds a row");
_Static_assert(SF_PICK_ROW + 2u * SF_FLASH_ALIGN <= SF_PICK_BYTES, "a buffer holds a row");
_Static_assert(SF_RING_BUFFERS >= 2, "one is read while the other is used");

static _Alignas(SF_FLASH_ALIGN) uint8_t pinned[SF_PINNED_BYTES + SF_FLASH_ALIGN];
SF_FLASH_BUFFER static _Alignas(SF_FLASH_ALIGN) uint8_t ring_memory[SF_RING_BUFFERS][SF_RING_BYTES];
SF_FLASH_BUFFER static _Alignas(SF_FLASH_ALIGN) uint8_t pick_memory[SF_PICK_MEMORY];
SF_FLASH_BUFFER static _Alignas(SF_FLASH_ALIGN) uint8_t row_memory[2][SF_ROW_BYTES];
#if SF_SPECULATES
SF_FLASH_BUFFER static _Alignas(SF_FLASH_ALIGN) uint8_t miss_memory[SF_ROW_BYTES];
#endif

#ifdef SF_CONST_BYTES /* the flash is not mapped while it streams */
static _Alignas(4) uint8_t constants[SF_CONST_BYTES];
#endif

static slot ring[SF_RING_BUFFERS];
static uint32_t ring_head, ring_count;
static uint32_t ahead_part, ahead_row; /* what the ring submits next */
static bool with_head = true;          /* the last token ran the head, so the next one may */
static slot pick[SF_PICK_READS];
static slot single[2];
static uint32_t pick_head, pick_count;
static uint32_t pick_end;              /* of the memory of the newest read */
static uint32_t early_part = SF_PARTS; /* whose rows were read early and not yet asked for */
static int error;

/* The ring carries it: it comes in its turn for every token. */
static bool whole(uint32_t part) {
    const uint32_t layer = part / SF_LAYER_PARTS, kind = part % SF_LAYER_PARTS;
    if (layer >= SF_LAYERS) {
        return part == SF_PART_WHOLE_HEAD && with_head;
    }
    return sf_reads_all(layer, kind);
}

/* Aligned read of bytes at `at` into memory; returns where the first byte will be. */
static const uint8_t *submit(uint32_t at, uint32_t bytes, uint8_t *memory, sf_ticket *ticket) {
    const uint32_t from = ALIGN_DOWN(at);
    const uint32_t to = ALIGN_DOWN(at + bytes + SF_FLASH_ALIGN - 1u);
    *ticket = sf_flash_submit(from, to - from, memory);
    if (*ticket == SF_NO_TICKET) {
        return NULL;
    }
    sf_count_read(to - from, 1);
    return memory + (at - from);
}

static void wait_slot(slot *s) {
    if (s->waiting) {
        const bool there = sf_flash_poll(s->ticket);
        const uint64_t start = there ? 0 : sf_port_ticks();
        if (sf_flash_wait(s->ticket) != SF_OK) {
            error = SF_ERR_FLASH;
        }
        const uint64_t end = there ? sf_event_time() : sf_port_ticks();
        if (!there) {
            sf_count_wait(end - start);
            sf_event(SF_LANE_WAIT, "wait", s->part, start, end);
        }
        sf_event(SF_LANE_READ, "read", s->part, s->begin, end);
        s->waiting = false;
    }
}

static uint32_t rows_that_fit(const sf_part *p, uint32_t capacity) {
    return (capacity - 2u * SF_FLASH_ALIGN) / p->stride;
}

static void ring_fill(void) {
    uint32_t passed = 0;
    while (ring_count < SF_RING_BUFFERS && passed <= SF_PARTS) {
        const sf_part *p = &sf_parts[ahead_part];
        ahead_row = ahead_row < p->pinned ? p->pinned : ahead_row;
        if (ahead_row >= p->rows || !whole(ahead_part)) {
            ahead_part = (ahead_part + 1u) % SF_PARTS;
            ahead_row = 0;
            passed++;
            continue;
        }
        const uint32_t k = (ring_head + ring_count) % SF_RING_BUFFERS;
        const uint32_t most = rows_that_fit(p, SF_RING_BYTES);
        const uint32_t rows = p->rows - ahead_row < most ? p->rows - ahead_row : most;
        slot *s = &ring[k];
        s->data = submit(p->at + ahead_row * p->stride, (rows - 1u) * p->stride + p->bytes,
                         ring_memory[k], &s->ticket);
        if (s->data == NULL) {
            return;
        }
        s->part = ahead_part;
        s->begin = sf_event_time();
        s->first = ahead_row;
        s->rows = rows;
        s->waiting = true;
        ahead_row += rows;
        ring_count++;
        passed = 0;
    }
}

static void ring_pop(void) {
    wait_slot(&ring[ring_head]);
    ring_head = (ring_head + 1u) % SF_RING_BUFFERS;
    ring_count--;
}

/* The slot that begins with this row; what was read ahead for another course is dropped. */
static slot *ring_at(uint32_t part, uint32_t row) {
    while (ring_count > 0 && (ring[ring_head].part != part || ring[ring_head].first != row)) {
        ring_pop();
    }
    if (ring_count == 0) {
        ahead_part = part;
        ahead_row = row;
    }
    ring_fill();
    wait_slot(&ring[ring_head]);
    return &ring[ring_head];
}

static void pick_pop(void) {
    wait_slot(&pick[pick_head]);
    pick_head = (pick_head + 1u) % SF_PICK_READS;
    pick_count--;
}

/* Where a read of picked rows may go: behind the newest, or at the front again; SF_PICK_MEMORY: the
 * reads before it fill the memory. */
static uint32_t pick_room(uint32_t bytes) {
    const uint32_t oldest = pick[pick_head].from;
    if (pick_count == 0) {
        return 0;
    }
    if (pick_end > oldest && SF_PICK_MEMORY - pick_end >= bytes) {
        return pick_end;
    }
    const uint32_t at = pick_end > oldest ? 0 : pick_end;
    return at + bytes < oldest ? at : SF_PICK_MEMORY;
}

/* Reads the rows first..last of a part as the newest of the picked ones; false while the memory or
 * the queue is full. */
static bool pick_push(const sf_part *p, uint32_t first, uint32_t last, uint32_t rows) {
    const uint32_t at = p->at + first * p->stride, bytes = (last - first) * p->stride + p->bytes;
    const uint32_t room = (bytes + 2u * SF_FLASH_ALIGN - 1u) / SF_FLASH_ALIGN * SF_FLASH_ALIGN;
    const uint32_t from = pick_room(room);
    slot *q = &pick[(pick_head + pick_count) % SF_PICK_READS];
    if (from == SF_PICK_MEMORY) {
        return false;
    }
    q->data = submit(at, bytes, pick_memory + from, &q->ticket);
    if (q->data == NULL) {
        return false;
    }
    q->part = (uint32_t)(p - sf_parts);
    q->begin = sf_event_time();
    q->first = first;
    q->last = last;
    q->rows = rows;
    q->from = from;
    q->early = false;
    q->waiting = true;
    pick_end = from + room;
    pick_count++;
    return true;
}

static uint32_t row_at(const sf_stream *s, uint32_t i) {
    return s->idx ? s->idx[i] : i;
}

/* Submits picked rows; rows whose gap costs less than another read share one. */
static void pick_fill(sf_stream *s) {
    const sf_part *p = s->part;
    while (s->ahead < s->n && row_at(s, s->ahead) < p->pinned) {
        s->ahead++;
    }
    while (pick_count < SF_PICK_READS && s->ahead < s->n) {
        const uint32_t first = row_at(s, s->ahead);
        const uint32_t most = first * p->stride + SF_PICK_BYTES - 2u * SF_FLASH_ALIGN;
        uint32_t last = first, count = 1;
        while (s->ahead + count < s->n) {
            const uint32_t row = row_at(s, s->ahead + count);
            if ((row + 1u) * p->stride > most || (row - last - 1u) * p->stride > SF_FLASH_GAP) {
                break;
            }
            last = row;
            count++;
        }
        if (!pick_push(p, first, last, count)) {
            return;
        }
        s->ahead += count;
    }
}

void sf_stream_open(sf_stream *s, const sf_part *part, const uint16_t *idx, uint32_t n) {
    *s = (sf_stream){.part = part, .idx = idx, .n = n};
    s->turn = idx == NULL && whole((uint32_t)(part - sf_parts));
    if (s->turn) {
        return;
    }
    s->early = idx != NULL && early_part == (uint32_t)(part - sf_parts);
    early_part = SF_PARTS;
    while (!s->early && pick_count > 0) { /* left over from another stream */
        pick_pop();
    }
    if (pick_count > 0) { /* its own reads follow the early ones */
        const uint32_t last = pick[(pick_head + pick_count - 1u) % SF_PICK_READS].last;
        while (s->ahead < n && idx[s->ahead] <= last) {
            s->ahead++;
        }
    }
}

void sf_stream_early(const sf_part *part, const uint16_t *idx, uint32_t n) {
    sf_stream s;
    sf_stream_open(&s, part, idx, n);
    if (s.turn) {
        return;
    }
    pick_fill(&s);
    for (uint32_t i = 0; i < pick_count; i++) {
        slot *q = &pick[(pick_head + i) % SF_PICK_READS];
        q->early = true;
        sf_count_early((q->last - q->first + 1u) * part->bytes, 0, 0);
    }
    early_part = (uint32_t)(part - sf_parts);
}

static void next_pinned(sf_stream *s, sf_tile *t) {
    const uint8_t *base = pinned + s->part->pin;
    uint32_t r = 0;
    while (r < t->rows && row_at(s, s->next + r) < s->part->pinned) {
        t->row[r] = base + s->part->stride * row_at(s, s->next + r);
        r++;
    }
    t->rows = r;
}

static bool next_whole(sf_stream *s, sf_tile *t) {
    const uint32_t part = (uint32_t)(s->part - sf_parts);
    if (s->holds && s->in_slot == ring[ring_head].rows) {
        ring_pop();
        s->in_slot = 0;
    }
    const slot *q = ring_at(part, s->next - s->in_slot);
    if (error != SF_OK || ring_count == 0) {
        error = SF_ERR_FLASH;
        return false;
    }
    t->rows = q->rows - s->in_slot < t->rows ? q->rows - s->in_slot : t->rows;
    for (uint32_t r = 0; r < t->rows; r++) {
        t->row[r] = q->data + (s->in_slot + r) * s->part->stride;
    }
    s->in_slot += t->rows;
    s->holds = true;
    return true;
}

/* A row that was not among those read early. */
static bool next_missed(sf_tile *t, const sf_part *p, uint32_t row) {
#if SF_SPECULATES
    slot m = {.part = (uint32_t)(p - sf_parts), .begin = sf_port_ticks(), .waiting = true};
    m.data = submit(p->at + row * p->stride, p->bytes, miss_memory, &m.ticket);
    while (m.data == NULL && ring_count > 0) { /* the queue is full of what runs ahead */
        ring_pop();
        m.data = submit(p->at + row * p->stride, p->bytes, miss_memory, &m.ticket);
    }
    if (m.data != NULL) {
        wait_slot(&m);
        t->row[0] = m.data;
        t->rows = 1;
        return error == SF_OK;
    }
#else
    (void)t;
    (void)p;
    (void)row;
#endif
    error = SF_ERR_FLASH;
    return false;
}

/* Adds the rows that a read brought to a tile of `most`. */
static void take_picked(sf_stream *s, sf_tile *t, uint32_t most, slot *q) {
    const uint32_t before = t->rows, stride = s->part->stride;
    wait_slot(q);
    while (t->rows < most && row_at(s, s->next + t->rows) <= q->last) {
        t->row[t->rows] = q->data + (row_at(s, s->next + t->rows) - q->first) * stride;
        t->rows++;
    }
    if (s->early) {
        const uint32_t bytes = (t->rows - before) * s->part->bytes;
        sf_count_early(0, q->early ? bytes : 0, q->early ? 0 : bytes);
    }
}

/* A tile is half of the reads on their way, so that the others go on while it is worked on. */
static bool next_picked(sf_stream *s, sf_tile *t) {
    const uint32_t row = row_at(s, s->next), most = t->rows;
    while (pick_count > 0 && pick[pick_head].last < row) { /* used, or read early for nothing */
        pick_pop();
    }
    pick_fill(s);
    if (pick_count == 0) {
        error = SF_ERR_FLASH;
        return false;
    }
    if (row < pick[pick_head].first) {
        sf_count_early(0, 0, s->part->bytes);
        return next_missed(t, s->part, row) && error == SF_OK;
    }
    const uint32_t reads = s->ahead < s->n ? (pick_count + 1u) / 2u : pick_count;
    t->rows = 0;
    for (uint32_t i = 0; i < reads && t->rows < most; i++) {
        slot *q = &pick[(pick_head + i) % SF_PICK_READS];
        if (row_at(s, s->next + t->rows) < q->first) {
            break;
        }
        take_picked(s, t, most, q);
    }
    return error == SF_OK;
}

bool sf_stream_next(sf_stream *s, sf_tile *t) {
    bool ok = true;
    if (s->next >= s->n) {
        if (s->holds) {
            ring_pop();
            ring_fill();
        }
        s->holds = false;
        return false;
    }
    t->first = s->next;
    t->rows = s->n - s->next < SF_SPAN ? s->n - s->next : SF_SPAN;
    if (row_at(s, s->next) < s->part->pinned) {
        next_pinned(s, t);
        if (s->next == 0 && !s->turn) {
            pick_fill(s); /* on their way while the pinned rows are worked on */
        }
    } else if (s->turn) {
        ok = next_whole(s, t);
    } else {
        ok = next_picked(s, t);
    }
    if (!ok) {
        s->n = 0;
        s->holds = false;
        return false;
    }
    s->next += t->rows;
    sf_count_used(t->rows * s->part->bytes, s->part->ffn);
    return true;
}

/* Starts reading a row into one of the two buffers. */
static void row_start(uint32_t k, const sf_part *part, uint32_t row) {
    slot *s = &single[k];
    const uint32_t at = part->at + row * part->stride;
    s->data = submit(at, part->bytes, row_memory[k], &s->ticket);
    while (s->data == NULL && ring_count > 0) { /* the queue is full of what runs ahead */
        ring_pop();
        s->data = submit(at, part->bytes, row_memory[k], &s->ticket);
    }
    s->part = (uint32_t)(part - sf_parts);
    s->first = row;
    s->rows = s->data == NULL ? 0 : 1;
    s->waiting = s->data != NULL;
}

const uint8_t *sf_flash_row(const sf_part *part, uint32_t row) {
    sf_count_used(part->bytes, part->ffn);
    if (row < part->pinned) {
        return pinned + part->pin + row * part->stride;
    }
    const uint32_t number = (uint32_t)(part - sf_parts);
    uint32_t k = 0;
    while (k < 2u && !(single[k].rows > 0 && single[k].part == number && single[k].first == row)) {
        k++;
    }
    if (k == 2u) {
        wait_slot(&single[0]);
        wait_slot(&single[1]);
        k = 0;
        row_start(k, part, row);
    }
    if (single[k].rows == 0) {
        error = SF_ERR_FLASH;
        return row_memory[k];
    }
    wait_slot(&single[k]);
    if (error != SF_OK) {
        single[k].rows = 0; /* to be read again */
        memset(row_memory[k], 0, SF_ROW_BYTES);
    }
    /* Scales come block after block: the next is on its way while this one is used. */
    slot *other = &single[1u - k];
    wait_slot(other);
    other->rows = 0;
    if (number < SF_PART_EMBED && row + 1u < part->rows) {
        row_start(1u - k, part, row + 1u);
    }
    return single[k].data;
}

const uint8_t *sf_flash_map(uint32_t at, uint32_t bytes) {
    (void)bytes;
#ifdef SF_CONST_BYTES
    if (at >= SF_CONST_AT && at - SF_CONST_AT < SF_CONST_BYTES) {
        return constants + (at - SF_CONST_AT);
    }
#endif
    return sf_port_flash_base() + at;
}

/* Nothing is on its way into a buffer any more. */
static void settle(void) {
    while (ring_count > 0) {
        ring_pop();
    }
    while (pick_count > 0) {
        pick_pop();
    }
    wait_slot(&single[0]);
    wait_slot(&single[1]);
    error = SF_OK;
}

/* Two buffers: one is read while the sum of the other is made. */
int sf_flash_crc(uint32_t at, uint32_t bytes, uint32_t *crc) {
    const uint32_t room = SF_RING_BYTES - 2u * SF_FLASH_ALIGN, count = (bytes + room - 1u) / room;
    slot s[2] = {{.waiting = false}, {.waiting = false}};
    uint32_t c = 0;
    settle();
    for (uint32_t i = 0; i <= count; i++) {
        if (i < count) {
            const uint32_t n = bytes - i * room < room ? bytes - i * room : room;
            slot *next = &s[i % 2u];
            next->data = submit(at + i * room, n, ring_memory[i % 2u], &next->ticket);
            next->waiting = next->data != NULL;
            next->rows = n;
            error = next->waiting ? error : SF_ERR_FLASH;
        }
        if (i > 0) {
            slot *last = &s[(i - 1u) % 2u];
            wait_slot(last);
            c = error == SF_OK ? sf_crc32(c, last->data, last->rows) : c;
        }
        if (error != SF_OK) {
            break;
        }
    }
    wait_slot(&s[0]);
    wait_slot(&s[1]);
    const int code = error;
    error = SF_OK;
    *crc = c;
    return code;
}

static int load(uint32_t at, uint32_t bytes, uint8_t *to) {
    uint32_t done = 0;
    while (done < bytes) {
        const uint32_t room = SF_RING_BYTES - 2u * SF_FLASH_ALIGN;
        const uint32_t n = bytes - done < room ? bytes - done : room;
        slot s = {.waiting = true};
        s.data = submit(at + done, n, ring_memory[0], &s.ticket);
        if (s.data == NULL) {
            return SF_ERR_FLASH;
        }
        wait_slot(&s);
        if (error != SF_OK) {
            return error;
        }
        memcpy(to + done, s.data, n);
        done += n;
    }
    return SF_OK;
}

void sf_flash_token(bool head) {
    with_head = head;
}

int sf_flash_start(void) {
    int code = SF_OK;
    settle();
    ahead_part = ahead_row = 0;
    early_part = SF_PARTS;
    single[0].rows = single[1].rows = 0;
#ifdef SF_CONST_BYTES
    code = load(SF_CONST_AT, SF_CONST_BYTES, constants);
#endif
    for (uint32_t i = 0; i < SF_PARTS && code == SF_OK; i++) {
        const sf_part *p = &sf_parts[i];
        if (p->pinned > 0 && i != SF_PART_EMBED) { /* which shares the head's */
            code = load(p->at, (p->pinned - 1u) * p->stride + p->bytes, pinned + p->pin);
        }
    }
    return code;
}

int sf_flash_error(void) {
    const int code = error;
    error = SF_OK;
    return code == SF_OK && !sf_port_flash_same() ? SF_ERR_DAMAGED : code;
}
