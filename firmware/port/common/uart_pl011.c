/* Arm's PL011, polled: its receive FIFO holds what comes while a token is computed. */
#include "bare.h"
#include "sf_board.h"
#include "sf_port.h"

enum { DATA = 0x00, FLAGS = 0x18, IBRD = 0x24, FBRD = 0x28, LCR = 0x2C, CONTROL = 0x30 };
enum { IFLS = 0x34, MASK = 0x38 };
enum { RX_EMPTY = 1 << 4, TX_FULL = 1 << 5 };

static volatile uint32_t *reg(uint32_t at) {
    return sf_reg(SF_UART_BASE + at);
}

void sf_uart_init(void) {
    const uint32_t divisor = (SF_UART_CLOCK * 4u + SF_UART_BAUD / 2u) / SF_UART_BAUD; /* in 64ths */
    *reg(CONTROL) = 0;
    *reg(IBRD) = divisor >> 6;
    *reg(FBRD) = divisor & 63u;
    *reg(LCR) = 0x70;               /* 8N1, FIFOs; takes over the divisor */
    *reg(IFLS) = 0;                 /* interrupt from an eighth of the FIFO on, */
    *reg(MASK) = 1u << 4 | 1u << 6; /* or when fewer bytes wait and no more come */
    *reg(CONTROL) = 0x301;          /* on, both ways */
}

bool sf_uart_waiting(void) {
    return (*reg(FLAGS) & RX_EMPTY) == 0;
}

int sf_port_read(uint8_t *buffer, size_t n) {
    size_t k = 0;
    while (k < n && sf_uart_waiting()) {
        buffer[k++] = (uint8_t)*reg(DATA);
    }
    return (int)k;
}

int sf_port_write(const uint8_t *buffer, size_t n) {
    for (size_t i = 0; i < n; i++) {
        while ((*reg(FLAGS) & TX_FULL) != 0) {
        }
        *reg(DATA) = buffer[i];
    }
    return (int)n;
}
