/* The tiers of x86, from plain C up. */
#include "sf_kernels.h"
#include "x86_avx2/has.h"
#include "x86_avxvnni/has.h"
#include "x86_vnni/has.h"

#include <cpuid.h>

SF_X86_AVX2_HAS(SF_DECLARE)
SF_X86_AVXVNNI_HAS(SF_DECLARE)
SF_X86_VNNI_HAS(SF_DECLARE)

static bool plain_runs(void) {
    return true;
}

static bool avx2_runs(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"); /* and so F16C */
}

static bool avxvnni_runs(void) {
    uint32_t a = 0, b = 0, c = 0, d = 0; /* clang 14 knows no name for it */
    return avx2_runs() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1u << 4) != 0;
}

static bool vnni_runs(void) {
    return avx2_runs() && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

#ifdef __clang__
#pragma GCC diagnostic ignored "-Winitializer-overrides"
#else
#pragma GCC diagnostic ignored "-Woverride-init"
#endif

#define AVX2 SF_PLAIN_HAS(SF_ENTRY) SF_X86_AVX2_HAS(SF_ENTRY)
#define TIERS                                                                                      \
    {"plain", plain_runs, {SF_PLAIN_HAS(SF_ENTRY)}}, {"x86_avx2", avx2_runs, {AVX2}},              \
        {"x86_avxvnni", avxvnni_runs, {AVX2 SF_X86_AVXVNNI_HAS(SF_ENTRY)}},                        \
        {"x86_vnni", vnni_runs, {AVX2 SF_X86_VNNI_HAS(SF_ENTRY)}},
#include "plain/choose_body.h"
