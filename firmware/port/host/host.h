/* What main.c needs of the host port beside sf_port.h. On failure errno says why. */
#ifndef SF_HOST_H
#define SF_HOST_H

#include <stdbool.h>
#include <stdint.h>

/* The image that host_flash_open() was given, for ports that read it themselves. */
extern const char *host_flash_path;
bool host_flash_open(const char *path);
/* Both print `PORT url` on stdout. */
bool host_pty_open(void);
int host_tcp_listen(uint16_t port);
/* Waits for the next client, in place of the last one. */
bool host_tcp_accept(int listener);
/* Exit when stdin ends, so that the process does not outlive its parent. */
void host_follow_stdin(void);

#endif
