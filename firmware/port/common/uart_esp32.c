/* UART0 of ESP32-C3 and S3, polled; the ROM has set up its pins and 8N1. */
#include "bare.h"
#include "sf_board.h"
#include "sf_port.h"

#define FIFO (SF_UART_BASE + 0x00u)
#define DIVIDER (SF_UART_BASE + 0x14u)
#define STATUS (SF_UART_BASE + 0x1Cu)
#define CLOCK (SF_UART_BASE + 0x78u)

/* Receiver, transmitter and registers clocked, source 3: the crystal, which the PLL does not move.
 */
#define CLOCK_CRYSTAL (1u << 25 | 1u << 24 | 1u << 22 | 3u << 20)

enum { COUNT = 0x3FF, SENDING = 16, DEPTH = 128 };

void sf_uart_init(void) {
    const uint32_t sixteenths = (SF_UART_CLOCK * 16u + SF_UART_BAUD / 2u) / SF_UART_BAUD;
    while ((*sf_reg(STATUS) >> SENDING & COUNT) != 0) { /* what the ROM says */
    }
    *sf_reg(CLOCK) = CLOCK_CRYSTAL;
    *sf_reg(DIVIDER) = (sixteenths & 15u) << 20 | sixteenths >> 4;
}

bool sf_uart_waiting(void) {
    return (*sf_reg(STATUS) & COUNT) != 0;
}

int sf_port_read(uint8_t *buffer, size_t n) {
    size_t k = 0;
    while (k < n && sf_uart_waiting()) {
        buffer[k++] = (uint8_t)*sf_reg(FIFO);
    }
    return (int)k;
}

int sf_port_write(const uint8_t *buffer, size_t n) {
    for (size_t i = 0; i < n; i++) {
        while ((*sf_reg(STATUS) >> SENDING & COUNT) >= DEPTH - 1u) {
        }
        *sf_reg(FIFO) = buffer[i];
    }
    return (int)n;
}
