/* Which kernels the tier of x86 with AVX-512 VNNI has. */
#ifndef SF_X86_VNNI_HAS_H
#define SF_X86_VNNI_HAS_H

#define SF_X86_VNNI_HAS(X)                                                                         \
    X(x86_vnni, dot_q4)                                                                            \
    X(x86_vnni, dot_q8)                                                                            \
    X(x86_vnni, dot_s4)                                                                            \
    X(x86_vnni, dot_proxy)                                                                         \
    X(x86_vnni, axpy_q4)                                                                           \
    X(x86_vnni, axpy_s4)                                                                           \
    X(x86_vnni, scale_q4)                                                                          \
    X(x86_vnni, block_q4)                                                                          \
    X(x86_vnni, floats)                                                                            \
    X(x86_vnni, keep_reaching)

#endif
