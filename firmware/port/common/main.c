/* A bare board: serve the line for ever. */
#include "bare.h"
#include "link.h"
#include "sf_runtime.h"

int main(void) {
    sf_board_init();
    sf_uart_init();
    sf_link_status(sf_init());
    for (;;) {
        sf_link_run();
    }
}
