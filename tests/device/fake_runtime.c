/* A runtime without a model: each answer is a simple function of the tokens so far. */
#include "sf_port.h"
#include "sf_runtime.h"

#include <stdlib.h>
#include <string.h>

enum { VOCAB = 700, LAYERS = 50, KV = 900, TAPPED = 600, EOS = 2 };

static struct {
    uint32_t position;
    uint32_t state, before[KV]; /* and those before each position */
    bool trace;
    uint32_t tap_layer, tap_site;
    float logits[VOCAB];
    float tap[TAPPED];
    float thresholds[LAYERS][SF_THRESHOLDS];
    sf_counters counters;
    uint8_t text[8];
} f;

int sf_init(void) {
    return memcmp(sf_port_flash_base(), "FAKE", 4) == 0 ? SF_OK : SF_ERR_MODEL;
}

const sf_info *sf_get_info(void) {
    static uint8_t sha[32], plan[32];
    static const sf_info info = {
        .board = "host",
        .model = "fake",
        .model_sha = sha,
        .plan_digest = plan,
        .vocab = VOCAB,
        .dim = 64,
        .ffn_dim = 172,
        .n_layers = LAYERS,
        .n_heads = 8,
        .n_kv_heads = 4,
        .head_dim = 8,
        .kv_len = KV,
        .block = 4,
        .arena_bytes = sizeof f,
        .ticks_per_second = 1000000000u,
    };
    memset(sha, 0xa5, sizeof sha);
    memset(plan, 0x5a, sizeof plan);
    return &info;
}

void sf_reset(void) {
    f.position = 0;
    f.state = 0;
}

int sf_step(uint32_t token, bool logits) {
    if (token >= VOCAB) {
        return SF_ERR_TOKEN;
    }
    if (f.position >= KV) {
        return SF_ERR_CONTEXT;
    }
    const char *fails = getenv("FAKE_FAILS_AT"); /* a position */
    if (fails != NULL && f.position == (uint32_t)atoi(fails)) {
        return SF_ERR_FLASH;
    }
    f.before[f.position++] = f.state;
    f.state = f.state * 1664525u + token + 1013904223u;
    f.counters.tokens++;
    f.counters.bytes += (uint64_t)1 << 33;
    for (uint32_t i = 0; logits && i < VOCAB; i++) {
        f.logits[i] = (float)(((f.state ^ (i * 2654435761u)) >> 8) & 0xffffu);
    }
    const char *best = getenv("FAKE_BEST"); /* a token */
    if (logits && best != NULL) {
        f.logits[atoi(best)] = 1e6f;
    }
    for (uint32_t i = 0; i < TAPPED; i++) {
        f.tap[i] = (float)(i + f.tap_layer * 1000u + f.tap_site) + (float)f.position * 0.5f;
    }
    return SF_OK;
}

void sf_threads(uint32_t n) {
    (void)n;
}

int sf_prefill(const uint32_t *token, uint32_t count, bool logits) {
    for (uint32_t i = 0; i < count; i++) {
        const int code = sf_step(token[i], logits && i + 1u == count);
        if (code != SF_OK) {
            return code;
        }
    }
    return SF_OK;
}

/* Some tokens at once, as if drafts had been right. */
int sf_greedy(uint32_t token, uint32_t most, uint32_t *next, uint32_t *count) {
    for (*count = 0; *count == 0 || (*count < most && f.state % 4u != 0 && !sf_is_eos(token));) {
        const int code = sf_step(token, true);
        if (code != SF_OK) {
            return *count > 0 ? SF_OK : code;
        }
        token = next[(*count)++] = sf_largest();
    }
    return SF_OK;
}

void sf_rewind(uint32_t to) {
    f.state = to < f.position ? f.before[to] : f.state;
    f.position = to < f.position ? to : f.position;
}

/* The state of a position is that before it, over and over. */
enum { STATE = 2 * LAYERS * 4 * (8 + 1) };
static uint8_t written[STATE];

int sf_state_read(uint32_t p, uint32_t at, uint32_t n, uint8_t *out) {
    if (p >= f.position || at > STATE || n > STATE - at) {
        return SF_ERR_ARG;
    }
    const uint32_t after = p + 1u < f.position ? f.before[p + 1u] : f.state;
    for (uint32_t i = 0; i < n; i++) {
        out[i] = (uint8_t)(after >> 8u * ((at + i) % 4u) & 0xffu);
    }
    return SF_OK;
}

int sf_state_write(uint32_t at, uint32_t n, const uint8_t *in) {
    if (f.position >= KV) {
        return SF_ERR_CONTEXT;
    }
    if (at > STATE || n > STATE - at) {
        return SF_ERR_ARG;
    }
    memcpy(written + at, in, n);
    return SF_OK;
}

int sf_state_keep(uint32_t token) {
    if (token >= VOCAB || f.position >= KV) {
        return token >= VOCAB ? SF_ERR_TOKEN : SF_ERR_CONTEXT;
    }
    f.before[f.position++] = f.state;
    memcpy(&f.state, written, sizeof f.state);
    return SF_OK;
}

uint32_t sf_position(void) {
    return f.position;
}

const float *sf_logits(void) {
    return f.logits;
}

int sf_set_thresholds(uint32_t layer, const float *t) {
    if (layer >= LAYERS) {
        return SF_ERR_ARG;
    }
    for (uint32_t i = 0; i < SF_THRESHOLDS; i++) {
        if (!(t[i] >= 0.0f && t[i] < 1e9f)) {
            return SF_ERR_ARG;
        }
    }
    memcpy(f.thresholds[layer], t, sizeof f.thresholds[layer]);
    /* Shows in the counters, for the tests. */
    f.counters.neurons = (uint64_t)(t[0] + t[1] + t[2] + t[3] + t[4]) + layer;
    return SF_OK;
}

const float *sf_get_thresholds(uint32_t layer) {
    return f.thresholds[layer];
}

void sf_trace_enable(bool on) {
    f.trace = on;
}

uint32_t sf_trace_hash(uint32_t layer, uint32_t site) {
    return f.trace ? f.state + layer * 100u + site : 0;
}

int sf_tap_set(uint32_t layer, uint32_t site) {
    f.tap_layer = layer;
    f.tap_site = site;
    return layer < LAYERS && site < SF_SITES ? SF_OK : SF_ERR_ARG;
}

const float *sf_tap_values(uint32_t *n) {
    *n = TAPPED;
    return f.tap;
}

void sf_sampler_init(sf_sampler *s, float temperature, float top_p, uint64_t seed) {
    s->temperature = temperature;
    s->top_p = top_p;
    s->seed = seed;
}

uint32_t sf_largest(void) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < VOCAB; i++) {
        best = f.logits[i] > f.logits[best] ? i : best;
    }
    return best;
}

uint32_t sf_sample(sf_sampler *s) {
    uint32_t best = sf_largest();
    if (s->temperature > 0.0f) {
        s->seed = s->seed * 6364136223846793005u + 1442695040888963407u;
        best = (best + (uint32_t)(s->seed >> 40)) % VOCAB;
    }
    return best;
}

bool sf_is_eos(uint32_t token) {
    return token == EOS;
}

const uint8_t *sf_token_text(uint32_t token, uint32_t *n) {
    *n = token == EOS ? 0 : 1 + token % 8u;
    if (getenv("FAKE_LONG_TEXT") != NULL) { /* a broken table: longer than memory */
        static const uint8_t long_text[1024];
        *n = UINT32_MAX;
        return long_text;
    }
    for (uint32_t i = 0; i < *n; i++) {
        f.text[i] = (uint8_t)((token + i) & 0xffu);
    }
    return f.text;
}

const sf_counters *sf_get_counters(void) {
    return &f.counters;
}

void sf_counters_clear(void) {
    memset(&f.counters, 0, sizeof f.counters);
}
