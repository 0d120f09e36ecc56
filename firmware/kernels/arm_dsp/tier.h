/* Which kernels the tier of Cortex-M4, M7 and M33 (DSP and a floating-point unit) has. */
#ifndef SF_TIER_H
#define SF_TIER_H

/* Most rows a kernel takes at once; it prepares the activations for them. */
#define SF_TILE 128u

#define SF_TIER_HAS(X)                                                                             \
    X(arm_dsp, quantize)                                                                           \
    X(arm_dsp, quantize16)                                                                         \
    X(arm_dsp, quantize8)                                                                          \
    X(arm_dsp, dot_q4)                                                                             \
    X(arm_dsp, dot_q8)                                                                             \
    X(arm_dsp, dot_r8)                                                                             \
    X(arm_dsp, dot_s4)                                                                             \
    X(arm_dsp, dot_proxy)                                                                          \
    X(arm_dsp, axpy_q4)                                                                            \
    X(arm_dsp, axpy_q8)                                                                            \
    X(arm_dsp, axpy_r8)                                                                            \
    X(arm_dsp, axpy_s4)                                                                            \
    X(arm_dsp, scale_q4)                                                                           \
    X(arm_dsp, scale_q8)                                                                           \
    X(arm_dsp, rmsnorm)                                                                            \
    X(arm_dsp, silu)                                                                               \
    X(arm_dsp, multiply)                                                                           \
    X(arm_dsp, add)                                                                                \
    X(arm_dsp, attention)

#endif
