/* Which kernels the tier of x86 with AVX-VNNI has. */
#ifndef SF_X86_AVXVNNI_HAS_H
#define SF_X86_AVXVNNI_HAS_H

#define SF_X86_AVXVNNI_HAS(X)                                                                      \
    X(x86_avxvnni, dot_q4)                                                                         \
    X(x86_avxvnni, dot_q8)                                                                         \
    X(x86_avxvnni, dot_s4)

#endif
