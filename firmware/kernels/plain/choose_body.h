/* The choice of a tier at run time, for a list of them: TIERS, from plain C up. Each has what those
 * in its list have, the last that has a kernel gives it. */

typedef struct {
    const char *name;
    bool (*runs)(void); /* on this CPU */
    sf_kernels kernels;
} tier;

static const tier tiers[] = {TIERS};

sf_kernels sf_tier = {SF_PLAIN_HAS(SF_ENTRY)};

const char *sf_tier_name(uint32_t i) {
    return i < sizeof tiers / sizeof tiers[0] ? tiers[i].name : NULL;
}

bool sf_use_tier(const char *name) {
    for (uint32_t i = 0; i < sizeof tiers / sizeof tiers[0]; i++) {
        if (strcmp(tiers[i].name, name) == 0 && tiers[i].runs()) {
            sf_tier = tiers[i].kernels;
            return true;
        }
    }
    return false;
}

void sf_choose_tier(void) {
    for (uint32_t i = sizeof tiers / sizeof tiers[0]; i-- > 0 && !sf_use_tier(tiers[i].name);) {
    }
}
