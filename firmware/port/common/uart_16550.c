/* A 16550, polled. */
#include "bare.h"
#include "sf_board.h"
#include "sf_port.h"

enum { DATA = 0, IER = 1, FCR = 2, LCR = 3, LSR = 5 };
enum { RECEIVED = 0x01, HOLDING_EMPTY = 0x20 };

static int held = -1; /* a byte that came before set-up, which empties the FIFO */

#if SF_UART_SHIFT == 0 /* registers lie byte by byte */
typedef volatile uint8_t width;
#else
typedef volatile uint32_t width;
#endif

static width *reg(uint32_t n) {
    return (width *)(uintptr_t)(SF_UART_BASE + (n << SF_UART_SHIFT));
}

void sf_uart_init(void) {
    held = sf_uart_waiting() ? (int)(*reg(DATA) & 0xFFu) : -1;
    *reg(LCR) = 0x80; /* the next two are the divisor */
    *reg(DATA) = SF_UART_DIVISOR & 0xFFu;
    *reg(IER) = SF_UART_DIVISOR >> 8;
    *reg(LCR) = 0x03; /* 8N1 */
    *reg(FCR) = 0x07; /* FIFOs on and empty, interrupt from the first byte */
    *reg(IER) = 0x01;
}

bool sf_uart_waiting(void) {
    return held >= 0 || (*reg(LSR) & RECEIVED) != 0;
}

int sf_port_read(uint8_t *buffer, size_t n) {
    size_t k = 0;
    while (k < n && sf_uart_waiting()) {
        buffer[k++] = (uint8_t)(held >= 0 ? (uint32_t)held : *reg(DATA));
        held = -1;
    }
    return (int)k;
}

int sf_port_write(const uint8_t *buffer, size_t n) {
    for (size_t i = 0; i < n; i++) {
        while ((*reg(LSR) & HOLDING_EMPTY) == 0) {
        }
        *reg(DATA) = buffer[i];
    }
    return (int)n;
}
