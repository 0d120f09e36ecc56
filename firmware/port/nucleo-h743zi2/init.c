/* STM32H743: USART3 on the debugger's virtual port. The clock stays the 64 MHz of reset. */
#include "bare.h"
#include "sf_board.h"

#define RCC_AHB4ENR 0x580244E0u
#define RCC_APB1LENR 0x580244E8u
#define GPIOD 0x58020C00u

_Static_assert(SF_CPU_HZ == 64000000u && SF_UART_CLOCK == SF_CPU_HZ, "HSI, no divider");

void sf_board_init(void) {
    sf_cache_on();
    *sf_reg(RCC_AHB4ENR) |= 1u << 3;
    *sf_reg(RCC_APB1LENR) |= 1u << 18;
    (void)*sf_reg(RCC_APB1LENR);
    *sf_reg(GPIOD + 0x00u) = (*sf_reg(GPIOD) & ~(0xFu << 16)) | 0xAu << 16; /* PD8, PD9: function */
    *sf_reg(GPIOD + 0x24u) = (*sf_reg(GPIOD + 0x24u) & ~0xFFu) | 0x77u;     /* 7: USART3 */
}
