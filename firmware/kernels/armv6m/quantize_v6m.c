/* Activations to block floating point without a multiply of floats; the same integers as plain C.
 */
#include "armv6m.h"

typedef int32_t scale;

static scale scale_for(uint32_t top, int32_t s) {
    return top >= 0x00800000u ? 150 - s : 300; /* from 280 on, every float gives 0 */
}

static int32_t scaled(float x, scale base, int32_t limit) {
    return sf_v6m_quantize(x, base, limit);
}

#define SF_NAME(kernel) sf_armv6m_##kernel
#include "plain/quantize_body.h"
