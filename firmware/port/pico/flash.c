/* Flash of an RP2040 board: from one lane to four, "continuous" reads of command EBh. */
#include "bare.h"
#include "pico.h"
#include "sf_board.h"

#define SSI 0x18000000u
#define XIP 0x14000000u

enum { CTRLR0 = 0x00, CTRLR1 = 0x04, SSIENR = 0x08, BAUDR = 0x14, SR = 0x28, DR0 = 0x60 };
enum { RX_SAMPLE_DLY = 0xF0, SPI_CTRLR0 = 0xF4 };
enum { BUSY = 1 << 0, TX_EMPTY = 1 << 2 };
enum { READ_STATUS1 = 0x05, READ_STATUS2 = 0x35, WRITE_STATUS2 = 0x31, WRITE_ENABLE = 0x06 };
enum { QUAD_ENABLE = 2 };

#define ONE_LANE_READ 0x001F0300u /* frames of 32 bits, "EEPROM read" */
#define FOUR_LANE_READ 0x005F0300u
#define PLAIN 0x00070000u   /* frames of 8 bits, both ways, one lane */
#define READ_03 0x03000218u /* command 03h, address of 24 bits */
#define ENTER_EB                                                                                   \
    0x00002221u              /* command in one lane; address, mode bits in four; 4 clocks of wait  \
                              */
#define GO_ON_A0 0xA0002022u /* no command; address, mode bits A0h in four */

static volatile uint32_t *ssi(uint32_t at) {
    return sf_reg(SSI + at);
}

static void idle(void) {
    while ((*ssi(SR) & (BUSY | TX_EMPTY)) != TX_EMPTY) {
    }
}

/* Two bytes to the chip; the second it answers. */
static uint32_t transfer(uint32_t command, uint32_t value) {
    *ssi(DR0) = command;
    *ssi(DR0) = value;
    idle();
    (void)*ssi(DR0);
    return *ssi(DR0) & 0xFFu;
}

static void command(uint32_t byte) {
    *ssi(DR0) = byte;
    idle();
    (void)*ssi(DR0);
}

static void setup(uint32_t control, uint32_t spi, uint32_t divider) {
    *ssi(SSIENR) = 0;
    *ssi(BAUDR) = divider;
    *ssi(CTRLR0) = control;
    *ssi(CTRLR1) = 0;
    *ssi(SPI_CTRLR0) = spi;
    *ssi(RX_SAMPLE_DLY) = divider == 2u ? 1 : 0; /* data of a fast clock come late */
    *ssi(SSIENR) = 1;
}

/* What the program itself holds, read past the cache. */
static uint32_t checksum(void) {
    const volatile uint32_t *p = sf_reg(SF_FLASH_UNCACHED);
    uint32_t sum = 0;
    for (uint32_t i = 0; i < 256; i++) {
        sum = sum * 31u + p[i];
    }
    return sum;
}

/* Runs from SRAM: flash cannot be read meanwhile. */
void sf_pico_flash_fast(void) {
    __asm volatile("cpsid i" ::: "memory");
    const uint32_t want = checksum();
    setup(PLAIN, 0, 4);
    uint32_t status = transfer(READ_STATUS2, 0);
    if ((status & QUAD_ENABLE) == 0) {
        command(WRITE_ENABLE);
        (void)transfer(WRITE_STATUS2, status | QUAD_ENABLE);
        while ((transfer(READ_STATUS1, 0) & 1u) != 0) {
        }
        status = transfer(READ_STATUS2, 0);
    }
    if ((status & QUAD_ENABLE) != 0) {
        setup(FOUR_LANE_READ, ENTER_EB, 2);
        *ssi(DR0) = 0xEB;
        *ssi(DR0) = 0xA0; /* address 0, then the mode bits that leave out the next command */
        idle();
        setup(FOUR_LANE_READ, GO_ON_A0, 2);
    }
    if ((status & QUAD_ENABLE) == 0 || checksum() != want) {
        setup(ONE_LANE_READ, READ_03, 4);
    }
    *sf_reg(XIP + 4u) = 1; /* flush: nothing read in between may stay in the cache */
    (void)*sf_reg(XIP + 4u);
    __asm volatile("cpsie i" ::: "memory");
}
