/* Reads in the background: the SSI sends one address and takes words until it has all, a DMA
 * channel carries them to SRAM. Four times what the cache fetches in the same time; but the flash
 * is not mapped meanwhile. */
#include "bare.h"
#include "dma_queue.h"
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
    ABORT = 0x444,
    INTE0 = 0x404,
    INTS0 = 0x40C
};
enum { IRQ = 11, DREQ_SSI_RX = 39, STOP_READS = 1000 };

/* Channel 0: words from one address, bytes swapped (they come first byte first), chained to none.
 */
#define COPY (1u | 2u << 2 | 1u << 5 | (uint32_t)DREQ_SSI_RX << 15 | 1u << 22)

void sf_dma_start(uint32_t offset, uint32_t to, uint32_t bytes) {
    const uint32_t words = bytes / 4u;
    sf_pico_ssi_frames(words, true);
    *sf_reg(DMA + READ_ADDR) = SF_PICO_SSI + SF_PICO_DR0;
    *sf_reg(DMA + WRITE_ADDR) = to;
    *sf_reg(DMA + COUNT) = words;
    *sf_reg(DMA + CTRL_TRIG) = COPY;
    *sf_reg(SF_PICO_SSI + SF_PICO_DR0) = sf_pico_read_word(SF_FLASH_OFFSET + offset);
}

void sf_dma_irq(void) {
    *sf_reg(DMA + INTS0) = 1;
    if (!sf_dma_done()) {
        sf_pico_ssi_frames(1, false); /* mapped again */
    }
}

void sf_dma_stop(void) {
    *sf_reg(DMA + ABORT) = 1;
    for (uint32_t i = 0; i < STOP_READS && (*sf_reg(DMA + ABORT) & 1u) != 0; i++) {
    }
    *sf_reg(DMA + INTS0) = 1;
    sf_pico_ssi_frames(1, false); /* mapped again */
}

void sf_flash_init(void) {
    *sf_reg(DMA + INTE0) = 1;
    *sf_reg(NVIC_ISER) = 1u << IRQ;
}

/* Good until the next read is submitted. */
const uint8_t *sf_port_flash_base(void) {
    sf_dma_drain();
    return (const uint8_t *)(uintptr_t)SF_FLASH_BASE;
}

uint32_t sf_port_flash_size(void) {
    return SF_FLASH_BYTES;
}

bool sf_port_flash_same(void) {
    return true;
}
