/* A board that is ready after reset. */
#include "bare.h"

void sf_board_init(void) {
}
