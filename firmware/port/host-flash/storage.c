#define _GNU_SOURCE
#include "storage.h"

#include "../host/host.h"
#include "sf_port.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int storage_open(uint32_t *size) {
    struct stat st;
    int fd = open(host_flash_path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (fd < 0) {
        fputs("note: this file system has no O_DIRECT; reads go through the page cache\n", stderr);
        fd = open(host_flash_path, O_RDONLY | O_CLOEXEC);
    }
    if (fd < 0 || fstat(fd, &st) != 0 || (uint64_t)st.st_size > UINT32_MAX) {
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    *size = (uint32_t)st.st_size;
    /* Only vectors and tables are read through the mapping. Reading ahead there would push the
     * program itself out of a small memory. */
    (void)posix_madvise((void *)(uintptr_t)sf_port_flash_base(), *size, POSIX_MADV_RANDOM);
    return fd;
}
