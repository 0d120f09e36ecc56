/* Which kernels the tier of x86 with AVX2 has. */
#ifndef SF_X86_AVX2_HAS_H
#define SF_X86_AVX2_HAS_H

#define SF_X86_AVX2_HAS(X)                                                                         \
    X(x86_avx2, quantize)                                                                          \
    X(x86_avx2, quantize16)                                                                        \
    X(x86_avx2, quantize8)                                                                         \
    X(x86_avx2, dot_q4)                                                                            \
    X(x86_avx2, dot_q8)                                                                            \
    X(x86_avx2, dot_r8)                                                                            \
    X(x86_avx2, dot_s4)                                                                            \
    X(x86_avx2, dot_proxy)                                                                         \
    X(x86_avx2, dot_signs)                                                                         \
    X(x86_avx2, axpy_q4)                                                                           \
    X(x86_avx2, axpy_q8)                                                                           \
    X(x86_avx2, axpy_r8)                                                                           \
    X(x86_avx2, axpy_s4)                                                                           \
    X(x86_avx2, scale_q4)                                                                          \
    X(x86_avx2, scale_q8)                                                                          \
    X(x86_avx2, block_q4)                                                                          \
    X(x86_avx2, floats)                                                                            \
    X(x86_avx2, pick_largest)                                                                      \
    X(x86_avx2, keep_reaching)                                                                     \
    X(x86_avx2, rmsnorm)                                                                           \
    X(x86_avx2, layernorm)                                                                         \
    X(x86_avx2, sigmoid)                                                                           \
    X(x86_avx2, silu)                                                                              \
    X(x86_avx2, gelu_tanh)                                                                         \
    X(x86_avx2, gelu)                                                                              \
    X(x86_avx2, relu)                                                                              \
    X(x86_avx2, multiply)                                                                          \
    X(x86_avx2, add)                                                                               \
    X(x86_avx2, rope_angles)                                                                       \
    X(x86_avx2, rope)                                                                              \
    X(x86_avx2, attention)

#endif
