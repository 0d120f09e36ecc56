/* A serial line in memory, for tests that call the device's side of the link. */
#include "sf_port.h"

#include <string.h>

enum { ROOM = 65536 };

uint8_t line_in[ROOM], line_out[ROOM];
uint32_t line_in_n, line_out_n;       /* waiting for the device; written by it */
uint32_t line_most = ROOM;            /* bytes that one write takes */
uint32_t line_rate = 1000, line_pace; /* ticks a second, and by how many a look at them moves on */
bool line_gone;
static uint32_t line_at;
static uint64_t now;

const uint8_t *sf_port_flash_base(void) {
    return (const uint8_t *)"FAKE";
}

uint64_t sf_port_ticks(void) {
    return now += line_pace;
}

uint32_t sf_port_ticks_per_second(void) {
    return line_rate;
}

int sf_port_read(uint8_t *buffer, size_t n) {
    const uint32_t left = line_in_n - line_at;
    const uint32_t k = n < left ? (uint32_t)n : left;
    if (line_gone && k == 0) {
        return -1;
    }
    memcpy(buffer, line_in + line_at, k);
    line_at += k;
    if (line_at == line_in_n) {
        line_at = line_in_n = 0;
    }
    return (int)k;
}

int sf_port_write(const uint8_t *buffer, size_t n) {
    const uint32_t k = n < line_most ? (uint32_t)n : line_most;
    if (line_gone) {
        return -1;
    }
    memcpy(line_out + line_out_n, buffer, k);
    line_out_n += k;
    return (int)k;
}

void sf_port_idle(void) {
    line_gone = true; /* nothing more comes in a test */
}
