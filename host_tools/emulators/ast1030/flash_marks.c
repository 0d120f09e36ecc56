/* Tells an emulator's plugin what the stream asks of the flash: linked in front of the port's
 * functions (-Wl,--wrap). A load of the byte at an address below the end of the SRAM carries a
 * number to a plugin that sees addresses only; the byte itself does not matter. */
#include "sf_flash.h"

void sf_mark_read(uint32_t bytes);
void sf_mark_wait(uint32_t ticket);
sf_ticket __real_sf_flash_submit(uint32_t offset, uint32_t bytes, void *buffer);
sf_ticket __wrap_sf_flash_submit(uint32_t offset, uint32_t bytes, void *buffer);
int __real_sf_flash_wait(sf_ticket t);
int __wrap_sf_flash_wait(sf_ticket t);

__attribute__((noinline)) void sf_mark_read(uint32_t bytes) {
    (void)*(volatile const uint8_t *)(uintptr_t)bytes;
}

__attribute__((noinline)) void sf_mark_wait(uint32_t ticket) {
    (void)*(volatile const uint8_t *)(uintptr_t)ticket;
}

sf_ticket __wrap_sf_flash_submit(uint32_t offset, uint32_t bytes, void *buffer) {
    const sf_ticket ticket = __real_sf_flash_submit(offset, bytes, buffer);
    if (ticket != SF_NO_TICKET) {
        sf_mark_read(bytes);
    }
    return ticket;
}

int __wrap_sf_flash_wait(sf_ticket t) {
    sf_mark_wait(t & 0xFFFFu);
    return __real_sf_flash_wait(t);
}
