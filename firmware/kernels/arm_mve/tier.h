/* Which kernels the tier of Cortex-M55 (MVE) has. */
#ifndef SF_TIER_H
#define SF_TIER_H

/* Most rows a kernel takes at once; it prepares the activations for them. */
#define SF_TILE 128u

#define SF_TIER_HAS(X)                                                                             \
    X(arm_mve, quantize)                                                                           \
    X(arm_mve, quantize16)                                                                         \
    X(arm_mve, quantize8)                                                                          \
    X(arm_mve, dot_q4)                                                                             \
    X(arm_mve, dot_q8)                                                                             \
    X(arm_mve, dot_s4)                                                                             \
    X(arm_mve, axpy_q4)                                                                            \
    X(arm_mve, axpy_q8)                                                                            \
    X(arm_mve, axpy_s4)                                                                            \
    X(arm_mve, scale_q4)                                                                           \
    X(arm_mve, scale_q8)                                                                           \
    X(arm_mve, attention)

#endif
