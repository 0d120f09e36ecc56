/* What the files of this port share. */
#ifndef SF_PICO_H
#define SF_PICO_H

/* Sets the flash to read in four lanes; stays in one lane when the chip does not follow. */
void sf_pico_flash_fast(void);

#endif
