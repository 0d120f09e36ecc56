/* STM32F746 Discovery: USART1 on the debugger's virtual port, the N25Q128A in its memory window.
 * The clock stays the 16 MHz of reset; one lane, a command every board revision knows. */
#include "bare.h"
#include "sf_board.h"

#define RCC 0x40023800u
#define GPIO(port) (0x40020000u + 0x400u * (port))
#define QUADSPI 0xA0001000u

enum { A = 0, B = 1, D = 3, E = 4 };
enum { FAST_READ = 0x0B };

_Static_assert(SF_CPU_HZ == 16000000u && SF_UART_CLOCK == SF_CPU_HZ, "HSI, no divider");

/* A pin of a port to an alternate function, fast. */
static void function(uint32_t port, uint32_t pin, uint32_t number) {
    volatile uint32_t *mode = sf_reg(GPIO(port)), *speed = sf_reg(GPIO(port) + 0x08u);
    volatile uint32_t *select = sf_reg(GPIO(port) + 0x20u + pin / 8u * 4u);
    *select = (*select & ~(0xFu << (pin % 8u * 4u))) | number << (pin % 8u * 4u);
    *speed |= 3u << (2u * pin);
    *mode = (*mode & ~(3u << (2u * pin))) | 2u << (2u * pin);
}

void sf_board_init(void) {
    sf_cache_on();
    *sf_reg(RCC + 0x30u) |= 1u << A | 1u << B | 1u << D | 1u << E;
    *sf_reg(RCC + 0x38u) |= 1u << 1; /* QUADSPI */
    *sf_reg(RCC + 0x44u) |= 1u << 4; /* USART1 */
    (void)*sf_reg(RCC + 0x44u);
    function(A, 9, 7);
    function(B, 7, 7);
    function(B, 2, 9);  /* clock */
    function(B, 6, 10); /* chip select */
    function(D, 11, 9); /* lanes 0 to 3; the last two hold the chip's write protect and hold high */
    function(D, 12, 9);
    function(E, 2, 9);
    function(D, 13, 9);
    *sf_reg(QUADSPI + 0x04u) = 23u << 16 | 2u << 8; /* 2^24 bytes, three clocks between commands */
    *sf_reg(QUADSPI + 0x00u) = 0u << 24 | 1u << 4 | 1u; /* full clock, late sampling, on */
    /* Mapped: command, address of 24 bits, 8 idle clocks and data in one lane. */
    *sf_reg(QUADSPI + 0x14u) =
        3u << 26 | 1u << 24 | 8u << 18 | 2u << 12 | 1u << 10 | 1u << 8 | FAST_READ;
}
