/* Start-up of a core that runs without interrupts. */
#include "bare.h"
#include "sf_port.h"

/* Of the linker script. */
extern uint32_t sf_data_start, sf_data_end, sf_bss_start, sf_bss_end;
extern const uint32_t sf_data_load;

void sf_begin(void);

void sf_begin(void) {
    const uint32_t *from = &sf_data_load;
    for (uint32_t *to = &sf_data_start; to < &sf_data_end; to++, from++) {
        *to = *from;
    }
    for (uint32_t *to = &sf_bss_start; to < &sf_bss_end; to++) {
        *to = 0;
    }
    (void)main();
    for (;;) {
    }
}

void sf_port_idle(void) {
}
