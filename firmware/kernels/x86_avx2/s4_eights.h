/* The walk of x86 over columns of s4: eight at a time, two side by side. Columns of a list lie
 * apart, so it asks for those sixteen behind, a line with each line that it reads: processors
 * forget some of what they are asked for at once (docs/BENCHMARKS.md). */
#ifndef SF_S4_EIGHTS_H
#define SF_S4_EIGHTS_H

#include "x86_avx2/avx2.h"

enum { SF_S4_COLUMNS = 8, SF_S4_PAIRS = SF_S4_COLUMNS / 2, SF_S4_BEHIND = 16, SF_S4_GROUPS = 64 };

/* Columns at hand, and those to ask for; a column that is not there is one times zero. */
typedef struct {
    const uint8_t *col[SF_S4_COLUMNS], *behind[SF_S4_COLUMNS];
    float x[SF_S4_COLUMNS]; /* activations in the unit of the factors */
} sf_s4_eight;

/* Of some groups: factors of two columns side by side, and eight times the sum of all, for the
 * nibbles are q + 8. */
typedef struct {
    int32_t pair[SF_S4_PAIRS][SF_S4_GROUPS], offset[SF_S4_GROUPS];
} sf_s4_factors;

/* Factors of `groups` groups, whose scales lie at byte `at` of the columns: floor(x d + 1/2), which
 * is sf_s4_factor, since the product of 18 bits is exact and so is the sum from 2^-7 up. */
typedef void (*sf_s4_make)(const sf_s4_eight *c, uint32_t pairs, uint32_t at, uint32_t groups,
                           sf_s4_factors *f);
/* y += the sums of `live` groups, at byte `at` of the columns, with the factors from g on. */
typedef void (*sf_s4_sum)(const sf_s4_eight *c, uint32_t pairs, uint32_t at, uint32_t live,
                          const sf_s4_factors *f, uint32_t g, int32_t *y);

SF_INLINE void sf_s4_ask(const sf_s4_eight *c, uint32_t at) {
    for (uint32_t r = 0; r < SF_S4_COLUMNS; r++) {
        sf_ask_line(c->behind[r] + at);
    }
}

SF_INLINE void sf_s4_sum_eight(const sf_s4_eight *c, uint32_t pairs, uint32_t dim, int32_t *acc,
                               uint32_t step, sf_s4_make make, sf_s4_sum sum) {
    const uint32_t all = dim / SF_GROUP;
    sf_s4_factors f;
    for (uint32_t from = 0; from < all; from += SF_S4_GROUPS) {
        const uint32_t left = all - from, groups = left < SF_S4_GROUPS ? left : SF_S4_GROUPS;
        make(c, pairs, dim / 2u + 2u * from, groups, &f);
        for (uint32_t g = 0; g < groups; g += 32u) {
            sf_s4_ask(c, dim / 2u + 2u * (from + g));
        }
        for (uint32_t g = 0; g < groups; g += step) {
            const uint32_t at = (from + g) * SF_GROUP / 2u;
            int32_t *y = acc + (from + g) * SF_GROUP;
            if (at % 64u == 0) {
                sf_s4_ask(c, at);
            }
            if (g + step <= groups) {
                sum(c, pairs, at, step, &f, g, y);
            } else {
                sum(c, pairs, at, groups - g, &f, g, y);
            }
        }
    }
    sf_s4_ask(c, dim / 2u + dim / 16u - 1u); /* the last line */
}

/* sf_axpy_s4; step: groups that `sum` takes. */
SF_INLINE void sf_s4_eights(const uint8_t *const *col, const int32_t *a, uint32_t n, uint32_t dim,
                            uint32_t shift, int32_t *acc, uint32_t step, sf_s4_make make,
                            sf_s4_sum sum) {
    const float unit = sf_pow2(24 - (int32_t)shift);
    for (uint32_t from = 0; from < n; from += SF_S4_COLUMNS) {
        const uint32_t left = n - from, some = left < SF_S4_COLUMNS ? left : SF_S4_COLUMNS;
        const uint32_t pairs = (some + 1u) / 2u;
        sf_s4_eight c;
        for (uint32_t r = 0; r < SF_S4_COLUMNS; r++) {
            c.col[r] = col[r < some ? from + r : from];
            c.behind[r] = r + SF_S4_BEHIND < left ? col[from + r + SF_S4_BEHIND] : c.col[r];
            c.x[r] = r < some ? (float)a[from + r] * unit : 0.0f;
        }
        if (pairs == SF_S4_PAIRS) {
            sf_s4_sum_eight(&c, SF_S4_PAIRS, dim, acc, step, make, sum);
        } else {
            sf_s4_sum_eight(&c, pairs, dim, acc, step, make, sum);
        }
    }
}

#endif
