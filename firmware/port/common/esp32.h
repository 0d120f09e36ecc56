/* What ESP32-C3 and ESP32-S3 do alike, at other addresses. */
#ifndef SF_ESP32_H
#define SF_ESP32_H

#include <stdint.h>

typedef struct {
    uint32_t wdt, wdt_protect; /* the watchdog of the RTC, and what unlocks it */
    uint32_t swd, swd_protect; /* the super watchdog */
    uint32_t cpu, clock;       /* SYSTEM_CPU_PER_CONF, SYSTEM_SYSCLK_CONF */
} sf_esp32_chip;

/* Watchdogs off, 160 MHz from the PLL, the system timer on. */
void sf_esp32_start(const sf_esp32_chip *chip);

#endif
