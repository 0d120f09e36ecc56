/* The tiers of 64-bit Arm, from plain C up. */
#include "arm_dotprod/has.h"
#include "arm_i8mm/has.h"
#include "arm_neon/has.h"
#include "sf_kernels.h"

#ifdef __linux__
#include <sys/auxv.h>
#endif

SF_ARM_NEON_HAS(SF_DECLARE)
SF_ARM_DOTPROD_HAS(SF_DECLARE)
SF_ARM_I8MM_HAS(SF_DECLARE)

static bool always(void) {
    return true;
}

static bool dotprod_runs(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & 1ul << 20) != 0; /* HWCAP_ASIMDDP */
#elif defined(__APPLE__)
    return true;
#else
    return false;
#endif
}

static bool i8mm_runs(void) {
#ifdef __linux__
    return dotprod_runs() && (getauxval(AT_HWCAP2) & 1ul << 13) != 0; /* HWCAP2_I8MM */
#else
    return false;
#endif
}

#ifdef __clang__
#pragma GCC diagnostic ignored "-Winitializer-overrides"
#else
#pragma GCC diagnostic ignored "-Woverride-init"
#endif

#define NEON SF_PLAIN_HAS(SF_ENTRY) SF_ARM_NEON_HAS(SF_ENTRY)
#define DOTPROD NEON SF_ARM_DOTPROD_HAS(SF_ENTRY)
#define TIERS                                                                                      \
    {"plain", always, {SF_PLAIN_HAS(SF_ENTRY)}}, {"arm_neon", always, {NEON}},                     \
        {"arm_dotprod", dotprod_runs, {DOTPROD}},                                                  \
        {"arm_i8mm", i8mm_runs, {DOTPROD SF_ARM_I8MM_HAS(SF_ENTRY)}},
#include "plain/choose_body.h"
