/* The USART of STM32F7 and H7, polled. */
#include "bare.h"
#include "sf_board.h"
#include "sf_port.h"

enum { CR1 = 0x00, BRR = 0x0C, ISR = 0x1C, ICR = 0x20, RDR = 0x24, TDR = 0x28 };
enum { ENABLE = 1 << 0, RECEIVE = 1 << 2, TRANSMIT = 1 << 3, RX_INTERRUPT = 1 << 5 };
enum { OVERRUN = 1 << 3, RECEIVED = 1 << 5, SEND_EMPTY = 1 << 7 };

static volatile uint32_t *reg(uint32_t at) {
    return sf_reg(SF_UART_BASE + at);
}

void sf_uart_init(void) {
    *reg(BRR) = (SF_UART_CLOCK + SF_UART_BAUD / 2u) / SF_UART_BAUD;
    *reg(CR1) = ENABLE | RECEIVE | TRANSMIT | RX_INTERRUPT;
}

bool sf_uart_waiting(void) {
    if ((*reg(ISR) & OVERRUN) != 0) {
        *reg(ICR) = OVERRUN; /* else nothing more is received; the frame's CRC tells the loss */
    }
    return (*reg(ISR) & RECEIVED) != 0;
}

int sf_port_read(uint8_t *buffer, size_t n) {
    size_t k = 0;
    while (k < n && sf_uart_waiting()) {
        buffer[k++] = (uint8_t)*reg(RDR);
    }
    return (int)k;
}

int sf_port_write(const uint8_t *buffer, size_t n) {
    for (size_t i = 0; i < n; i++) {
        while ((*reg(ISR) & SEND_EMPTY) == 0) {
        }
        *reg(TDR) = buffer[i];
    }
    return (int)n;
}
