/* Which kernels the tier of Cortex-M0 and M0+: no 64-bit products, floats in software has. */
#ifndef SF_TIER_H
#define SF_TIER_H

/* Most rows a kernel takes at once; it prepares the activations for them. */
#define SF_TILE 32u

/* Its conversion of sums is a function. */
#define SF_TIER_SUM_TO_FLOAT 1

#define SF_TIER_HAS(X)                                                                             \
    X(armv6m, quantize)                                                                            \
    X(armv6m, quantize16)                                                                          \
    X(armv6m, quantize8)                                                                           \
    X(armv6m, dot_q4)                                                                              \
    X(armv6m, dot_q8)                                                                              \
    X(armv6m, dot_s4)                                                                              \
    X(armv6m, axpy_q4)                                                                             \
    X(armv6m, axpy_q8)                                                                             \
    X(armv6m, axpy_s4)                                                                             \
    X(armv6m, scale_q4)                                                                            \
    X(armv6m, scale_q8)                                                                            \
    X(armv6m, rmsnorm)                                                                             \
    X(armv6m, sigmoid)                                                                             \
    X(armv6m, silu)                                                                                \
    X(armv6m, gelu_tanh)                                                                           \
    X(armv6m, attention)

#endif
