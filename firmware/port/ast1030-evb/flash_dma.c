/* The DMA engine of the flash controller: one transfer at a time, so the interrupt starts the
 * next of a queue. */
#include "bare.h"
#include "sf_board.h"
#include "sf_flash.h"
#include "sf_runtime.h"

#define INTR (SF_FLASH_CONTROL + 0x08u)
#define DMA_CTRL (SF_FLASH_CONTROL + 0x80u)
#define DMA_FLASH (SF_FLASH_CONTROL + 0x84u)
#define DMA_SRAM (SF_FLASH_CONTROL + 0x88u)
#define DMA_LEN (SF_FLASH_CONTROL + 0x8Cu)
#define NVIC_ISER1 0xE000E104u

#define INTR_ENABLE (1u << 3)
#define INTR_DONE (1u << 11)
#define DMA_IRQ 39u

enum { QUEUE = 16 };            /* a power of two */
#define TICKET_BITS 0x7FFFFFFFu /* SF_NO_TICKET is none of them */

struct transfer {
    uint32_t from, to, bytes;
};

static struct transfer queue[QUEUE];
static volatile uint32_t submitted, done; /* how many ever; their difference is what waits */
static uint32_t length_bias;

static void start(const struct transfer *t) {
    *sf_reg(DMA_FLASH) = t->from;
    *sf_reg(DMA_SRAM) = t->to;
    *sf_reg(DMA_LEN) = t->bytes - length_bias;
    *sf_reg(INTR) = INTR_ENABLE;
    *sf_reg(DMA_CTRL) = 1;
}

void sf_dma_irq(void) {
    *sf_reg(DMA_CTRL) = 0;
    *sf_reg(INTR) = 0;
    done++;
    if (done != submitted) {
        start(&queue[done % QUEUE]);
    }
}

/* Silicon takes the length less one, QEMU before 8 the length: ask for 7 bytes and see whether the
 * second word came. */
static uint32_t probe_length(void) {
    static volatile uint32_t word[2] SF_FLASH_BUFFER;
    const uint32_t second = *sf_reg(SF_FLASH_BASE + 4u);
    word[1] = ~second;
    *sf_reg(DMA_FLASH) = SF_FLASH_BASE;
    *sf_reg(DMA_SRAM) = (uint32_t)(uintptr_t)word;
    *sf_reg(DMA_LEN) = 7;
    *sf_reg(INTR) = 0;
    *sf_reg(DMA_CTRL) = 1;
    while ((*sf_reg(INTR) & INTR_DONE) == 0) {
    }
    *sf_reg(DMA_CTRL) = 0;
    return word[1] == second ? 1u : 0u;
}

void sf_flash_init(void) {
    length_bias = probe_length();
    *sf_reg(NVIC_ISER1) = 1u << (DMA_IRQ - 32u);
}

sf_ticket sf_flash_submit(uint32_t offset, uint32_t bytes, void *buffer) {
    sf_ticket ticket = SF_NO_TICKET;
    __asm volatile("cpsid i" ::: "memory");
    if (submitted - done < QUEUE) {
        struct transfer *t = &queue[submitted % QUEUE];
        *t = (struct transfer){SF_FLASH_BASE + offset, (uint32_t)(uintptr_t)buffer, bytes};
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
