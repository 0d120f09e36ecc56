/* The APB UART of Arm's MPS boards, polled. */
#include "bare.h"
#include "sf_board.h"
#include "sf_port.h"

#define DATA (SF_UART_BASE + 0x00u)
#define STATE (SF_UART_BASE + 0x04u)
#define CTRL (SF_UART_BASE + 0x08u)
#define INTCLEAR (SF_UART_BASE + 0x0Cu)
#define BAUDDIV (SF_UART_BASE + 0x10u)

enum { TX_FULL = 1, RX_FULL = 2 };

void sf_uart_init(void) {
    *sf_reg(BAUDDIV) = SF_UART_DIVISOR;
    *sf_reg(CTRL) = 0x0B; /* transmit, receive, receive interrupt */
}

bool sf_uart_waiting(void) {
    return (*sf_reg(STATE) & RX_FULL) != 0;
}

int sf_port_read(uint8_t *buffer, size_t n) {
    size_t k = 0;
    while (k < n && sf_uart_waiting()) {
        *sf_reg(INTCLEAR) = 2; /* before the read: the next byte raises it again */
        buffer[k++] = (uint8_t)*sf_reg(DATA);
    }
    return (int)k;
}

int sf_port_write(const uint8_t *buffer, size_t n) {
    for (size_t i = 0; i < n; i++) {
        while ((*sf_reg(STATE) & TX_FULL) != 0) {
        }
        *sf_reg(DATA) = buffer[i];
    }
    return (int)n;
}
