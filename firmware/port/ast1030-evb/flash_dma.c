/* The DMA engine of the flash controller. */
#include "bare.h"
#include "dma_queue.h"
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
#define PROBE_READS 1000000u /* of a register: milliseconds, for 8 bytes */

static uint32_t length_bias;

void sf_dma_start(uint32_t offset, uint32_t to, uint32_t bytes) {
    *sf_reg(DMA_FLASH) = SF_FLASH_BASE + offset;
    *sf_reg(DMA_SRAM) = to;
    *sf_reg(DMA_LEN) = bytes - length_bias;
    *sf_reg(INTR) = INTR_ENABLE;
    *sf_reg(DMA_CTRL) = 1;
}

void sf_dma_irq(void) {
    *sf_reg(DMA_CTRL) = 0;
    *sf_reg(INTR) = 0;
    (void)sf_dma_done();
}

void sf_dma_stop(void) {
    *sf_reg(DMA_CTRL) = 0;
    *sf_reg(INTR) = 0;
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
    for (uint32_t i = 0; i < PROBE_READS && (*sf_reg(INTR) & INTR_DONE) == 0; i++) {
    }
    *sf_reg(DMA_CTRL) = 0;
    return word[1] == second ? 1u : 0u;
}

void sf_flash_init(void) {
    length_bias = probe_length();
    *sf_reg(NVIC_ISER1) = 1u << (DMA_IRQ - 32u);
}
