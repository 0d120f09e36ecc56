/* The runtime as a library: the host hands over the image in memory. */
#include "sf_port.h"

#include <time.h>

static const uint8_t *image;
static uint32_t image_bytes;

void sf_library_image(const uint8_t *data, uint32_t bytes);

void sf_library_image(const uint8_t *data, uint32_t bytes) {
    image = data;
    image_bytes = bytes;
}

const uint8_t *sf_port_flash_base(void) {
    return image;
}

uint32_t sf_port_flash_size(void) {
    return image_bytes;
}

uint64_t sf_port_ticks(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint32_t sf_port_ticks_per_second(void) {
    return 1000000000u;
}

bool sf_port_flash_same(void) {
    return true;
}
