/* A DMA engine that stops at some transfers: those are told, and what comes later is read. */
#include "dma_queue.h"
#include "sf_flash.h"
#include "sf_port.h"
#include "sf_runtime.h"

#include <stdio.h>

static uint64_t now;
static uint32_t started, stuck_at;
static bool moving;

void sf_dma_start(uint32_t offset, uint32_t to, uint32_t bytes) {
    (void)offset;
    (void)to;
    (void)bytes;
    started++;
    moving = started != stuck_at;
}

void sf_dma_stop(void) {
    moving = false;
}

void sf_irq_off(void) {
}

void sf_irq_on(void) {
}

/* The clock wakes it, or the end of a transfer. */
void sf_irq_wait(void) {
    now += 100;
    if (moving) {
        moving = false;
        (void)sf_dma_done();
    }
}

uint64_t sf_port_ticks(void) {
    return now++;
}

uint32_t sf_port_ticks_per_second(void) {
    return 1000;
}

int main(void) {
    uint8_t buffer[4];
    sf_ticket t[8];
    for (stuck_at = 1; stuck_at <= 8; stuck_at++) {
        started = 0;
        for (uint32_t i = 0; i < 8; i++) {
            t[i] = sf_flash_submit(0, 4, buffer);
        }
        const uint64_t begin = now;
        for (uint32_t i = 0; i < 8; i++) {
            const int want = i + 1u < stuck_at ? SF_OK : SF_ERR_FLASH;
            if (sf_flash_wait(t[i]) != want) {
                printf("stuck at %u: read %u\n", (unsigned)stuck_at, (unsigned)i);
                return 1;
            }
        }
        if (now - begin > 4000) {
            return 1;
        }
        if (sf_flash_wait(sf_flash_submit(0, 4, buffer)) != SF_OK) {
            printf("stuck at %u: no read after it\n", (unsigned)stuck_at);
            return 1;
        }
    }
    return 0;
}
