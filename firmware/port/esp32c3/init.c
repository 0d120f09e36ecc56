/* ESP32-C3 after direct boot: watchdogs off, 160 MHz, the system timer. Registers as the vendor's
 * headers name them; nothing here ran on a chip yet. */
#include "bare.h"
#include "sf_port.h"

#define RTC_WDT_CONFIG 0x60008090u
#define RTC_WDT_PROTECT 0x600080A8u
#define RTC_SWD_CONFIG 0x600080ACu
#define RTC_SWD_PROTECT 0x600080B0u
#define TIMG0_WDT_CONFIG 0x6001F048u
#define TIMG0_WDT_PROTECT 0x6001F064u
#define WDT_KEY 0x50D83AA1u
#define SWD_KEY 0x8F1D312Au
#define SWD_AUTO_FEED (1u << 31)

#define SYSTEM_CPU 0x600C0008u
#define CPU_PLL_480 (1u << 2)
#define CPU_160 1u
#define SYSTEM_CLOCK 0x600C0058u
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

void sf_board_init(void) {
    watchdog_off(RTC_WDT_CONFIG, RTC_WDT_PROTECT);
    watchdog_off(TIMG0_WDT_CONFIG, TIMG0_WDT_PROTECT);
    *sf_reg(RTC_SWD_PROTECT) = SWD_KEY;
    *sf_reg(RTC_SWD_CONFIG) |= SWD_AUTO_FEED; /* it cannot be turned off */
    *sf_reg(RTC_SWD_PROTECT) = 0;

    /* The ROM leaves the core on the crystal at 20 MHz, and the PLL on for USB. */
    *sf_reg(SYSTEM_CLOCK) = (*sf_reg(SYSTEM_CLOCK) & ~CLOCK_SOURCE) | CLOCK_PLL;
    *sf_reg(SYSTEM_CPU) = (*sf_reg(SYSTEM_CPU) & ~3u) | CPU_PLL_480 | CPU_160;

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
