/* Samples from logits of every kind at settings of every kind; a sanitizer or a bound ends it. */
#include "sf_runtime.h"
#include "sf_state.h"

#include <math.h>
#include <stdio.h>

static float logits[SF_VOCAB];
static uint64_t state = 1;

const float *sf_logits(void) {
    return logits;
}

static float any(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(state >> 32) / 1e8f;
}

int main(void) {
    const float odd[] = {0.0f,  -0.0f,    1e-40f,    1e-30f, 1e-7f,  1e-3f,  0.5f,
                         1.0f,  2.0f,     1e6f,      1e38f,  -1e-9f, -0.1f,  -1.0f,
                         -1e9f, INFINITY, -INFINITY, NAN,    0.999f, 1e-20f, 3e38f};
    const uint32_t n = sizeof odd / sizeof odd[0];
    uint32_t count = 0;
    for (uint32_t kind = 0; kind < n + 2u; kind++) {
        for (uint32_t i = 0; i < SF_VOCAB; i++) {
            logits[i] = kind < n && i % 3u == kind % 3u ? odd[kind] : any();
            logits[i] = kind == n ? NAN : kind == n + 1u ? -INFINITY : logits[i];
        }
        for (uint32_t t = 0; t < n; t++) {
            for (uint32_t p = 0; p < n; p++) {
                sf_sampler s;
                sf_sampler_init(&s, odd[t], odd[p], t * n + p);
                for (uint32_t k = 0; k < 3u; k++, count++) {
                    const uint32_t token = sf_sample(&s);
                    if (token >= SF_VOCAB) {
                        printf("token %u\n", (unsigned)token);
                        return 1;
                    }
                }
            }
        }
    }
    /* A temperature this low is greedy, whatever the seed. */
    for (uint32_t i = 0; i < SF_VOCAB; i++) {
        logits[i] = (float)(i % 50u);
    }
    logits[17] = 60.0f;
    for (uint32_t t = 0; t < 5u; t++) {
        for (uint32_t seed = 0; seed < 50u; seed++) {
            sf_sampler s;
            sf_sampler_init(&s, odd[t], 1.0f, seed);
            if (sf_sample(&s) != 17u) {
                return 1;
            }
        }
    }
    printf("%u\n", (unsigned)count);
    return 0;
}
