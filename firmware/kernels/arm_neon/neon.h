/* Shared by the tiers of 64-bit Arm. Sums are exact integers, so they equal plain C bit for bit. */
#ifndef SF_NEON_H
#define SF_NEON_H

#include "arm_dotprod/has.h"
#include "arm_neon/has.h"
#include "sf_kernels.h"

#include <arm_neon.h>
#include <stddef.h>

#define SF_INLINE static inline __attribute__((always_inline))

/* Four halves in units of 2^-24. */
SF_INLINE int32x4_t sf_halves4(uint8x8_t h) {
    return vcvtq_n_s32_f32(vcvt_f32_f16(vreinterpret_f16_u8(h)), 24);
}
/* Two halves, twice. */
SF_INLINE int32x4_t sf_two_halves(const uint8_t *p) {
    uint32_t both; /* aligned to 2 */
    memcpy(&both, p, sizeof both);
    return sf_halves4(vreinterpret_u8_u32(vdup_n_u32(both)));
}

#endif
