/* The board `host` as a process: sparseflash-device --flash IMAGE [--tcp PORT | --pty]
 * [--threads N]. */
#include "host.h"
#include "link.h"
#include "sf_runtime.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Exit codes: those of the command line, docs/EXIT_CODES.md. */
enum { DONE = 0, USAGE = 2, INPUT = 3, LINE = 7, MISMATCH = 8 };

static int fail(int code, const char *what, const char *where) {
    fprintf(stderr, "cannot %s %s: %s\n", what, where, strerror(errno));
    return code;
}

int main(int argc, char **argv) {
    const char *image = NULL;
    const char *tcp = NULL;
    bool follow = false;
    unsigned long threads = 0; /* one for each core */
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--flash") == 0 && i + 1 < argc) {
            image = argv[++i];
        } else if (strcmp(argv[i], "--tcp") == 0 && i + 1 < argc) {
            tcp = argv[++i];
        } else if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc) {
            threads = strtoul(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--follow-stdin") == 0) {
            follow = true;
        } else if (strcmp(argv[i], "--pty") != 0) {
            fprintf(stderr, "unknown option %s\n", argv[i]);
            return USAGE;
        }
    }
    if (image == NULL) {
        fprintf(stderr, "usage: %s --flash IMAGE [--tcp PORT | --pty] [--threads N]\n", argv[0]);
        return USAGE;
    }
    if (!host_flash_open(image)) {
        return fail(INPUT, "map the flash image", image);
    }
    const int code = sf_init();
    if (code == SF_ERR_DAMAGED || code == SF_ERR_FLASH) {
        fprintf(stderr, "%s is damaged or cannot be read: pack and flash it again\n", image);
        return INPUT;
    }
    if (code != SF_OK) {
        fprintf(stderr, "%s is not the image this firmware was built for: flash both again\n",
                image);
        return MISMATCH;
    }
    sf_threads((uint32_t)(threads < 65536u ? threads : 65536u));
    if (follow) {
        host_follow_stdin();
    }
    if (tcp == NULL) {
        if (!host_pty_open()) {
            return fail(LINE, "open", "a pty");
        }
        return sf_link_run() ? DONE : LINE;
    }
    const int listener = host_tcp_listen((uint16_t)strtoul(tcp, NULL, 10));
    if (listener < 0) {
        return fail(LINE, "listen on port", tcp);
    }
    while (host_tcp_accept(listener)) {
        if (sf_link_run()) {
            return DONE;
        }
    }
    return fail(LINE, "accept on port", tcp);
}
