/* A flash that misbehaves on request, for tests: late, out of order, or failing reads.
 * A buffer holds rubbish until its ticket is waited for, so a use before that shows. */
#include "sf_flash.h"

#include "sf_port.h"
#include "sf_runtime.h"

#define QUEUE 64u
#define RUBBISH 0x53 /* halves of 58: nothing of a model is so large */

static struct {
    uint32_t offset, bytes;
    uint8_t *buffer;
    bool busy, done;
} queue[QUEUE];
static uint32_t seed = 1, depth = QUEUE, fail_at, reads, kind;

/* How the failing read fails. */
enum { FAIL = 0, SHORT = 1, FLIP = 2 };

void sf_fault_set(uint32_t new_seed, uint32_t new_depth, uint32_t fail);
void sf_fault_kind(uint32_t new_kind);
uint32_t sf_fault_reads(void);

/* FAIL: nothing arrives. SHORT: half of it does. FLIP: all of it, with a bit the other way. Each is
 * told. */
void sf_fault_kind(uint32_t new_kind) {
    kind = new_kind;
}

/* Reads since sf_fault_set(). */
uint32_t sf_fault_reads(void) {
    return reads;
}

/* seed of the order, most reads in flight (1 to 64), number of the read that fails (0: none). */
void sf_fault_set(uint32_t new_seed, uint32_t new_depth, uint32_t fail) {
    seed = new_seed | 1u;
    depth = new_depth < 1u ? 1u : (new_depth > QUEUE ? QUEUE : new_depth);
    fail_at = fail;
    reads = 0;
}

static uint32_t random16(void) {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 16;
}

static void finish(uint32_t k) {
    const uint32_t size = sf_port_flash_size();
    const uint32_t offset = queue[k].offset;
    const uint32_t have = offset < size ? size - offset : 0u;
    const uint32_t n = queue[k].bytes < have ? queue[k].bytes : have;
    memcpy(queue[k].buffer, sf_port_flash_base() + offset, n);
    queue[k].done = true;
}

sf_ticket sf_flash_submit(uint32_t offset, uint32_t bytes, void *buffer) {
    for (uint32_t k = 0; k < depth; k++) {
        if (!queue[k].busy) {
            queue[k].offset = offset;
            queue[k].bytes = bytes;
            queue[k].buffer = buffer;
            queue[k].busy = true;
            queue[k].done = false;
            memset(buffer, RUBBISH, bytes);
            /* Some finish at once, some only when waited for. */
            if (random16() % 3u == 0) {
                finish(k);
            }
            return k;
        }
    }
    return SF_NO_TICKET;
}

bool sf_flash_poll(sf_ticket t) {
    if (!queue[t].done && random16() % 4u == 0) {
        finish(t);
    }
    return queue[t].done;
}

int sf_flash_wait(sf_ticket t) {
    /* Others may finish first. */
    const uint32_t other = random16() % depth;
    if (queue[other].busy && !queue[other].done) {
        finish(other);
    }
    if (!queue[t].done) {
        finish(t);
    }
    queue[t].busy = false;
    reads++;
    if (reads == fail_at) {
        const uint32_t bytes = queue[t].bytes, good = kind == SHORT ? bytes / 2u : 0u;
        if (kind == FLIP) {
            queue[t].buffer[random16() % bytes] ^= (uint8_t)(1u << random16() % 8u);
        } else {
            memset(queue[t].buffer + good, RUBBISH, bytes - good);
        }
        return SF_ERR_FLASH;
    }
    return SF_OK;
}
