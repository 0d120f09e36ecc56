/* A program with plain C alone. */
#ifndef SF_TIER_H
#define SF_TIER_H

/* Most rows a kernel takes at once; it prepares the activations for them. */
#define SF_TILE 16u

#define SF_TIER_HAS(X) /* nothing in place of plain C */

#endif
