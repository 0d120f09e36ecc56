/* Which kernels the tier of 64-bit Arm has. */
#ifndef SF_ARM_NEON_HAS_H
#define SF_ARM_NEON_HAS_H

#define SF_ARM_NEON_HAS(X)                                                                         \
    X(arm_neon, quantize)                                                                          \
    X(arm_neon, quantize16)                                                                        \
    X(arm_neon, quantize8)                                                                         \
    X(arm_neon, dot_q4)                                                                            \
    X(arm_neon, dot_q8)                                                                            \
    X(arm_neon, dot_r8)                                                                            \
    X(arm_neon, dot_s4)                                                                            \
    X(arm_neon, dot2_q4)                                                                           \
    X(arm_neon, dot2_q8)                                                                           \
    X(arm_neon, dot2_s4)                                                                           \
    X(arm_neon, dot_proxy)                                                                         \
    X(arm_neon, axpy_q4)                                                                           \
    X(arm_neon, axpy_q8)                                                                           \
    X(arm_neon, axpy_r8)                                                                           \
    X(arm_neon, axpy_s4)                                                                           \
    X(arm_neon, scale_q4)                                                                          \
    X(arm_neon, scale_q8)                                                                          \
    X(arm_neon, silu)                                                                              \
    X(arm_neon, gelu_tanh)                                                                         \
    X(arm_neon, attention)

#endif
