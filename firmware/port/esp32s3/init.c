/* ESP32-S3 after direct boot; nothing here ran on a chip yet. */
#include "bare.h"
#include "esp32.h"

void sf_board_init(void) {
    static const sf_esp32_chip chip = {.wdt = 0x60008098u,
                                       .wdt_protect = 0x600080B0u,
                                       .swd = 0x600080B4u,
                                       .swd_protect = 0x600080B8u,
                                       .cpu = 0x600C0010u,
                                       .clock = 0x600C0060u};
    sf_esp32_start(&chip);
}
