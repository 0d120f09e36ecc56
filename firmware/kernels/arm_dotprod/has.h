/* Which kernels the tier of 64-bit Arm with dot products; the rest is that of arm_neon has. */
#ifndef SF_ARM_DOTPROD_HAS_H
#define SF_ARM_DOTPROD_HAS_H

#define SF_ARM_DOTPROD_HAS(X)                                                                      \
    X(arm_dotprod, dot_q4)                                                                         \
    X(arm_dotprod, dot_q8)                                                                         \
    X(arm_dotprod, dot_r8)                                                                         \
    X(arm_dotprod, dot_s4)                                                                         \
    X(arm_dotprod, dot2_q4)                                                                        \
    X(arm_dotprod, dot2_q8)                                                                        \
    X(arm_dotprod, dot2_s4)                                                                        \
    X(arm_dotprod, dot_proxy)

#endif
