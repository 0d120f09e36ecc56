/* The queue before a DMA engine that takes one transfer at a time. */
#ifndef SF_DMA_QUEUE_H
#define SF_DMA_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

/* The port's: sets the engine going. Its interrupt then calls sf_dma_done(). */
void sf_dma_start(uint32_t offset, uint32_t to, uint32_t bytes);
/* A transfer is over: starts the next; false when none waits. */
bool sf_dma_done(void);
/* Waits until the queue is empty. */
void sf_dma_drain(void);

#endif
