/* What a board supplies. */
#ifndef SF_PORT_H
#define SF_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Memory-mapped flash: address of the image's byte 0. */
const uint8_t *sf_port_flash_base(void);
/* Bytes the flash holds from byte 0 of the image on. */
uint32_t sf_port_flash_size(void);
/* Whether the flash is still the one of the start: a file may be replaced, a chip is not. */
bool sf_port_flash_same(void);
/* A free-running counter and its rate; 0 Hz when the board has none. */
uint64_t sf_port_ticks(void);
uint32_t sf_port_ticks_per_second(void);
/* The serial line. Reads return the count, 0 when nothing waits, -1 when the line is gone. */
int sf_port_read(uint8_t *buffer, size_t n);
int sf_port_write(const uint8_t *buffer, size_t n);
/* Sleeps until input may wait; may return early. */
void sf_port_idle(void);

#endif
