/* Rows of 8 bits times an activation vector with AVX-512 VNNI: 256 bits are enough, memory is
 * slower.
 */
#include "x86_vnni.h"

#define SF_OWN_NIBBLES
#define dot4 _mm256_dpbusd_epi32
#define SF_NAME(kernel) sf_x86_vnni_##kernel
#include "x86_avx2/dot_vnni_body.h"
