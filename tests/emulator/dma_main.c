/* Says "!" once it listens, then answers {offset, bytes, parts} with those bytes of flash, read by
 * DMA in several parts. */
#include "bare.h"
#include "sf_board.h"
#include "sf_flash.h"
#include "sf_port.h"

#include <string.h>

enum { MOST = 65536, GUARD = 64, QUEUE = 16 };

static uint8_t buffer[GUARD + MOST + GUARD] SF_FLASH_BUFFER;

static void get(uint8_t *p, size_t n) {
    while (n > 0) {
        const int k = sf_port_read(p, n);
        p += k;
        n -= (size_t)k;
        if (k == 0) {
            sf_port_idle();
        }
    }
}

int main(void) {
    sf_board_init();
    sf_uart_init();
    const uint8_t listens = '!'; /* setting up the UART loses what came before */
    sf_port_write(&listens, 1);
    for (;;) {
        uint32_t ask[3];
        get((uint8_t *)ask, sizeof ask);
        memset(buffer, 0xA5, sizeof buffer);
        const uint32_t part = ask[1] / ask[2];
        sf_ticket last = SF_NO_TICKET;
        uint32_t refused = 0;
        for (uint32_t i = 0; i < ask[2]; i++) {
            for (;;) {
                const sf_ticket t =
                    sf_flash_submit(ask[0] + i * part, part, buffer + GUARD + i * part);
                if (t != SF_NO_TICKET) {
                    last = t;
                    break;
                }
                refused++;
                sf_flash_wait(last - QUEUE + 1u);
            }
        }
        sf_flash_wait(last);
        uint32_t damaged = 0;
        for (uint32_t i = 0; i < GUARD; i++) {
            damaged += buffer[i] != 0xA5u || buffer[GUARD + ask[1] + i] != 0xA5u;
        }
        sf_port_write((const uint8_t *)&damaged, sizeof damaged);
        sf_port_write((const uint8_t *)&last, sizeof last);
        sf_port_write((const uint8_t *)&refused, sizeof refused);
        sf_port_write(buffer + GUARD, ask[1]);
    }
}
