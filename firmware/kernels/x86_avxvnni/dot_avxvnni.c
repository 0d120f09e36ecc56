/* Rows times an activation vector with dot products of four bytes: AVX-VNNI, without AVX-512. */
#include "x86_avx2/avx2.h"
#include "x86_avxvnni/has.h"

SF_X86_AVXVNNI_HAS(SF_DECLARE)

#define dot4 _mm256_dpbusd_avx_epi32
#define SF_NAME(kernel) sf_x86_avxvnni_##kernel
#include "x86_avx2/dot_vnni_body.h"
