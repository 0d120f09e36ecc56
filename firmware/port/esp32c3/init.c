/* ESP32-C3 after direct boot; nothing here ran on a chip yet. */
#include "bare.h"
#include "esp32.h"

void sf_board_init(void) {
    static const sf_esp32_chip chip = {.wdt = 0x60008090u,
                                       .wdt_protect = 0x600080A8u,
                                       .swd = 0x600080ACu,
                                       .swd_protect = 0x600080B0u,
                                       .cpu = 0x600C0008u,
                                       .clock = 0x600C0058u};
    sf_esp32_start(&chip);
}
