/* Which kernels the tier of 64-bit Arm has. */
#ifndef SF_ARM_NEON_HAS_H
#define SF_ARM_NEON_HAS_H

#define SF_ARM_NEON_HAS(X)                                                                         \
    X(arm_neon, dot_q4)                                                                            \
    X(arm_neon, dot_q8)                                                                            \
    X(arm_neon, axpy_q4)                                                                           \
    X(arm_neon, axpy_q8)

#endif
