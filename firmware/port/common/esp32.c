/* ESP32-C3 and S3 after direct boot. Registers as the vendor's headers name them. */
#include "esp32.h"
#include "bare.h"
#include "sf_port.h"

#define TIMG0_WDT_CONFIG 0x6001F048u
#define TIMG0_WDT_PROTECT 0x6001F064u
#define WDT_KEY 0x50D83AA1u
#define SWD_KEY 0x8F1D312Au
#define SWD_AUTO_FEED (1u << 31)

#define CPU_PLL_480 (1u << 2)
#define CPU_160 1u
#define CLOCK_SOURCE (3u << 10)
#define CLOCK_PLL (1u << 10)

#define TIMER_CONFIG 0x60023000u
#define TIMER_ON (1u << 31 | 1u << 30)
#define TIMER_UPDATE 0x60023004u
#define UPDATE_ASK (1u << 30)
#define UPDATE_VALID (1u << 29)
#define TIMER_HIGH 0x60023040u
#define TIMER_LOW 0x60023044u
#define TIMER_HZ 16000000u

static void watchdog_off(uint32_t config, uint32_t protect) {
    *sf_reg(protect) = WDT_KEY;
    *sf_reg(config) = 0;
    *sf_reg(protect) = 0;
}

void sf_esp32_start(const sf_esp32_chip *chip) {
    watchdog_off(chip->wdt, chip->wdt_protect);
    watchdog_off(TIMG0_WDT_CONFIG, TIMG0_WDT_PROTECT);
    *sf_reg(chip->swd_protect) = SWD_KEY;
    *sf_reg(chip->swd) |= SWD_AUTO_FEED; /* it cannot be turned off */
    *sf_reg(chip->swd_protect) = 0;

    /* The ROM leaves the core on the crystal at 20 MHz, and the PLL on for USB. */
    *sf_reg(chip->clock) = (*sf_reg(chip->clock) & ~CLOCK_SOURCE) | CLOCK_PLL;
    *sf_reg(chip->cpu) = (*sf_reg(chip->cpu) & ~3u) | CPU_PLL_480 | CPU_160;

    *sf_reg(TIMER_CONFIG) |= TIMER_ON;
}

uint64_t sf_port_ticks(void) {
    *sf_reg(TIMER_UPDATE) = UPDATE_ASK;
    while ((*sf_reg(TIMER_UPDATE) & UPDATE_VALID) == 0) {
    }
    const uint32_t high = *sf_reg(TIMER_HIGH) & 0xFFFFFu;
    return (uint64_t)high << 32 | *sf_reg(TIMER_LOW);
}

uint32_t sf_port_ticks_per_second(void) {
    return TIMER_HZ;
}
