/* Flash that the processor reads at a fixed address. */
#include "sf_board.h"
#include "sf_port.h"

const uint8_t *sf_port_flash_base(void) {
    return (const uint8_t *)(uintptr_t)SF_FLASH_BASE;
}

uint32_t sf_port_flash_size(void) {
    return SF_FLASH_BYTES;
}

bool sf_port_flash_same(void) {
    return true;
}
