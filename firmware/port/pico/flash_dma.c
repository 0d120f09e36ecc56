/* Reads in the background: the SSI sends one address and takes words until it has all, a DMA
 * channel carries them to SRAM, its interrupt starts the next read of a queue. Four times what the
 * cache fetches in the same time; but the flash is not mapped meanwhile. */
#include "bare.h"
#include "pico.h"
#include "sf_board.h"
#include "sf_flash.h"
#include "sf_port.h"
#include "sf_runtime.h"

#define DMA 0x50000000u
#define NVIC_ISER 0xE000E100u

enum {
    READ_ADDR = 0x00,
    WRITE_ADDR = 0x04,
    COUNT = 0x08,
    CTRL_TRIG = 0x0C,
    INTE0 = 0x404,
    INTS0 = 0x40C
};
enum { IRQ = 11, DREQ_SSI_RX = 39 };

/* Channel 0: words from one address, bytes swapped (they come first byte first), chained to none.
 */
#define COPY (1u | 2u << 2 | 1u << 5 | (uint32_t)DREQ_SSI_RX << 15 | 1u << 22)

enum { QUEUE = 16 };            /* a power of two */
#define TICKET_BITS 0x7FFFFFFFu /* SF_NO_TICKET is none of them */

struct transfer {
    uint32_t from, to, bytes;
};

static struct transfer queue[QUEUE];
static volatile uint32_t submitted, done; /* how many ever; their difference is what waits */

static void start(const struct transfer *t) {
    const uint32_t words = t->bytes / 4u;
    sf_pico_ssi_frames(words, true);
    *sf_reg(DMA + READ_ADDR) = SF_PICO_SSI + SF_PICO_DR0;
    *sf_reg(DMA + WRITE_ADDR) = t->to;
    *sf_reg(DMA + COUNT) = words;
    *sf_reg(DMA + CTRL_TRIG) = COPY;
    *sf_reg(SF_PICO_SSI + SF_PICO_DR0) = sf_pico_read_word(t->from);
}

void sf_dma_irq(void) {
    *sf_reg(DMA + INTS0) = 1;
    done++;
    if (done != submitted) {
        start(&queue[done % QUEUE]);
    } else {
        sf_pico_ssi_frames(1, false); /* mapped again */
    }
}

void sf_flash_init(void) {
    *sf_reg(DMA + INTE0) = 1;
    *sf_reg(NVIC_ISER) = 1u << IRQ;
}

sf_ticket sf_flash_submit(uint32_t offset, uint32_t bytes, void *buffer) {
    sf_ticket ticket = SF_NO_TICKET;
    __asm volatile("cpsid i" ::: "memory");
    if (submitted - done < QUEUE) {
        struct transfer *t = &queue[submitted % QUEUE];
        *t = (struct transfer){SF_FLASH_OFFSET + offset, (uint32_t)(uintptr_t)buffer, bytes};
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

/* Good until the next read is submitted. */
const uint8_t *sf_port_flash_base(void) {
    (void)sf_flash_wait(submitted & TICKET_BITS);
    return (const uint8_t *)(uintptr_t)SF_FLASH_BASE;
}

uint32_t sf_port_flash_size(void) {
    return SF_FLASH_BYTES;
}
