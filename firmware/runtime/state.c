/* Counters, trace, tap, thresholds and the image check. */
#include "sf_flash.h"
#include "sf_port.h"
#include "sf_state.h"

#include <string.h>

static sf_counters counters;
static bool tracing;
static uint32_t tap_layer = UINT32_MAX, tap_site, tap_count;

void sf_observe(uint32_t layer, uint32_t site, const float *v, uint32_t n) {
    if (tracing) {
        uint32_t h = 0;
        for (uint32_t i = 0; i < n; i++) {
            h = h * 0x01000193u + sf_bits(v[i]);
        }
        sf_site_hash[layer][site] = h;
    }
    if (layer == tap_layer && site == tap_site) {
        memcpy(sf_site_values, v, n * sizeof *v);
        tap_count = n;
    }
}

void sf_trace_enable(bool on) {
    tracing = on;
}

uint32_t sf_trace_hash(uint32_t layer, uint32_t site) {
    return layer < SF_LAYERS && site < SF_SITES ? sf_site_hash[layer][site] : 0u;
}

int sf_tap_set(uint32_t layer, uint32_t site) {
    if (layer >= SF_LAYERS || site >= SF_SITES) {
        return SF_ERR_ARG;
    }
    tap_layer = layer;
    tap_site = site;
    tap_count = 0;
    return SF_OK;
}

const float *sf_tap_values(uint32_t *n) {
    *n = tap_count;
    return sf_site_values;
}

int sf_set_thresholds(uint32_t layer, const float *t) {
    if (layer >= SF_LAYERS) {
        return SF_ERR_ARG;
    }
    for (uint32_t i = 0; i < SF_THRESHOLDS; i++) {
        if (!(t[i] >= 0.0f)) {
            return SF_ERR_ARG;
        }
    }
    /* What the model has, and the image columns or a predictor for. */
    uint32_t stored = 1u << SF_T_H | 1u << SF_T_DOWN;
#if SF_GATED
    stored |= 1u << SF_T_GATE | 1u << SF_T_ACT | 1u << SF_T_UP;
#endif
#if SF_PREDICTS
    stored |= (uint32_t)(sf_parts[layer * SF_LAYER_PARTS + SF_PART_PREDICTOR].rows != 0u)
              << SF_T_PREDICTOR;
#endif
    for (uint32_t i = 0; i < SF_LAYER_PARTS; i++) {
        const uint32_t input = sf_parts[layer * SF_LAYER_PARTS + i].input;
        stored |= input != 0u ? 1u << input : 0u;
    }
    for (uint32_t i = 0; i < SF_THRESHOLDS; i++) {
        if (t[i] > 0.0f && (stored >> i & 1u) == 0u) {
            return SF_ERR_ARG;
        }
    }
    memcpy(sf_threshold[layer], t, sizeof sf_threshold[layer]);
    return SF_OK;
}

const float *sf_get_thresholds(uint32_t layer) {
    return sf_threshold[layer < SF_LAYERS ? layer : 0];
}

const sf_counters *sf_get_counters(void) {
    return &counters;
}

void sf_counters_clear(void) {
    memset(&counters, 0, sizeof counters);
}

void sf_count_neurons(uint32_t n) {
    counters.neurons += n;
}

void sf_count_used(uint32_t bytes, bool ffn) {
    counters.bytes += bytes;
    counters.bytes_ffn += ffn ? bytes : 0u;
}

void sf_count_read(uint32_t bytes, uint32_t reads) {
    counters.bytes_read += bytes;
    counters.reads += reads;
}

void sf_count_mapped(uint32_t bytes, uint32_t reads, bool ffn) {
    sf_count_used(bytes, ffn);
    sf_count_read(bytes, reads);
}

void sf_count_early(uint32_t predicted, uint32_t used, uint32_t missed) {
    counters.bytes_early += predicted;
    counters.bytes_early_used += used;
    counters.bytes_missed += missed;
}

void sf_count_wait(uint64_t time) {
    counters.time_wait += time;
}

void sf_count_time(uint64_t attn, uint64_t ffn, uint64_t head) {
    counters.time_attn += attn;
    counters.time_ffn += ffn;
    counters.time_head += head;
}

void sf_count_tokens(uint32_t n, uint64_t time) {
    counters.time_total += time;
    counters.tokens += n;
}

void sf_count_drafts(uint32_t drafted, uint32_t taken) {
    counters.drafted += drafted;
    counters.taken += taken;
    counters.tokens -= drafted - taken;
}

int sf_init(void) {
    sf_choose_tier();
    const uint8_t *image = sf_port_flash_base();
    if (image == NULL || sf_port_flash_size() < SF_IMAGE_BYTES || memcmp(image, "SFM1", 4) != 0 ||
        memcmp(image + 32, sf_model_sha, 32) != 0) {
        return SF_ERR_MODEL;
    }
    sf_reset();
    int code = sf_check_image();
    if (code == SF_OK) {
        code = sf_flash_start();
    }
    sf_counters_clear();
    return code;
}

const sf_info *sf_get_info(void) {
    static sf_info info;
    info = (sf_info){
        .board = SF_BOARD,
        .model = sf_model_name,
        .model_sha = sf_model_sha,
        .plan_digest = sf_plan_digest,
        .vocab = SF_VOCAB,
        .dim = SF_DIM,
        .ffn_dim = SF_FFN,
        .n_layers = SF_LAYERS,
        .n_heads = SF_HEADS,
        .n_kv_heads = SF_KV_HEADS,
        .head_dim = SF_HEAD_DIM,
        .kv_len = SF_KV_LEN,
        .block = SF_BLOCK,
        .arena_bytes = SF_ARENA_BYTES,
        .ticks_per_second = sf_port_ticks_per_second(),
    };
    return &info;
}

bool sf_is_eos(uint32_t token) {
    for (uint32_t i = 0; i < sf_eos_count; i++) {
        if (sf_eos[i] == token) {
            return true;
        }
    }
    return false;
}

const uint8_t *sf_token_text(uint32_t token, uint32_t *n) {
    const uint8_t *table = sf_flash_map(SF_TOKENS_AT + 4u, (SF_VOCAB + 1u) * 4u);
    const uint8_t *text = table + (SF_VOCAB + 1u) * 4u;
    *n = 0;
    if (token >= SF_VOCAB) {
        return text;
    }
    /* A damaged table gives no text, and none from outside the image. */
    const uint32_t most = SF_IMAGE_BYTES - SF_TOKENS_AT - 4u - (SF_VOCAB + 1u) * 4u;
    const uint32_t from = sf_load32(table + 4u * token);
    const uint32_t to = sf_load32(table + 4u * token + 4u);
    if (from > to || to > most) {
        return text;
    }
    *n = to - from;
    return text + from;
}
