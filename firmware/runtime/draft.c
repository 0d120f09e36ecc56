/* A draft by prompt lookup: what followed the last tokens where they stood before. */
#include "sf_state.h"

#include <string.h>

/* The more of the last tokens are the same, the more will follow. */
enum { LONGEST = 3 };
static const uint8_t longest_draft[LONGEST + 1] = {0, 2, 3, 7};

uint32_t sf_draft(const uint32_t *text, uint32_t n, uint32_t least, uint32_t most, uint32_t *out) {
    for (uint32_t k = LONGEST; k >= least; k--) {
        for (uint32_t at = n > k ? n - k : 0; at-- > 0;) {
            if (memcmp(text + at, text + n - k, k * sizeof *text) == 0) {
                const uint32_t count = most < longest_draft[k] ? most : longest_draft[k];
                for (uint32_t i = 0, from = at + k; i < count; i++, from++) {
                    out[i] = from < n ? text[from] : out[from - n];
                }
                return count;
            }
        }
    }
    return 0;
}
