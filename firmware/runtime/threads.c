/* A kept pool of threads. Between two tasks of a token a worker looks for the next one for some
 * microseconds, then it sleeps. Shares are fixed, so what each computes does not depend on timing.
 */
#define _GNU_SOURCE
#include "sf_runtime.h"
#include "sf_threads.h"

#if SF_WORKERS > 1
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

enum { LOOKS = 2000, STACK = 262144 };

static uint32_t workers = 1;
static sf_work current;
static const void *current_task;
static _Atomic uint32_t turn, left, asleep;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t begun = PTHREAD_COND_INITIALIZER;

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm volatile("yield");
#endif
}

/* Waits for a turn after this one. */
static void await(uint32_t seen) {
    for (uint32_t i = 0; i < LOOKS; i++) {
        if (atomic_load(&turn) != seen) {
            return;
        }
        pause_briefly();
    }
    pthread_mutex_lock(&lock);
    atomic_fetch_add(&asleep, 1);
    while (atomic_load(&turn) == seen) {
        pthread_cond_wait(&begun, &lock);
    }
    atomic_fetch_sub(&asleep, 1);
    pthread_mutex_unlock(&lock);
}

static void *serve(void *number) {
    const uint32_t worker = (uint32_t)(uintptr_t)number;
    for (uint32_t seen = 0;; seen++) {
        await(seen);
        current(worker, workers, current_task);
        atomic_fetch_sub(&left, 1);
    }
    return NULL;
}

uint32_t sf_workers(void) {
    return workers;
}

void sf_parallel(sf_work work, const void *task) {
    if (workers == 1u) {
        work(0, 1, task);
        return;
    }
    current = work;
    current_task = task;
    atomic_store(&left, workers - 1u);
    atomic_fetch_add(&turn, 1);
    if (atomic_load(&asleep) > 0) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&begun);
        pthread_mutex_unlock(&lock);
    }
    work(0, workers, task);
    for (uint32_t i = 0; atomic_load(&left) > 0; i++) {
        if (i < LOOKS) {
            pause_briefly();
        } else {
            sched_yield();
        }
    }
}

/* One number of a CPU's place in the machine; -1 where the system does not say. */
static int topology(size_t cpu, const char *name) {
    char path[96];
    int value = -1;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%zu/topology/%s", cpu, name);
    FILE *f = fopen(path, "r");
    if (f != NULL) {
        if (fscanf(f, "%d", &value) != 1) {
            value = -1;
        }
        fclose(f);
    }
    return value;
}

/* Cores that this process may use; hardware threads of one core count once. */
static uint32_t physical_cores(void) {
    uint32_t n = 0;
#ifdef __linux__
    cpu_set_t set;
    int core[CPU_SETSIZE], package[CPU_SETSIZE];
    if (sched_getaffinity(0, sizeof set, &set) != 0) {
        return 1;
    }
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &set)) {
            continue;
        }
        const int c = topology(cpu, "core_id"), p = topology(cpu, "physical_package_id");
        uint32_t i = 0;
        while (i < n && (c < 0 || core[i] != c || package[i] != p)) {
            i++;
        }
        core[i] = c;
        package[i] = p;
        n = i == n ? n + 1u : n;
    }
#else
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    n = online > 0 ? (uint32_t)online : 1u;
#endif
    return n > 0 ? n : 1u;
}

void sf_threads(uint32_t n) {
    n = n == 0 ? physical_cores() : n;
    n = n < SF_WORKERS ? n : SF_WORKERS;
    pthread_attr_t a;
    if (n <= workers || pthread_attr_init(&a) != 0) {
        return;
    }
    pthread_attr_setstacksize(&a, STACK);
    /* They read `workers` in their first task only, which begins after it is final. */
    uint32_t made = workers;
    for (pthread_t t; made < n && pthread_create(&t, &a, serve, (void *)(uintptr_t)made) == 0;
         made++) {
        pthread_detach(t);
    }
    workers = made;
    pthread_attr_destroy(&a);
}
#else
void sf_threads(uint32_t n) {
    (void)n;
}
#endif
