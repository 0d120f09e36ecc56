/* Masks: which values reach a limit. */
#include "sf_kernels.h"

/* No branches: which are kept cannot be foretold. Bits are compared, for cores without floats. */
uint32_t sf_plain_keep_reaching(float *v, uint32_t n, float limit, uint16_t *pick) {
    const uint32_t least = sf_bits(limit) << 1;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t bits = sf_bits(v[i]), keep = bits << 1 >= least;
        pick[kept] = (uint16_t)i;
        kept += keep;
        v[i] = sf_from_bits(bits & (0u - keep));
    }
    return kept;
}
