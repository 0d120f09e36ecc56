/* A draft by prompt lookup: what followed the last tokens where they stood before. */
#include "sf_state.h"

#include <string.h>

enum { LONGEST = 3, SHORTEST = 2 }; /* tokens that have to be the same */

uint32_t sf_draft(const uint32_t *text, uint32_t n, uint32_t most, uint32_t *out) {
    for (uint32_t k = LONGEST; k >= SHORTEST; k--) {
        for (uint32_t at = n > k ? n - k : 0; at-- > 0;) {
            if (memcmp(text + at, text + n - k, k * sizeof *text) == 0) {
                for (uint32_t i = 0, from = at + k; i < most; i++, from++) {
                    out[i] = from < n ? text[from] : out[from - n];
                }
                return most;
            }
        }
    }
    return 0;
}
