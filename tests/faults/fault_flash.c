/* A flash that misbehaves on request, for tests: late, out of order, or failing reads.
 * A buffer holds rubbish until its ticket is waited for, so a use before that shows. */
#include "sf_flash.h"

#include "sf_port.h"
#include "sf_runtime.h"

#define QUEUE 64u

static struct {
    uint32_t offset, bytes;
    uint8_t *buffer;
    bool busy, done;
} queue[QUEUE];
static uint32_t seed = 1, depth = QUEUE, fail_at, reads;

void sf_fault_set(uint32_t new_seed, uint32_t new_depth, uint32_t fail);

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
            memset(buffer, 0xA5, bytes);
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
        memset(queue[t].buffer, 0xA5, queue[t].bytes);
        return SF_ERR_FLASH;
    }
    return SF_OK;
}
