/* What the files of this port share. */
#ifndef SF_PICO_H
#define SF_PICO_H

#include <stdbool.h>
#include <stdint.h>

#define SF_PICO_SSI 0x18000000u
#define SF_PICO_DR0 0x60u

/* Sets the flash to read in four lanes; stays in one lane when the chip does not follow. */
void sf_pico_flash_fast(void);
/* Words that the SSI takes for one address; whether they ask for DMA. Mapped reads need 1, false.
 */
void sf_pico_ssi_frames(uint32_t words, bool dma);
/* What starts such a read when it is written to DR0. */
uint32_t sf_pico_read_word(uint32_t offset);

#endif
