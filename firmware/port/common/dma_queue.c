/* One transfer at a time, so the interrupt starts the next of a queue. */
#include "dma_queue.h"
#include "sf_flash.h"
#include "sf_runtime.h"

enum { QUEUE = 16 };            /* a power of two */
#define TICKET_BITS 0x7FFFFFFFu /* SF_NO_TICKET is none of them */

struct transfer {
    uint32_t from, to, bytes;
};

static struct transfer queue[QUEUE];
static volatile uint32_t submitted, done; /* how many ever; their difference is what waits */

static void start(const struct transfer *t) {
    sf_dma_start(t->from, t->to, t->bytes);
}

bool sf_dma_done(void) {
    done++;
    if (done == submitted) {
        return false;
    }
    start(&queue[done % QUEUE]);
    return true;
}

sf_ticket sf_flash_submit(uint32_t offset, uint32_t bytes, void *buffer) {
    sf_ticket ticket = SF_NO_TICKET;
    __asm volatile("cpsid i" ::: "memory");
    if (submitted - done < QUEUE) {
        struct transfer *t = &queue[submitted % QUEUE];
        *t = (struct transfer){offset, (uint32_t)(uintptr_t)buffer, bytes};
        if (submitted++ == done) {
            start(t);
        }
        ticket = submitted & TICKET_BITS;
    }
    __asm volatile("cpsie i" ::: "memory");
    return ticket;
}

bool sf_flash_poll(sf_ticket ticket) {
    /* The distance, not the order: the counters wrap. */
    const bool is_done = ((done - ticket) & TICKET_BITS) < TICKET_BITS / 2u;
    __asm volatile("" ::: "memory"); /* the buffer is read after this */
    return is_done;
}

int sf_flash_wait(sf_ticket ticket) {
    while (!sf_flash_poll(ticket)) {
        __asm volatile("cpsid i" ::: "memory");
        if (!sf_flash_poll(ticket)) {
            __asm volatile("wfi" ::: "memory"); /* the mask keeps the interrupt pending; it wakes */
        }
        __asm volatile("cpsie i" ::: "memory");
    }
    return SF_OK;
}

void sf_dma_drain(void) {
    (void)sf_flash_wait(submitted & TICKET_BITS);
}
