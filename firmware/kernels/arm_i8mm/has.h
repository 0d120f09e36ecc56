/* Which kernels the tier of 64-bit Arm with products of matrices has; the rest is that of
 * arm_dotprod. */
#ifndef SF_ARM_I8MM_HAS_H
#define SF_ARM_I8MM_HAS_H

#define SF_ARM_I8MM_HAS(X)                                                                         \
    X(arm_i8mm, dot2_q4)                                                                           \
    X(arm_i8mm, dot2_q8)                                                                           \
    X(arm_i8mm, dot2_s4)

#endif
