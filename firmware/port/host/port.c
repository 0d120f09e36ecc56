/* A process as a board: the flash is a mapped file, the line a terminal or a socket. */
#define _GNU_SOURCE
#include "host.h"

#include "sf_port.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
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
static struct stat opened; /* the image's file when it was opened */
static int line = -1;
static int waiting = -1; /* listens for clients */
static bool follow;

const char *host_flash_path;

/* The mapped file became shorter and what was cut is asked for. Only write() and _exit() are
 * allowed here. */
static void cut(int number) {
    static const char said[] = "the flash image was cut while it was in use: flash it again\n";
    (void)number;
    (void)!write(STDERR_FILENO, said, sizeof said - 1u);
    _exit(3); /* input, docs/EXIT_CODES.md */
}

#ifdef HOST_LARGE_PAGES
/* Bytes of memory that this process may still take, as far as the system says. */
static uint64_t room(void) {
    static const char *const limits[] = {"/sys/fs/cgroup/memory.max",
                                         "/sys/fs/cgroup/memory/memory.limit_in_bytes"};
    const long pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t bytes = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        FILE *f = fopen(limits[i], "re");
        unsigned long long limit = 0;
        if (f != NULL && fscanf(f, "%llu", &limit) == 1 && limit < bytes) {
            bytes = limit;
        }
        if (f != NULL) {
            fclose(f);
        }
    }
    return bytes;
}

/* A copy of the image in pages of 2 MB, of which a processor remembers all, where memory has room
 * for both; a token of a large model has more pages of 4 KB than that. NULL: the file serves. */
static const uint8_t *in_large_pages(const uint8_t *file, size_t bytes) {
    const size_t page = (size_t)1 << 21, size = (bytes + page - 1u) / page * page;
    if (bytes < 4u * page || room() / 2u < bytes) {
        return NULL;
    }
    uint8_t *p =
        mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        return NULL;
    }
    uint8_t *const at = p + (page - (uintptr_t)p % page) % page;
    if (madvise(at, size, MADV_HUGEPAGE) != 0) {
        munmap(p, size + page);
        return NULL;
    }
    memcpy(at, file, bytes);
    return at;
}
#endif

bool host_flash_open(const char *path) {
    host_flash_path = path;
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    bool ok = fstat(fd, &st) == 0;
    if (ok && (st.st_size <= 0 || (uint64_t)st.st_size > UINT32_MAX)) {
        errno = EFBIG;
        ok = false;
    }
    if (ok) {
        opened = st;
        signal(SIGBUS, cut);
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        ok = p != MAP_FAILED;
        if (ok) {
            flash = p;
            flash_bytes = (uint32_t)st.st_size;
        }
#ifdef HOST_LARGE_PAGES
        const uint8_t *const copy = ok ? in_large_pages(flash, flash_bytes) : NULL;
        if (copy != NULL) {
            munmap(p, flash_bytes);
            flash = copy;
        }
#endif
    }
    const int saved = errno;
    close(fd);
    errno = saved;
    return ok;
}

bool host_pty_open(void) {
    const int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) {
        return false;
    }
    const char *name = ptsname(master);
    if (name == NULL) {
        return false;
    }
    /* Held open for good, so that a client that leaves does not end the line. */
    const int slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct termios t;
    if (slave < 0 || tcgetattr(slave, &t) != 0) {
        return false;
    }
    cfmakeraw(&t);
    if (tcsetattr(slave, TCSANOW, &t) != 0 || fcntl(master, F_SETFL, O_NONBLOCK) != 0) {
        return false;
    }
    line = master;
    printf("PORT %s\n", name);
    return fflush(stdout) == 0;
}

int host_tcp_listen(uint16_t port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t n = sizeof a;
    const int one = 1;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        bind(fd, (const struct sockaddr *)&a, n) != 0 || listen(fd, 1) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &n) != 0) {
        return -1;
    }
    printf("PORT socket://127.0.0.1:%u\n", (unsigned)ntohs(a.sin_port));
    return fflush(stdout) == 0 ? fd : -1;
}

/* Sleeps until fd has input; false when the parent closed our stdin and we follow it. */
static bool wait_input(int fd) {
    /* Entries of -1 are passed over. */
    struct pollfd p[3] = {{.fd = fd, .events = POLLIN},
                          {.fd = follow ? STDIN_FILENO : -1, .events = POLLIN},
                          {.fd = fd != waiting ? waiting : -1, .events = POLLIN}};
    if (poll(p, 3, 1000) <= 0) {
        return true;
    }
    /* One client at a time: another is turned away, but not while this one may just be leaving. */
    if (p[2].revents != 0 && p[0].revents == 0) {
        const int other = accept4(waiting, NULL, NULL, SOCK_CLOEXEC);
        if (other >= 0) {
            close(other);
        }
    }
    if (p[1].revents == 0) {
        return true;
    }
    uint8_t byte;
    return read(STDIN_FILENO, &byte, 1) > 0;
}

bool host_tcp_accept(int listener) {
    const int one = 1;
    signal(SIGPIPE, SIG_IGN); /* a client that leaves is an error of write(), not our end */
    if (line >= 0) {
        close(line);
        line = -1;
    }
    waiting = listener;
    if (fcntl(listener, F_SETFL, O_NONBLOCK) != 0) {
        return false;
    }
    while (line < 0) {
        if (!wait_input(listener)) {
            exit(0);
        }
        line = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (line < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
            return false;
        }
    }
    return setsockopt(line, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0;
}

void host_follow_stdin(void) {
    follow = true;
}

const uint8_t *sf_port_flash_base(void) {
    return flash;
}

uint32_t sf_port_flash_size(void) {
    return flash_bytes;
}

bool sf_port_flash_same(void) {
    struct stat st;
    return stat(host_flash_path, &st) == 0 && st.st_size == opened.st_size &&
           st.st_ino == opened.st_ino && st.st_dev == opened.st_dev &&
           st.st_mtim.tv_sec == opened.st_mtim.tv_sec &&
           st.st_mtim.tv_nsec == opened.st_mtim.tv_nsec;
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
    const ssize_t k = read(line, buffer, n);
    if (k > 0) {
        return (int)k;
    }
    return k < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

int sf_port_write(const uint8_t *buffer, size_t n) {
    const ssize_t k = write(line, buffer, n);
    if (k >= 0) {
        return (int)k;
    }
    if (errno != EAGAIN && errno != EINTR) {
        return -1;
    }
    struct pollfd p = {.fd = line, .events = POLLOUT};
    /* As on a wire, what nobody reads is lost; the host asks again. */
    return poll(&p, 1, 1000) == 0 ? (int)n : 0;
}

void sf_port_idle(void) {
    if (!wait_input(line)) {
        exit(0);
    }
}
