/* Flash reads by a pool of threads calling pread. */
#define _GNU_SOURCE
#include "sf_flash.h"
#include "sf_runtime.h"
#include "storage.h"

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#define QUEUE 64u
#define THREADS 4u

enum state { FREE, PENDING, RUNNING, DONE, FAILED };

static struct {
    uint32_t offset, bytes;
    uint8_t *buffer;
    enum state state;
} queue[QUEUE];
static uint32_t order[QUEUE], first, count; /* pending tickets, oldest first */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
static int fd = -1;
static uint32_t size;

static bool read_all(uint32_t k) {
    const uint32_t have = queue[k].offset < size ? size - queue[k].offset : 0u;
    const uint32_t want = queue[k].bytes < have ? queue[k].bytes : have;
    uint32_t done = 0;
    while (done < want) {
        const ssize_t n = pread(fd, queue[k].buffer + done, queue[k].bytes - done,
                                (off_t)queue[k].offset + (off_t)done);
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        done += (uint32_t)n;
    }
    return true;
}

static void *serve(void *unused) {
    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (count == 0) {
            pthread_cond_wait(&work, &lock);
        }
        const uint32_t k = order[first];
        first = (first + 1u) % QUEUE;
        count--;
        queue[k].state = RUNNING;
        pthread_mutex_unlock(&lock);
        const bool ok = read_all(k);
        pthread_mutex_lock(&lock);
        queue[k].state = ok ? DONE : FAILED;
        pthread_cond_broadcast(&finished);
    }
    return NULL;
}

static bool start(void) {
    if (fd >= 0) {
        return true;
    }
    fd = storage_open(&size);
    if (fd < 0) {
        return false;
    }
    uint32_t running = 0;
    for (uint32_t i = 0; i < THREADS; i++) {
        pthread_attr_t a;
        pthread_t t;
        if (pthread_attr_init(&a) == 0 && pthread_attr_setstacksize(&a, 65536) == 0 &&
            pthread_create(&t, &a, serve, NULL) == 0) {
            pthread_detach(t);
            running++;
        }
    }
    if (running == 0) { /* nobody would ever read */
        close(fd);
        fd = -1;
    }
    return running > 0;
}

sf_ticket sf_flash_submit(uint32_t offset, uint32_t bytes, void *buffer) {
    sf_ticket t = SF_NO_TICKET;
    if (!start()) {
        return t;
    }
    pthread_mutex_lock(&lock);
    for (uint32_t k = 0; k < QUEUE; k++) {
        if (queue[k].state == FREE) {
            queue[k].offset = offset;
            queue[k].bytes = bytes;
            queue[k].buffer = buffer;
            queue[k].state = PENDING;
            order[(first + count) % QUEUE] = k;
            count++;
            t = k;
            pthread_cond_signal(&work);
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    return t;
}

bool sf_flash_poll(sf_ticket t) {
    pthread_mutex_lock(&lock);
    const bool done = queue[t].state == DONE || queue[t].state == FAILED;
    pthread_mutex_unlock(&lock);
    return done;
}

int sf_flash_wait(sf_ticket t) {
    pthread_mutex_lock(&lock);
    while (queue[t].state != DONE && queue[t].state != FAILED) {
        pthread_cond_wait(&finished, &lock);
    }
    const int code = queue[t].state == DONE ? SF_OK : SF_ERR_FLASH;
    queue[t].state = FREE;
    pthread_mutex_unlock(&lock);
    return code;
}
