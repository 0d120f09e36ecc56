/* Attention around the dot products and the mixing of a tier: `dots` and `mix` as in attention.c,
 * and SF_NAME(kernel), its name of a kernel. */

#ifndef SF_OWN_SOFTMAX
/* A tier may do the first positions of scale_scores and weigh its own way: how many it did. */
static inline uint32_t some_scores(const sf_attn *a, uint32_t n, uint32_t factor, int32_t *score,
                                   int32_t *best) {
    (void)a, (void)n, (void)factor, (void)score, (void)best;
    return 0;
}
static inline uint32_t some_weights(const sf_attn *a, uint32_t n, uint32_t left, int32_t best,
                                    int32_t *score, uint32_t *total) {
    (void)a, (void)n, (void)left, (void)best, (void)score, (void)total;
    return 0;
}
#endif

/* From dot products to scores; returns the largest. */
static int32_t scale_scores(const sf_attn *a, uint32_t n, uint32_t factor,
                            int32_t *restrict score) {
    const uint32_t step = a->estride;
    const int32_t least = a->k_least;
    int32_t best = INT32_MIN;
    uint32_t t = some_scores(a, n, factor, score, &best);
    const int8_t *restrict e = a->ks + (a->first + t) * step;
    for (; t < n; t++, e += step) {
        const uint32_t far = (uint32_t)(*e - least);
        score[t] = (int32_t)(((int64_t)score[t] * (far > 31u ? 0u : factor >> far)) >> 32);
        best = score[t] > best ? score[t] : best;
    }
    return best;
}

/* Each score becomes the coefficient of its value's integers; returns the sum of the weights. */
static uint32_t weigh(const sf_attn *a, uint32_t n, uint32_t left, int32_t best,
                      int32_t *restrict score) {
    const uint32_t headroom = sf_headroom(n), shift = sf_coefficient_shift(headroom);
    const uint32_t step = a->estride;
    const int32_t least = a->v_least;
    uint32_t total = 0;
    uint32_t t = some_weights(a, n, left, best, score, &total);
    const int8_t *restrict e = a->vs + (a->first + t) * step;
    for (; t < n; t++, e += step) {
        uint32_t x = (uint32_t)best - (uint32_t)score[t];
        x = x > SF_X_LIMIT >> left ? SF_X_LIMIT : x << left;
        const uint32_t down = (x >> 12) + headroom;
        const uint32_t p = down > 31u ? 0u : sf_exp2_part(x) >> down;
        const uint32_t far = (uint32_t)(*e - least) + shift;
        score[t] = (int32_t)(far > 31u ? 0u : (p + (1u << (far - 1u))) >> far);
        total += p;
    }
    return total;
}

static void one_head(const sf_attn *a, const float *q, int16_t *q16, int32_t *score, int32_t *acc,
                     float *out) {
    const uint32_t n = a->last - a->first + 1u, dim = a->head_dim, at = a->first * a->stride;
    const sf_score_unit unit = sf_unit_of(a, SF_NAME(quantize16)(q, dim, q16));
    dots(q16, a->k + at, a->stride, n, dim, score);
    const int32_t best = scale_scores(a, n, unit.factor, score);
    const uint32_t total = weigh(a, n, unit.left, best, score);
    mix(score, a->v + at, a->stride, n, dim, acc);
    const float factor = sf_mixed_unit(a, sf_coefficient_shift(sf_headroom(n)), total);
    for (uint32_t i = 0; i < dim; i++) {
        out[i] = (float)acc[i] * factor;
    }
}

void SF_NAME(attention)(const sf_attn *a, uint32_t heads, const float *q, int16_t *q16,
                        int32_t *score, int32_t *acc, float *out) {
    for (uint32_t h = 0; h < heads; h++) {
        one_head(a, q + h * a->head_dim, q16, score, acc, out + h * a->head_dim);
    }
}
