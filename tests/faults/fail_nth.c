/* For LD_PRELOAD: call number FAIL_NTH of those below, of all together, fails as FAIL_ERRNO says.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

static atomic_int calls;

static bool fails(const char *name) {
    const char *nth = getenv("FAIL_NTH"), *code = getenv("FAIL_ERRNO");
    const char *each = getenv("FAIL_NAME");
    const bool now = (nth != NULL && ++calls == atoi(nth)) || (each != NULL && !strcmp(each, name));
    if (code == NULL || !now) {
        return false;
    }
    char said[64];
    const int n = snprintf(said, sizeof said, "failed on purpose: %s\n", name);
    /* Past the functions below. */
    if (n > 0) {
        ssize_t (*out)(int, const void *, size_t);
        *(void **)&out = dlsym(RTLD_NEXT, "write");
        (void)!out(STDERR_FILENO, said, (size_t)n);
    }
    errno = atoi(code);
    return true;
}

#define CALL(type, bad, name, parameters, arguments)                                               \
    type name parameters {                                                                         \
        type(*next) parameters;                                                                    \
        if (fails(#name)) {                                                                        \
            return bad;                                                                            \
        }                                                                                          \
        *(void **)&next = dlsym(RTLD_NEXT, #name);                                                 \
        return next arguments;                                                                     \
    }

CALL(int, -1, posix_openpt, (int flags), (flags))
CALL(int, -1, grantpt, (int fd), (fd))
CALL(int, -1, unlockpt, (int fd), (fd))
CALL(char *, NULL, ptsname, (int fd), (fd))
CALL(int, -1, tcgetattr, (int fd, struct termios *t), (fd, t))
CALL(int, -1, tcsetattr, (int fd, int how, const struct termios *t), (fd, how, t))
CALL(int, -1, fstat, (int fd, struct stat *s), (fd, s))
CALL(int, -1, stat, (const char *restrict path, struct stat *restrict s), (path, s))
CALL(int, -1, poll, (struct pollfd * p, nfds_t n, int wait), (p, n, wait))
CALL(ssize_t, -1, read, (int fd, void *to, size_t n), (fd, to, n))
CALL(ssize_t, -1, write, (int fd, const void *from, size_t n), (fd, from, n))
CALL(ssize_t, -1, pread, (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
CALL(void *, MAP_FAILED, mmap, (void *to, size_t n, int how, int flags, int fd, off_t at),
     (to, n, how, flags, fd, at))
CALL(int, -1, socket, (int domain, int type, int protocol), (domain, type, protocol))
CALL(int, -1, setsockopt, (int fd, int level, int name, const void *value, socklen_t n),
     (fd, level, name, value, n))
CALL(int, -1, bind, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n))
CALL(int, -1, listen, (int fd, int n), (fd, n))
CALL(int, -1, getsockname, (int fd, struct sockaddr *restrict a, socklen_t *restrict n), (fd, a, n))
CALL(int, -1, accept4, (int fd, struct sockaddr *restrict a, socklen_t *restrict n, int flags),
     (fd, a, n, flags))
CALL(int, EAGAIN, pthread_create,
     (pthread_t *restrict t, const pthread_attr_t *restrict a, void *(*run)(void *),
      void *restrict with),
     (t, a, run, with))
CALL(void *, NULL, malloc, (size_t n), (n))

int open(const char *path, int flags, ...) {
    int (*next)(const char *, int, ...);
    if (fails("open")) {
        return -1;
    }
    *(void **)&next = dlsym(RTLD_NEXT, "open");
    return next(path, flags, 0);
}

int fcntl(int fd, int command, ...) {
    int (*next)(int, int, ...);
    va_list more;
    va_start(more, command);
    const int value = va_arg(more, int);
    va_end(more);
    if (fails("fcntl")) {
        return -1;
    }
    *(void **)&next = dlsym(RTLD_NEXT, "fcntl");
    return next(fd, command, value);
}

/* io_uring's calls have at most six arguments. */
long syscall(long number, ...) {
    long (*next)(long, ...), a[6];
    va_list more;
    va_start(more, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(more, long);
    }
    va_end(more);
    if (fails("syscall")) {
        return -1;
    }
    *(void **)&next = dlsym(RTLD_NEXT, "syscall");
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
