/* The runtime a port and the link see. The generated sf_model.c implements it. */
#ifndef SF_RUNTIME_H
#define SF_RUNTIME_H

#include <stdbool.h>
#include <stdint.h>

enum {
    SF_OK = 0,
    SF_ERR_FLASH = -1,   /* a flash read failed */
    SF_ERR_MODEL = -2,   /* the image in flash is not the one this code was made for */
    SF_ERR_CONTEXT = -3, /* position past the KV cache */
    SF_ERR_TOKEN = -4,   /* token id outside the vocabulary */
    SF_ERR_ARG = -5,
    SF_ERR_DAMAGED = -6 /* the image in flash is not what was packed, or it changed */
};

/* Sites a trace records, in the order they are computed in a layer. */
enum sf_site {
    SF_SITE_ATTN_IN = 0,  /* normed input of attention [dim] */
    SF_SITE_Q = 1,        /* query after RoPE [q_dim] */
    SF_SITE_ATTN = 2,     /* heads, before o_proj [q_dim] */
    SF_SITE_FFN_IN = 3,   /* normed input of the FFN [dim] */
    SF_SITE_H = 4,        /* act(gate)*up after the mask [ffn_dim] */
    SF_SITE_FFN_OUT = 5,  /* down_proj output [dim] */
    SF_SITE_RESIDUAL = 6, /* residual stream after the layer [dim] */
    SF_SITES = 7
};

/* Thresholds of a layer: a neuron is active when every magnitude reaches its own. 0 keeps all. */
enum sf_threshold {
    SF_T_GATE = 0,      /* |gate| before the activation */
    SF_T_ACT = 1,       /* |act(gate)| (CATS) */
    SF_T_UP = 2,        /* |up| */
    SF_T_H = 3,         /* |act(gate)*up| */
    SF_T_DOWN = 4,      /* |down output|, zeroed below */
    SF_T_PREDICTOR = 5, /* |act(gate)*up| of the predictor, before a row is read */
    SF_T_Q = 6,         /* |input| of q_proj, and of the others that can be stored by columns */
    SF_T_K = 7,
    SF_T_V = 8,
    SF_T_O = 9,
    SF_T_XG = 10,
    SF_T_XU = 11,
    SF_THRESHOLDS = 12
};

/* Counters since sf_counters_clear(). */
typedef struct {
    uint64_t tokens;
    uint64_t bytes;     /* all weight bytes requested through the flash interface */
    uint64_t bytes_ffn; /* of those, FFN records and down scales */
    uint64_t reads;     /* read requests (after merging adjacent rows) */
    uint64_t neurons;   /* FFN neurons that contributed to down_proj */
    uint64_t time_attn; /* port ticks by stage */
    uint64_t time_ffn;
    uint64_t time_head;
    uint64_t time_total;
    uint64_t time_wait;        /* of those, waiting for flash */
    uint64_t bytes_read;       /* read from flash, alignment and gaps included */
    uint64_t bytes_early;      /* rows read because of a prediction, before they were asked for */
    uint64_t bytes_early_used; /* of those, rows that were asked for */
    uint64_t bytes_missed;     /* rows that were asked for and not among them */
    uint64_t drafted;          /* tokens that ran because the text so far suggested them */
    uint64_t taken;            /* of those, tokens that were right; the others are not in tokens */
} sf_counters;

typedef struct {
    const char *board;          /* board id */
    const char *model;          /* model name */
    const uint8_t *model_sha;   /* [32] SHA-256 stored in the image */
    const uint8_t *plan_digest; /* [32] SHA-256 of plan.json */
    uint32_t vocab, dim, ffn_dim, n_layers, n_heads, n_kv_heads, head_dim, kv_len;
    uint32_t block;            /* most tokens that go through the layers together */
    uint32_t arena_bytes;      /* static SRAM of the model */
    uint32_t ticks_per_second; /* unit of the time counters, 0 when the port has no clock */
} sf_info;

/* Checks that the image in flash is the one of the compiled-in SHA-256, and the CRC-32 of each of
 * its sections; call once. */
int sf_init(void);
const sf_info *sf_get_info(void);
/* Starts a pool of n threads, the caller among them, at most those of the plan; 0: one for each
 * core. Fewer where the system gives fewer, and none on a board without a system. Call it once,
 * before the first token. Any number gives the same bits. */
void sf_threads(uint32_t n);
/* Forgets the KV cache. */
void sf_reset(void);
/* Runs tokens at the next positions, as many as the plan says together, so that weights are read
 * once for all of them. To the bits of one after the other. logits: compute the head of the last.
 * After an error the tokens of the blocks before it have run. */
int sf_prefill(const uint32_t *token, uint32_t count, bool logits);
/* The same for one token. */
int sf_step(uint32_t token, bool logits);
enum { SF_NEXT = 8 }; /* most tokens that sf_greedy() gives at once */
/* Runs a token, and behind it in the same block drafts that the text so far suggests. next, of
 * SF_NEXT, gets the 1 to most tokens that greedy decoding gives from here, with and without
 * drafts the same; all but the last have run, and none follows one that ends an answer.
 * sf_logits() then has no meaning. */
int sf_greedy(uint32_t token, uint32_t most, uint32_t *next, uint32_t *count);
/* Forgets the positions from this one on. */
void sf_rewind(uint32_t to);
/* What the cache holds of a position before the next: n bytes from `at` on. */
int sf_state_read(uint32_t p, uint32_t at, uint32_t n, uint8_t *out);
/* The same for the next position, which counts when it is kept as that of a token. */
int sf_state_write(uint32_t at, uint32_t n, const uint8_t *in);
int sf_state_keep(uint32_t token);
/* Position the next sf_step() writes. */
uint32_t sf_position(void);
/* [vocab], of the last token that ran with logits. */
const float *sf_logits(void);
/* out = [tokens][vocab], of all tokens of a block that ran without logits; call it once. */
int sf_block_logits(float *out);
/* Replaces the compiled-in thresholds of a layer: t[SF_THRESHOLDS]. */
int sf_set_thresholds(uint32_t layer, const float *t);
const float *sf_get_thresholds(uint32_t layer);

/* Trace: when on, every step leaves a 32-bit hash of each site of each layer. */
void sf_trace_enable(bool on);
uint32_t sf_trace_hash(uint32_t layer, uint32_t site);
/* Tap: the next steps keep one site's values. */
int sf_tap_set(uint32_t layer, uint32_t site);
/* Values kept by the last step; *n gets the count. */
const float *sf_tap_values(uint32_t *n);

/* Sampling. temperature 0 is greedy; top_p 1 keeps all. What is out of range is taken as the
 * nearest value in it. Integer PRNG. */
typedef struct {
    float temperature;
    float top_p;
    uint64_t seed;
} sf_sampler;
/* The least index of the largest logit. */
uint32_t sf_largest(void);
void sf_sampler_init(sf_sampler *s, float temperature, float top_p, uint64_t seed);
uint32_t sf_sample(sf_sampler *s);
bool sf_is_eos(uint32_t token);
/* Bytes of a token's text (not NUL-terminated); *n gets the count. Special tokens have none. */
const uint8_t *sf_token_text(uint32_t token, uint32_t *n);

const sf_counters *sf_get_counters(void);
void sf_counters_clear(void);

#endif
