/* x86: one program with every tier, chosen at run time. */
#ifndef SF_TIER_H
#define SF_TIER_H

/* Most rows a kernel takes at once; it prepares the activations for them. */
#define SF_TILE 32u

#define SF_RUN_TIME_TIERS 1

#endif
