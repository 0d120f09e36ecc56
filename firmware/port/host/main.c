/* The board `host`: flash is a mapped file, the UART a pty or a TCP socket. */
#define _GNU_SOURCE
#include "link.h"
#include "sf_port.h"
#include "sf_runtime.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static const uint8_t *flash;
static uint32_t flash_bytes;
static int line = -1;

const uint8_t *sf_port_flash_base(void) {
    return flash;
}

uint32_t sf_port_flash_size(void) {
    return flash_bytes;
}

uint64_t sf_port_ticks(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint32_t sf_port_ticks_per_second(void) {
    return 1000000000u;
}

int sf_port_read(uint8_t *buffer, size_t n) {
    const ssize_t got = read(line, buffer, n);
    if (got > 0) {
        return (int)got;
    }
    return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

int sf_port_write(const uint8_t *buffer, size_t n) {
    const ssize_t put = write(line, buffer, n);
    if (put >= 0) {
        return (int)put;
    }
    if (errno == EAGAIN || errno == EINTR) {
        struct pollfd p = {.fd = line, .events = POLLOUT, .revents = 0};
        (void)poll(&p, 1, 100);
        return 0;
    }
    return -1;
}

void sf_port_idle(void) {
    struct pollfd p = {.fd = line, .events = POLLIN, .revents = 0};
    (void)poll(&p, 1, 1000);
}

static int fail(const char *what, const char *where) {
    fprintf(stderr, "%s %s: %s\n", what, where, strerror(errno));
    return 3;
}

static int map_flash(const char *path) {
    struct stat s;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &s) != 0 || s.st_size <= 0 || s.st_size > 0xFFFFFFFFll) {
        return -1;
    }
    void *p = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (p == MAP_FAILED) {
        return -1;
    }
    flash = p;
    flash_bytes = (uint32_t)s.st_size;
    return 0;
}

/* A raw pty; the slave stays open here so that a host that closes it can come back. */
static int open_pty(void) {
    struct termios t;
    line = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (line < 0 || grantpt(line) != 0 || unlockpt(line) != 0) {
        return -1;
    }
    const char *name = ptsname(line);
    const int slave = name ? open(name, O_RDWR | O_NOCTTY | O_CLOEXEC) : -1;
    if (slave < 0 || tcgetattr(slave, &t) != 0) {
        return -1;
    }
    cfmakeraw(&t);
    if (tcsetattr(slave, TCSANOW, &t) != 0) {
        return -1;
    }
    printf("PORT %s\n", name);
    return 0;
}

static int serve_tcp(uint16_t port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t n = sizeof a;
    const int one = 1;
    const int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (s < 0 || setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        bind(s, (struct sockaddr *)&a, sizeof a) != 0 || listen(s, 1) != 0 ||
        getsockname(s, (struct sockaddr *)&a, &n) != 0) {
        return fail("cannot listen on", "127.0.0.1");
    }
    printf("PORT socket://127.0.0.1:%u\n", (unsigned)ntohs(a.sin_port));
    fflush(stdout);
    for (;;) {
        line = accept4(s, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (line < 0) {
            return fail("cannot accept on", "127.0.0.1");
        }
        (void)setsockopt(line, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (sf_link_run() == 0) {
            return 0;
        }
        close(line);
    }
}

int main(int argc, char **argv) {
    if (argc < 3 || (strcmp(argv[2], "--pty") != 0 && (strcmp(argv[2], "--tcp") != 0 || argc < 4))) {
        fprintf(stderr, "usage: %s IMAGE --pty | --tcp PORT\n", argv[0]);
        return 2;
    }
    if (map_flash(argv[1]) != 0) {
        return fail("cannot map the flash image", argv[1]);
    }
    if (sf_init() != SF_OK) {
        fprintf(stderr, "%s is not the image this firmware was built for: flash both again\n", argv[1]);
        return 8;
    }
    if (strcmp(argv[2], "--tcp") == 0) {
        return serve_tcp((uint16_t)strtoul(argv[3], NULL, 10));
    }
    if (open_pty() != 0) {
        return fail("cannot open", "a pty");
    }
    fflush(stdout);
    (void)fcntl(line, F_SETFL, O_NONBLOCK);
    return sf_link_run() == 0 ? 0 : 7;
}
