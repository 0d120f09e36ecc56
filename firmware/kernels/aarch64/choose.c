/* The tiers of 64-bit Arm, from plain C up. */
#include "arm_dotprod/has.h"
#include "arm_neon/has.h"
#include "sf_kernels.h"

#ifdef __linux__
#include <sys/auxv.h>
#endif

SF_ARM_NEON_HAS(SF_DECLARE)
SF_ARM_DOTPROD_HAS(SF_DECLARE)

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

#ifdef __clang__
#pragma GCC diagnostic ignored "-Winitializer-overrides"
#else
#pragma GCC diagnostic ignored "-Woverride-init"
#endif

#define TIERS                                                                                      \
    {"plain", always, {SF_PLAIN_HAS(SF_ENTRY)}},                                                   \
        {"arm_neon", always, {SF_PLAIN_HAS(SF_ENTRY) SF_ARM_NEON_HAS(SF_ENTRY)}},                  \
        {"arm_dotprod",                                                                            \
         dotprod_runs,                                                                             \
         {SF_PLAIN_HAS(SF_ENTRY) SF_ARM_NEON_HAS(SF_ENTRY) SF_ARM_DOTPROD_HAS(SF_ENTRY)}},
#include "plain/choose_body.h"
