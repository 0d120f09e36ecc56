/* Work that threads share. Where the plan has one worker it is a plain call. */
#ifndef SF_THREADS_H
#define SF_THREADS_H

#include "sf_model.h"

#include <stdint.h>

/* A worker's share of a task, worker of workers. */
typedef void (*sf_work)(uint32_t worker, uint32_t workers, const void *task);

#if SF_WORKERS > 1
/* Runs all shares of a task and returns when they are done. */
void sf_parallel(sf_work work, const void *task);
/* How many there are. */
uint32_t sf_workers(void);
#else
static inline void sf_parallel(sf_work work, const void *task) {
    work(0, 1, task);
}
#endif

#endif
