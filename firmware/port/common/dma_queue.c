/* One transfer at a time, so the interrupt starts the next of a queue. */
#include "dma_queue.h"
#include "sf_flash.h"
#include "sf_port.h"
#include "sf_runtime.h"

enum { QUEUE = 32 };            /* a power of two */
#define TICKET_BITS 0x7FFFFFFFu /* SF_NO_TICKET is none of them */

struct transfer {
    uint32_t from, to, bytes;
};

static struct transfer queue[QUEUE];
static volatile uint32_t submitted, done; /* how many ever; their difference is what waits */
static uint32_t lost_from, lost_to; /* transfers after the first, up to the second, timed out */

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
    sf_irq_off();
    if (submitted - done < QUEUE) {
        struct transfer *t = &queue[submitted % QUEUE];
        *t = (struct transfer){offset, (uint32_t)(uintptr_t)buffer, bytes};
        if (submitted++ == done) {
            start(t);
        }
        ticket = submitted & TICKET_BITS;
    }
    sf_irq_on();
    return ticket;
}

bool sf_flash_poll(sf_ticket ticket) {
    /* The distance, not the order: the counters wrap. */
    const bool is_done = ((done - ticket) & TICKET_BITS) < TICKET_BITS / 2u;
    __asm volatile("" ::: "memory"); /* the buffer is read after this */
    return is_done;
}

/* The engine has been still for a second, and the longest transfer takes milliseconds: what is
 * queued has failed, and the queue is empty again. */
static void give_up(void) {
    sf_irq_off();
    sf_dma_stop();
    lost_from = done;
    lost_to = submitted;
    done = submitted;
    sf_irq_on();
}

static bool lost(sf_ticket ticket) {
    const uint32_t after = (ticket - lost_from) & TICKET_BITS;
    return after != 0 && after <= ((lost_to - lost_from) & TICKET_BITS);
}

int sf_flash_wait(sf_ticket ticket) {
    uint32_t seen = done - 1u; /* the clock starts when there is something to wait for */
    uint64_t since = 0;
    while (!sf_flash_poll(ticket)) {
        sf_irq_off();
        if (!sf_flash_poll(ticket)) {
            sf_irq_wait(); /* off keeps the interrupt pending; it wakes, and so does the clock's */
        }
        sf_irq_on();
        const uint64_t now = sf_port_ticks();
        if (seen != done) {
            seen = done;
            since = now;
        } else if (now - since > sf_port_ticks_per_second()) {
            give_up();
        }
    }
    return lost(ticket) ? SF_ERR_FLASH : SF_OK;
}

void sf_dma_drain(void) {
    (void)sf_flash_wait(submitted & TICKET_BITS);
}
