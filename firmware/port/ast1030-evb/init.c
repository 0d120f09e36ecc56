/* The flash controller (FMC): a 128 MB serial NOR in its memory window. */
#include "bare.h"
#include "sf_board.h"

#define CONF (SF_FLASH_CONTROL + 0x00u)
#define CE_CTRL (SF_FLASH_CONTROL + 0x04u)
#define CE0 (SF_FLASH_CONTROL + 0x10u)

enum {
    CE_ACTIVE_LOW = 7, /* user mode, chip select high */
    CE_USER = 3,       /* user mode, chip select low */
    CE_FAST_READ = 1
};

void sf_board_init(void) {
    *sf_reg(CONF) |= 1u << 16 | 2u; /* CE0: SPI, writes allowed (commands are writes) */
    /* The read command 0x03 has 3 address bytes, so past 16 MB both sides change to 4 and 0x0c. */
    *sf_reg(CE0) = CE_ACTIVE_LOW;
    *sf_reg(CE0) = CE_USER;
    *(volatile uint8_t *)(uintptr_t)SF_FLASH_BASE = 0xB7;
    *sf_reg(CE0) = CE_ACTIVE_LOW;
    *sf_reg(CE_CTRL) |= 1u;
    *sf_reg(CE0) = 0x0Cu << 16 | 1u << 6 | CE_FAST_READ; /* one dummy byte */
    sf_flash_init();
}
