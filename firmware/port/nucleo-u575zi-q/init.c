/* STM32U575: USART1 on the debugger's virtual port, 16 MHz from HSI, the instruction cache on.
 * Registers as the reference manual RM0456 names them; nothing here ran on a chip yet. */
#include "bare.h"
#include "sf_board.h"

#define RCC 0x46020C00u
#define RCC_CR (RCC + 0x00u)
#define RCC_CFGR1 (RCC + 0x1Cu)
#define RCC_AHB2ENR1 (RCC + 0x8Cu)
#define RCC_APB2ENR (RCC + 0xA4u)
#define FLASH_ACR 0x40022000u
#define ICACHE_CR 0x40030400u
#define GPIOA 0x42020000u

#define HSI_ON (1u << 8)
#define HSI_READY (1u << 10)
#define HSI_SELECTED (1u << 2)

_Static_assert(SF_CPU_HZ == 16000000u && SF_UART_CLOCK == SF_CPU_HZ, "HSI, no divider");

void sf_board_init(void) {
    *sf_reg(FLASH_ACR) |= 3u; /* wait states: more than 16 MHz needs in any voltage range */
    *sf_reg(RCC_CR) |= HSI_ON;
    while ((*sf_reg(RCC_CR) & HSI_READY) == 0) {
    }
    *sf_reg(RCC_CFGR1) = (*sf_reg(RCC_CFGR1) & ~3u) | 1u;
    while ((*sf_reg(RCC_CFGR1) & 12u) != HSI_SELECTED) {
    }
    *sf_reg(ICACHE_CR) |= 1u;
    *sf_reg(RCC_AHB2ENR1) |= 1u;
    *sf_reg(RCC_APB2ENR) |= 1u << 14;
    (void)*sf_reg(RCC_APB2ENR);
    *sf_reg(GPIOA + 0x00u) = (*sf_reg(GPIOA) & ~(0xFu << 18)) | 0xAu
                                                                    << 18; /* PA9, PA10: function */
    *sf_reg(GPIOA + 0x24u) = (*sf_reg(GPIOA + 0x24u) & ~0xFF0u) | 0x770u;  /* 7: USART1 */
}
