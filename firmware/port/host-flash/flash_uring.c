/* Flash reads by io_uring through its three system calls; plain pread where the kernel has none. */
#define _GNU_SOURCE
#include "sf_flash.h"
#include "sf_runtime.h"
#include "storage.h"

#include "sf_port.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define QUEUE 64u
#define ATTEMPTS 1000u       /* of a submit that the kernel puts off */
#define PATIENCE 10000000000 /* ns for a completion that the kernel no longer waits for */

static struct {
    uint32_t offset, bytes;
    uint8_t *buffer;
    int32_t result;
    bool busy, done;
} queue[QUEUE];

static int fd = -1, ring_fd = -1;
static uint32_t size;
static struct io_uring_sqe *sqes;
static _Atomic uint32_t *sq_tail, *cq_head, *cq_tail;
static uint32_t *sq_array, sq_mask, cq_mask;
static struct io_uring_cqe *cqes;

static void *map(size_t bytes, off_t at) {
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_fd, at);
}

static bool open_ring(void) {
    struct io_uring_params p;
    memset(&p, 0, sizeof p);
    ring_fd = (int)syscall(__NR_io_uring_setup, QUEUE, &p);
    if (ring_fd < 0) {
        return false;
    }
    uint8_t *sq = map(p.sq_off.array + p.sq_entries * sizeof(uint32_t), IORING_OFF_SQ_RING);
    uint8_t *cq =
        map(p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), IORING_OFF_CQ_RING);
    void *entries = map(p.sq_entries * sizeof(struct io_uring_sqe), (off_t)IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || entries == MAP_FAILED) {
        return false;
    }
    sqes = entries;
    sq_tail = (_Atomic uint32_t *)(void *)(sq + p.sq_off.tail);
    sq_array = (uint32_t *)(void *)(sq + p.sq_off.array);
    memcpy(&sq_mask, sq + p.sq_off.ring_mask, sizeof sq_mask);
    cq_head = (_Atomic uint32_t *)(void *)(cq + p.cq_off.head);
    cq_tail = (_Atomic uint32_t *)(void *)(cq + p.cq_off.tail);
    memcpy(&cq_mask, cq + p.cq_off.ring_mask, sizeof cq_mask);
    cqes = (struct io_uring_cqe *)(void *)(cq + p.cq_off.cqes);
    return true;
}

static bool start(void) {
    if (fd >= 0) {
        return true;
    }
    fd = storage_open(&size);
    if (fd < 0) {
        return false;
    }
    if (!open_ring()) {
        fputs("note: this kernel gives no io_uring; reads are made one by one\n", stderr);
        if (ring_fd >= 0) {
            close(ring_fd);
        }
        ring_fd = -1;
    }
    return true;
}

static uint32_t wanted(uint32_t k) {
    const uint32_t have = queue[k].offset < size ? size - queue[k].offset : 0u;
    return queue[k].bytes < have ? queue[k].bytes : have;
}

/* The kernel asks to try again. */
static bool put_off(int code) {
    return code == EINTR || code == EAGAIN || code == EBUSY;
}

/* Reads what an entry still lacks, at once: a short read, or a kernel without io_uring. */
static void finish(uint32_t k, uint32_t done) {
    while (done < wanted(k)) {
        const ssize_t n = pread(fd, queue[k].buffer + done, queue[k].bytes - done,
                                (off_t)queue[k].offset + (off_t)done);
        if (n < 0 && put_off(errno)) {
            continue;
        }
        if (n <= 0) {
            queue[k].result = -1;
            break;
        }
        done += (uint32_t)n;
    }
    queue[k].done = true;
}

static void collect(void) {
    uint32_t head = atomic_load_explicit(cq_head, memory_order_relaxed);
    while (head != atomic_load_explicit(cq_tail, memory_order_acquire)) {
        const struct io_uring_cqe *c = &cqes[head & cq_mask];
        const uint32_t k = (uint32_t)c->user_data;
        if (c->res < 0 && put_off(-c->res)) {
            finish(k, 0);
        } else if (c->res < 0) {
            queue[k].result = c->res;
            queue[k].done = true;
        } else {
            finish(k, (uint32_t)c->res);
        }
        head++;
    }
    atomic_store_explicit(cq_head, head, memory_order_release);
}

sf_ticket sf_flash_submit(uint32_t offset, uint32_t bytes, void *buffer) {
    uint32_t k = 0;
    if (!start()) {
        return SF_NO_TICKET;
    }
    while (k < QUEUE && queue[k].busy) {
        k++;
    }
    if (k == QUEUE) {
        return SF_NO_TICKET;
    }
    queue[k].offset = offset;
    queue[k].bytes = bytes;
    queue[k].buffer = buffer;
    queue[k].result = 0;
    queue[k].busy = true;
    queue[k].done = false;
    if (ring_fd < 0) {
        finish(k, 0);
        return k;
    }
    const uint32_t tail = atomic_load_explicit(sq_tail, memory_order_relaxed);
    struct io_uring_sqe *e = &sqes[tail & sq_mask];
    memset(e, 0, sizeof *e);
    e->opcode = IORING_OP_READ;
    e->fd = fd;
    e->addr = (uint64_t)(uintptr_t)buffer;
    e->len = bytes;
    e->off = offset;
    e->user_data = k;
    sq_array[tail & sq_mask] = tail & sq_mask;
    atomic_store_explicit(sq_tail, tail + 1u, memory_order_release);
    for (uint32_t i = 0; i < ATTEMPTS; i++) {
        const long taken = syscall(__NR_io_uring_enter, ring_fd, 1, 0, 0, NULL, 0);
        if (taken > 0) {
            return k;
        }
        if (taken < 0 && !put_off(errno)) {
            break;
        }
        collect(); /* the kernel may want room for what is done */
    }
    /* Not taken, so the entry is taken back: else the next submit would hand over this one. */
    atomic_store_explicit(sq_tail, tail, memory_order_release);
    finish(k, 0);
    return k;
}

bool sf_flash_poll(sf_ticket t) {
    if (!queue[t].done && ring_fd >= 0) {
        collect();
    }
    return queue[t].done;
}

int sf_flash_wait(sf_ticket t) {
    uint64_t failed = 0;
    while (!sf_flash_poll(t)) {
        if (syscall(__NR_io_uring_enter, ring_fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 &&
            !put_off(errno)) {
            /* It may still write the buffer, so the ticket stays taken. */
            const uint64_t now = sf_port_ticks();
            failed = failed == 0 ? now : failed;
            if (now - failed > PATIENCE) {
                return SF_ERR_FLASH;
            }
            sched_yield();
        }
    }
    queue[t].busy = false;
    return queue[t].result < 0 ? SF_ERR_FLASH : SF_OK;
}
