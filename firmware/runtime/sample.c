/* Sampling in integers: weights are 2^-x fixed point, the generator is PCG32. */
#include "sf_kernels.h"
#include "sf_state.h"

void sf_sampler_init(sf_sampler *s, float temperature, float top_p, uint64_t seed) {
    /* Below this the gaps would overflow; it is greedy long before. NaN is greedy, and keeps all.
     */
    s->temperature = temperature > 1e-6f ? temperature : (temperature > 0.0f ? 1e-6f : 0.0f);
    s->top_p = top_p <= 0.0f ? 0.0f : (top_p < 1.0f ? top_p : 1.0f);
    s->seed = seed * 6364136223846793005u + 1442695040888963407u;
}

static uint32_t random32(sf_sampler *s) {
    const uint64_t old = s->seed;
    s->seed = old * 6364136223846793005u + 1442695040888963407u;
    const uint32_t shifted = (uint32_t)(((old >> 18) ^ old) >> 27);
    const uint32_t rotation = (uint32_t)(old >> 59);
    return (shifted >> rotation) | (shifted << ((32u - rotation) & 31u));
}

/* Weight of a logit below the best, in 2^-24: at most 2^24. */
static uint32_t weight(float gap, float scale) {
    float t = gap * scale;
    uint32_t e;
    t = t < 2031616.0f ? t : 2031616.0f;
    const uint32_t m = sf_exp2n((uint32_t)t, &e);
    return (m << 8) >> e;
}

static uint64_t sum_from(const float *logits, float best, float scale, uint32_t least) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < SF_VOCAB; i++) {
        const uint32_t w = weight(best - logits[i], scale);
        sum += w >= least ? w : 0u;
    }
    return sum;
}

uint32_t sf_largest(void) {
    const float *logits = sf_logits();
    uint32_t best = 0;
    for (uint32_t i = 1; i < SF_VOCAB; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

uint32_t sf_sample(sf_sampler *s) {
    const float *logits = sf_logits();
    const uint32_t best = sf_largest();
    if (!(s->temperature > 0.0f)) {
        return best;
    }
    const float scale = 94548.46f / s->temperature; /* log2(e) * 65536 */
    const float top = logits[best];
    /* Largest weight limit whose tokens still hold top_p of the mass. */
    uint32_t least = 1;
    uint64_t total = sum_from(logits, top, scale, 1);
    if (s->top_p < 1.0f) {
        const uint64_t need = sf_truncate(sf_whole(total) * s->top_p);
        uint32_t low = 1, high = 1u << 24;
        while (low < high) {
            const uint32_t middle = low + (high - low + 1u) / 2u;
            if (sum_from(logits, top, scale, middle) >= need) {
                low = middle;
            } else {
                high = middle - 1u;
            }
        }
        least = low;
        total = sum_from(logits, top, scale, least);
    }
    if (total == 0) { /* logits that are no numbers */
        return best;
    }
    const uint64_t pick = (((uint64_t)random32(s) << 32) | random32(s)) % total;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < SF_VOCAB; i++) {
        const uint32_t w = weight(top - logits[i], scale);
        sum += w >= least ? w : 0u;
        if (sum > pick) {
            return i;
        }
    }
    return best;
}
