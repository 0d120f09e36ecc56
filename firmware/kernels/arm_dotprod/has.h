/* Which kernels the tier of 64-bit Arm with dot products; the rest is that of arm_neon has. */
#ifndef SF_ARM_DOTPROD_HAS_H
#define SF_ARM_DOTPROD_HAS_H

#define SF_ARM_DOTPROD_HAS(X)                                                                      \
    X(arm_dotprod, dot_q4)                                                                         \
    X(arm_dotprod, dot_q8)

#endif
