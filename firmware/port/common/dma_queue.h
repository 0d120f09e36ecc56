/* The queue before a DMA engine that takes one transfer at a time. */
#ifndef SF_DMA_QUEUE_H
#define SF_DMA_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

/* The port's: sets the engine going. Its interrupt then calls sf_dma_done(). */
void sf_dma_start(uint32_t offset, uint32_t to, uint32_t bytes);
/* The port's: whatever it does, the engine ends it. */
void sf_dma_stop(void);
/* A transfer is over: starts the next; false when none waits. */
bool sf_dma_done(void);
/* Waits until the queue is empty. */
void sf_dma_drain(void);

#ifdef __arm__
static inline void sf_irq_off(void) {
    __asm volatile("cpsid i" ::: "memory");
}
static inline void sf_irq_on(void) {
    __asm volatile("cpsie i" ::: "memory");
}
/* Sleeps until an interrupt is pending. */
static inline void sf_irq_wait(void) {
    __asm volatile("wfi" ::: "memory");
}
#else /* a test's */
void sf_irq_off(void);
void sf_irq_on(void);
void sf_irq_wait(void);
#endif

#endif
