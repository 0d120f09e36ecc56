/* Background reads from flash into SRAM, done in the order they were submitted. */
#ifndef SF_DMA_H
#define SF_DMA_H

#include <stdbool.h>
#include <stdint.h>

#define SF_DMA_QUEUE 8u /* reads that may wait or run at once */

/* A buffer that the DMA engine can reach. */
#define SF_DMA_BUFFER __attribute__((section(".dma"), aligned(16)))

/* Numbers the reads from 1 on. */
typedef uint32_t sf_ticket;

/* Once, after sf_board_init(). */
void sf_dma_init(void);
/* Queues a read of bytes at offset; all three are multiples of 4, the buffer an SF_DMA_BUFFER.
 * 0 when the queue is full. */
sf_ticket sf_dma_submit(uint32_t offset, uint32_t bytes, void *buffer);
bool sf_dma_poll(sf_ticket ticket);
/* Sleeps until the read is done. */
void sf_dma_wait(sf_ticket ticket);

#endif
