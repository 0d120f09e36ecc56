/* Reads a file in blocks through flash_uring.c while some of its system calls fail.
 *
 * Built with --wrap=syscall. Arguments: file, which submit fails, with which error, how often. */
#define _GNU_SOURCE
#include "sf_flash.h"
#include "sf_port.h"
#include "sf_runtime.h"

#include "../../firmware/port/host/host.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, BLOCKS = 64, DEPTH = 8 };

const char *host_flash_path;
static long submits, fail_at, fail_code, fail_times;
static _Alignas(BLOCK) uint8_t memory[DEPTH][BLOCK];

long __real_syscall(long number, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f);

long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f) {
    if (number == __NR_io_uring_enter && b > 0) {
        submits++;
        if (submits >= fail_at && submits < fail_at + fail_times) {
            errno = (int)fail_code;
            return fail_code == 0 ? 0 : -1;
        }
    }
    return __real_syscall(number, a, b, c, d, e, f);
}

const uint8_t *sf_port_flash_base(void) {
    return memory[0]; /* nothing is mapped here */
}

uint64_t sf_port_ticks(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Block k is filled with bytes k + 1. */
static void check(uint32_t k, sf_ticket t) {
    if (sf_flash_wait(t) != SF_OK) {
        printf("block %u failed\n", (unsigned)k);
        exit(1);
    }
    for (uint32_t i = 0; i < BLOCK; i++) {
        if (memory[k % DEPTH][i] != k + 1u) {
            printf("block %u holds %u\n", (unsigned)k, (unsigned)memory[k % DEPTH][i] - 1u);
            exit(1);
        }
    }
}

int main(int argc, char **argv) {
    sf_ticket ticket[DEPTH];
    if (argc != 5) {
        return 2;
    }
    host_flash_path = argv[1];
    fail_at = atol(argv[2]);
    fail_code = atol(argv[3]);
    fail_times = atol(argv[4]);
    for (uint32_t k = 0; k < BLOCKS + DEPTH; k++) {
        if (k >= DEPTH) {
            check(k - DEPTH, ticket[k % DEPTH]);
        }
        if (k < BLOCKS) {
            ticket[k % DEPTH] = sf_flash_submit(k * BLOCK, BLOCK, memory[k % DEPTH]);
        }
    }
    printf("%ld submits\n", submits);
    return 0;
}
