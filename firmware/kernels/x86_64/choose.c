/* The tiers of x86, from plain C up. */
#include "sf_kernels.h"
#include "x86_vnni/has.h"

SF_X86_VNNI_HAS(SF_DECLARE)

static bool plain_runs(void) {
    return true;
}

static bool vnni_runs(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}

#ifdef __clang__
#pragma GCC diagnostic ignored "-Winitializer-overrides"
#else
#pragma GCC diagnostic ignored "-Woverride-init"
#endif

#define TIERS                                                                                      \
    {"plain", plain_runs, {SF_PLAIN_HAS(SF_ENTRY)}},                                               \
        {"x86_vnni", vnni_runs, {SF_PLAIN_HAS(SF_ENTRY) SF_X86_VNNI_HAS(SF_ENTRY)}},
#include "plain/choose_body.h"
