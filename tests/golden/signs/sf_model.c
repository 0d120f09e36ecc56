/* An example of generated code.
 *
 * The forward pass of random: llama, 2 layers. Weights stay in flash. */
#include "sf_model.h"

#include "sf_flash.h"
#include "sf_kernels.h"
#include "sf_port.h"
#include "sf_runtime.h"
#include "sf_state.h"
#include "sf_timeline.h"

_Static_assert(SF_RUNTIME_VERSION == 5, "generated for another runtime");
_Static_assert(sizeof(sf_part) == 28u, "the plan counts on it");
_Static_assert(SF_DIM % SF_GROUP == 0 && SF_Q_DIM % SF_GROUP == 0, "rows are whole groups");
_Static_assert(SF_HEAD_DIM % 4u == 0, "heads are whole words of 8-bit values");

/* What was generated from what. */
/* clang-format off */
const char sf_model_name[] = "random";
const uint8_t sf_model_sha[32] = { 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00 };
const uint8_t sf_plan_digest[32] = { 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00 };

/* Tokens that end an answer. */
const uint32_t sf_eos[] = { 2u };
const uint32_t sf_eos_count = 1u;

/* Thresholds of a layer, in the order of enum sf_threshold; 0 keeps all. */
float sf_threshold[SF_LAYERS][SF_THRESHOLDS] = {
    { 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x1.0800000000000p+5f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f },
    { 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x1.0800000000000p+5f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f },
};

/* Working memory. */
static float x[SF_DIM];                                            /* residual stream */
static float y[SF_WIDEST];                                         /* normed input of a branch, then its output */
static float qkv[SF_QKV];                                          /* q, then k, then v */
static float gate[SF_FFN];                                         /* gate, then act(gate), then h */
static float up[SF_FFN];
static uint16_t active[SF_FFN];                                    /* numbers of neurons, ascending */
static float logits[SF_VOCAB];
static _Alignas(8) int8_t k_cache[SF_LAYERS][SF_KV_LEN][SF_KV_DIM];
static _Alignas(8) int8_t v_cache[SF_LAYERS][SF_KV_LEN][SF_KV_DIM];
static int8_t k_exp[SF_LAYERS][SF_KV_LEN][SF_KV_HEADS];            /* exponents */
static int8_t v_exp[SF_LAYERS][SF_KV_LEN][SF_KV_HEADS];
static int8_t k_least[SF_LAYERS][SF_KV_HEADS];                     /* least of k_exp so far */
static int8_t v_least[SF_LAYERS][SF_KV_HEADS];
static _Alignas(8) int32_t score[SF_SCORES];
static _Alignas(8) int16_t q16[SF_HEAD_PAIR];
static int32_t mix[SF_HEAD_PAIR];
static float angles[SF_HEAD_DIM];                                  /* cosine and sine of each pair */
static int32_t isum[SF_BLOCK_OUTPUTS];                             /* of a block of 32 columns */
static int64_t acc[SF_OUTPUTS];                                    /* of all columns */
static _Alignas(8) int8_t act_q[SF_BFP_LENGTH];
static int32_t act_sum[SF_BFP_GROUPS];
static uint8_t act_k[SF_BFP_GROUPS];
static uint32_t sign[SF_SIGN_WORDS];                               /* of y, a bit set below zero */
static sf_bfp act = {act_q, act_sum, act_k, 0, 0};                 /* what a matrix is multiplied by */
static uint32_t position;                                          /* of the token in the cache */

_Static_assert(sizeof x + sizeof y + sizeof qkv + sizeof gate + sizeof up + sizeof active +
    sizeof logits + sizeof k_cache + sizeof v_cache + sizeof k_exp + sizeof v_exp +
    sizeof k_least + sizeof v_least + sizeof score + sizeof q16 + sizeof mix +
    sizeof angles + sizeof isum + sizeof acc + sizeof act_q + sizeof act_sum +
    sizeof act_k + sizeof sign == SF_ARENA_BYTES,
    "the compiler counts the bytes of the plan");
/* clang-format on */

/* Matrices: by rows, by columns, in two factors. */
/* Rows: parts of the weights times act, an output a row. */

/* Numbers of rows or columns, ascending; the first n where idx is NULL. */
typedef struct {
    const uint16_t *idx;
    uint32_t n;
} list;

static list first(uint32_t n) {
    return (list){NULL, n};
}

/* |v| >= limit for numbers; in integers, for cores without floats. */
static bool reaches(float v, float limit) {
    return sf_bits(v) << 1 >= sf_bits(limit) << 1;
}

/* out[r] = row r of a tile times act. */
static void dot(const sf_part *p, const sf_tile *t, float *out) {
    switch (p->grid) {
    case SF_GRID_Q4: sf_dot_q4(t->row, t->rows, &act, out); break;
    case SF_GRID_Q8: sf_dot_q8(t->row, t->rows, &act, out); break;
    case SF_GRID_SIGNS: sf_dot_signs(t->row, t->rows, sign, SF_SIGN_WORDS, out); break;
    default: break;
    }
}

/* out[i] = row i of p times act, for the rows of a list. */
static void rows(const sf_part *p, list which, float *out) {
    float value[SF_TILE];
    sf_stream s;
    sf_tile t;
    sf_stream_open(&s, p, which.idx, which.n);
    while (sf_stream_next(&s, &t)) {
        if (which.idx == NULL) {
            dot(p, &t, out + t.first);
            continue;
        }
        dot(p, &t, value);
        for (uint32_t r = 0; r < t.rows; r++) {
            out[which.idx[t.first + r]] = value[r];
        }
    }
}

/* Columns: parts of the weights times act, an input a column. */

/* Adds the sums of a block of 32 columns to acc, by the block's scales. */
static void end_block(const sf_part *p, const sf_part *scales, uint32_t block, uint32_t outputs) {
    if (block == UINT32_MAX) {
        return;
    }
    switch (p->grid) {
    case SF_GRID_Q4:
        sf_scale_q4(sf_flash_row(scales, block), act_k[block], act_sum[block], outputs, isum, acc);
        break;
    default: break;
    }
}

/* acc [outputs] = the columns of a list times act. Sums are integers, so their order is free. */
static void sum_columns(const sf_part *p, list which, const sf_part *scales, uint32_t outputs) {
    const uint16_t *idx = which.idx;
    uint32_t block = UINT32_MAX;
    int8_t h[SF_TILE];
    sf_stream s;
    sf_tile t;
    (void)scales; /* not used where they are those of outputs, once for all blocks */
    memset(acc, 0, outputs * sizeof acc[0]);
    sf_stream_open(&s, p, idx, which.n);
    while (sf_stream_next(&s, &t)) {
        for (uint32_t from = 0, to; from < t.rows; from = to) {
            const uint32_t at = t.first + from, column = idx ? idx[at] : at;
            const uint8_t *const *col = t.row + from;
            const int8_t *in = act_q + at;
            if (column / SF_GROUP != block) {
                end_block(p, scales, block, outputs);
                block = column / SF_GROUP;
            }
            /* The columns of this tile that lie in this block, and their inputs. */
            if (idx == NULL) {
                const uint32_t end = SF_GROUP * (block + 1u) - t.first;
                to = end < t.rows ? end : t.rows;
            } else {
                for (to = from; to < t.rows && idx[t.first + to] / SF_GROUP == block; to++) {
                    h[to - from] = act_q[idx[t.first + to]];
                }
                in = h;
            }
            switch (p->grid) {
            case SF_GRID_Q4: sf_axpy_q4(col, in, to - from, outputs, isum); break;
            default: break;
            }
        }
    }
    end_block(p, scales, block, outputs);
}

/* out [outputs] = the columns of a list times act. */
static void columns(const sf_part *p, const sf_part *scales, list which, uint32_t outputs,
                    float *out) {
    sum_columns(p, which, scales, (outputs + SF_GROUP - 1u) / SF_GROUP * SF_GROUP);
    for (uint32_t i = 0; i < outputs; i++) {
        out[i] = sf_sum_to_float(acc[i], act.s);
    }
}


/* out = W in [inputs]: the outputs of a list. */
static void project(const sf_part *p, const float *in, uint32_t inputs, list which, float *out) {
    sf_quantize(in, inputs, &act);
    rows(p, which, out);
}

/* The predictor: which neurons will be active, before their rows are read. */

/* Of the neurons of a list those whose v [SF_FFN] reaches a limit, in active. */
static list reaching(const float *v, list from, float limit) {
    uint32_t kept = 0;
    for (uint32_t k = 0; k < from.n; k++) {
        const uint32_t i = from.idx ? from.idx[k] : k;
        active[kept] = (uint16_t)i;
        kept += reaches(v[i], limit);
    }
    return (list){active, kept};
}

/* Lists the neurons of whose gate weights enough have the sign of their input y; takes up. */
static list predict(uint32_t l) {
    const sf_part *part = &sf_parts[l * SF_LAYER_PARTS];
    for (uint32_t i = 0; i < SF_DIM; i += SF_GROUP) {
        uint32_t word = 0;
        for (uint32_t j = 0; j < SF_GROUP; j++) {
            word |= (uint32_t)(sf_bits(y[i + j]) > 0x80000000u) << j; /* below zero */
        }
        sign[i / SF_GROUP] = word;
    }
    rows(part + SF_PART_PREDICTOR_GATE, first(SF_FFN), up);
    return reaching(up, first(SF_FFN), sf_threshold[l][SF_T_PREDICTOR]);
}

/* Prefetch: where the parts lie, and which are read before they are asked for. */

/* clang-format off */
const sf_part sf_parts[SF_PARTS] = {
    /* at, stride, bytes, rows, resident rows and where, FFN, scales, threshold of inputs, grid, shift */
    { 15552u, 40u, 40u, 128u, 0u, 0u, false, false, 0, SF_GRID_Q4, 0 }, /* qkv 0 */
    { 20672u, 40u, 40u, 64u, 0u, 0u, false, false, 0, SF_GRID_Q4, 0 }, /* o 0 */
    { 44032u, 8u, 8u, 172u, 0u, 0u, true, false, 0, SF_GRID_SIGNS, 0 }, /* predictor_gate 0 */
    { 23232u, 112u, 40u, 172u, 0u, 0u, true, false, 0, SF_GRID_Q4, 0 }, /* gate 0 */
    { 23272u, 112u, 40u, 172u, 0u, 0u, true, false, 0, SF_GRID_Q4, 0 }, /* up 0 */
    { 42496u, 256u, 256u, 6u, 0u, 0u, true, true, 0, SF_GRID_Q4, 0 }, /* down_scales 0 */
    { 23312u, 112u, 32u, 172u, 0u, 0u, true, false, 0, SF_GRID_Q4, 0 }, /* down 0 */
    { 45440u, 40u, 40u, 128u, 0u, 0u, false, false, 0, SF_GRID_Q4, 0 }, /* qkv 1 */
    { 50560u, 40u, 40u, 64u, 0u, 0u, false, false, 0, SF_GRID_Q4, 0 }, /* o 1 */
    { 73920u, 8u, 8u, 172u, 0u, 0u, true, false, 0, SF_GRID_SIGNS, 0 }, /* predictor_gate 1 */
    { 53120u, 112u, 40u, 172u, 0u, 0u, true, false, 0, SF_GRID_Q4, 0 }, /* gate 1 */
    { 53160u, 112u, 40u, 172u, 0u, 0u, true, false, 0, SF_GRID_Q4, 0 }, /* up 1 */
    { 72384u, 256u, 256u, 6u, 0u, 0u, true, true, 0, SF_GRID_Q4, 0 }, /* down_scales 1 */
    { 53200u, 112u, 32u, 172u, 0u, 0u, true, false, 0, SF_GRID_Q4, 0 }, /* down 1 */
    { 4672u, 68u, 68u, 160u, 0u, 0u, false, false, 0, SF_GRID_Q8, 0 }, /* head 2 */
    { 4672u, 68u, 68u, 160u, 0u, 0u, false, false, 0, SF_GRID_Q8, 0 }, /* embed 2 */
};
/* clang-format on */

/* What the masks of a layer leave whole: all gate rows, all up rows, all of h. */
typedef struct {
    bool gate, up, h;
} whole_ffn;

static whole_ffn whole(const float *limit) {
    const bool every_gate = SF_SPECULATES || !(limit[SF_T_PREDICTOR] > 0.0f);
    const bool every_up = every_gate && !SF_TRAINED_MASK &&
                          !(limit[SF_T_GATE] > 0.0f || limit[SF_T_ACT] > 0.0f);
    const bool every_h = every_up && !(limit[SF_T_UP] > 0.0f || limit[SF_T_H] > 0.0f);
    return (whole_ffn){every_gate, every_up, every_h};
}

/* The schedule: parts that every token reads whole come in their order, and are read ahead. */
bool sf_reads_all(uint32_t layer, uint32_t kind) {
    const sf_part *part = &sf_parts[layer * SF_LAYER_PARTS + kind];
    const float *limit = sf_threshold[layer];
    const whole_ffn all = whole(limit);
    if (part->tables || part->input != 0u) {
        const bool trained = SF_OWN_THRESHOLDS && part->input == SF_T_XG;
        return !part->tables && !trained && !(limit[part->input] > 0.0f);
    }
    switch (kind) {
    case SF_PART_PREDICTOR_GATE:
        return limit[SF_T_PREDICTOR] > 0.0f && !all.h; /* else it is not read at all */
    case SF_PART_GATE: return all.gate;
    case SF_PART_UP: return all.up;
    case SF_PART_DOWN: return SF_DOWN_ROWS || all.h;
    default: return true;
    }
}

/* Attention. */

/* qkv = the projections of y. */
static void project_qkv(const sf_part *part) {
    project(part + SF_PART_QKV, y, SF_DIM, first(SF_QKV), qkv);
}

/* Each of n heads turns by the angles of its position. */
static void rotate_heads(float *heads, uint32_t n) {
    for (uint32_t h = 0; h < n; h++) {
        sf_rope(heads + h * SF_HEAD_DIM, angles, SF_HEAD_DIM / 2u);
    }
}

/* k and v go into the cache; an exponent for each head. */
static void cache_heads(uint32_t l, const float *k, const float *v) {
    for (uint32_t h = 0; h < SF_KV_HEADS; h++) {
        const uint32_t at = h * SF_HEAD_DIM;
        const int32_t ks = sf_quantize8(k + at, SF_HEAD_DIM, k_cache[l][position] + at);
        const int32_t vs = sf_quantize8(v + at, SF_HEAD_DIM, v_cache[l][position] + at);
        k_exp[l][position][h] = (int8_t)ks;
        v_exp[l][position][h] = (int8_t)vs;
        if (position == 0 || ks < k_least[l][h]) {
            k_least[l][h] = (int8_t)ks;
        }
        if (position == 0 || vs < v_least[l][h]) {
            v_least[l][h] = (int8_t)vs;
        }
    }
}

/* y = the heads' mixes of values; heads of q that share a head of k and v go together. */
static void attend(uint32_t l) {
    const uint32_t heads = SF_HEADS / SF_KV_HEADS;
    for (uint32_t g = 0; g < SF_KV_HEADS; g++) {
        const uint32_t at = g * heads * SF_HEAD_DIM;
        const sf_attn a = {
            .k = k_cache[l][0] + g * SF_HEAD_DIM,
            .v = v_cache[l][0] + g * SF_HEAD_DIM,
            .ks = k_exp[l][0] + g,
            .vs = v_exp[l][0] + g,
            .stride = SF_KV_DIM,
            .estride = SF_KV_HEADS,
            .first = 0,
            .last = position,
            .head_dim = SF_HEAD_DIM,
            .k_least = k_least[l][g],
            .v_least = v_least[l][g],
            .scale = SF_SCORE_SCALE,
        };
        sf_attention(&a, heads, qkv + at, q16, score, mix, y + at);
    }
}

/* x += attention of x. */
static void attention(uint32_t l, const float *vec) {
    const sf_part *part = &sf_parts[l * SF_LAYER_PARTS];
    float *const k = qkv + SF_Q_DIM, *const v = k + SF_KV_DIM;
    sf_rmsnorm(x, vec + SF_V_ATTN_NORM, SF_DIM, SF_NORM_EPS, y);
    sf_observe(l, SF_SITE_ATTN_IN, y, SF_DIM);
    project_qkv(part);
    const uint8_t *step = sf_flash_map(SF_ROPE_AT + l * SF_HEAD_DIM * 2u, SF_HEAD_DIM * 2u);
    sf_rope_angles((const uint32_t *)(const void *)step, SF_HEAD_DIM / 2u, position, angles);
    rotate_heads(qkv, SF_HEADS);
    sf_observe(l, SF_SITE_Q, qkv, SF_Q_DIM);
    rotate_heads(k, SF_KV_HEADS);
    cache_heads(l, k, v);
    attend(l);
    sf_observe(l, SF_SITE_ATTN, y, SF_Q_DIM);
    project(part + SF_PART_O, y, SF_Q_DIM, first(SF_DIM), y);
    sf_add(x, y, SF_DIM);
}

/* The FFN: rows and columns of the active neurons alone. */

/* gate [SF_FFN] becomes h, zero where the mask drops it; lists the neurons that it keeps. own: limits
 * of h of each neuron, or NULL. */
static list mask(list from, const float *limit, const float *own) {
    uint32_t kept = 0, next = 0;
    for (uint32_t k = 0; k < from.n; k++) {
        const uint32_t i = from.idx ? from.idx[k] : k;
        const float h = gate[i] * up[i];
        while (next < i) {
            gate[next++] = 0.0f;
        }
        next = i + 1u;
        if (reaches(up[i], limit[SF_T_UP]) && reaches(h, limit[SF_T_H]) &&
            (own == NULL || reaches(h, own[i]))) {
            gate[i] = h;
            active[kept++] = (uint16_t)i;
        } else {
            gate[i] = 0.0f;
        }
    }
    while (next < SF_FFN) {
        gate[next++] = 0.0f;
    }
    return (list){active, kept};
}

/* Outputs y below a limit become 0. */
static void drop_outputs(float limit) {
    for (uint32_t i = 0; limit > 0.0f && i < SF_DIM; i++) {
        y[i] = reaches(y[i], limit) ? y[i] : 0.0f;
    }
}

/* x += FFN of x. */
static void ffn(uint32_t l, const float *vec) {
    const sf_part *part = &sf_parts[l * SF_LAYER_PARTS];
    const float *limit = sf_threshold[l];
    const whole_ffn all = whole(limit);
    list neurons = first(SF_FFN); /* that can still be active */
    sf_rmsnorm(x, vec + SF_V_FFN_NORM, SF_DIM, SF_NORM_EPS, y);
    sf_observe(l, SF_SITE_FFN_IN, y, SF_DIM);
    if (!all.gate) {
        neurons = predict(l);
    }
    project(part + SF_PART_GATE, y, SF_GATE_INPUTS, neurons, gate);
    if (limit[SF_T_GATE] > 0.0f) {
        neurons = reaching(gate, neurons, limit[SF_T_GATE]);
    }
    sf_relu(gate, SF_FFN, gate);
    if (limit[SF_T_ACT] > 0.0f) {
        neurons = reaching(gate, neurons, limit[SF_T_ACT]);
    }
    rows(part + SF_PART_UP, neurons, up); /* act still holds y */
    if (all.h) {
        sf_multiply(gate, up, SF_FFN);
    } else {
        neurons = mask(neurons, limit, NULL);
    }
    sf_observe(l, SF_SITE_H, gate, SF_FFN);
    sf_count_neurons(neurons.n);

    sf_quantize(gate, SF_FFN, &act);
    columns(part + SF_PART_DOWN, part + SF_PART_DOWN_SCALES, neurons, SF_DIM, y);
    drop_outputs(limit[SF_T_DOWN]);
    sf_observe(l, SF_SITE_FFN_OUT, y, SF_DIM);
    sf_add(x, y, SF_DIM);
}

/* The head: logits of x. */
static void head(const float *norm) {
    sf_rmsnorm(x, norm, SF_DIM, SF_NORM_EPS, y);
    sf_quantize(y, SF_DIM, &act);
    rows(&sf_parts[SF_PART_WHOLE_HEAD], first(SF_VOCAB), logits);
}

/* x = the embedding of a token. */
static void embed(uint32_t token) {
    sf_row_q8(sf_flash_row(&sf_parts[SF_PART_EMBED], token), SF_DIM, x);
}

/* One layer: attention and FFN each add to x. */
static void layer(uint32_t l, const float *vec) {
    const uint64_t t0 = sf_port_ticks();
    attention(l, vec);
    const uint64_t t1 = sf_port_ticks();
    ffn(l, vec);
    sf_observe(l, SF_SITE_RESIDUAL, x, SF_DIM);
    const uint64_t t2 = sf_port_ticks();
    sf_count_time(t1 - t0, t2 - t1, 0);
    sf_event(SF_LANE_COMPUTE, "attention", l, t0, t1);
    sf_event(SF_LANE_COMPUTE, "FFN", l, t1, t2);
}

/* The least exponents are those of the positions before this one, as if its step had not run. */
static void take_back(void) {
    for (uint32_t l = 0; l < SF_LAYERS; l++) {
        for (uint32_t h = 0; h < SF_KV_HEADS; h++) {
            int8_t k = INT8_MAX, v = INT8_MAX;
            for (uint32_t p = 0; p < position; p++) {
                k = k_exp[l][p][h] < k ? k_exp[l][p][h] : k;
                v = v_exp[l][p][h] < v ? v_exp[l][p][h] : v;
            }
            k_least[l][h] = k;
            v_least[l][h] = v;
        }
    }
}

int sf_step(uint32_t token, bool want_logits) {
    if (token >= SF_VOCAB) {
        return SF_ERR_TOKEN;
    }
    if (position >= SF_KV_LEN) {
        return SF_ERR_CONTEXT;
    }
    const uint64_t start = sf_port_ticks();
    sf_flash_token(want_logits);
    const float *vectors = (const float *)(const void *)sf_flash_map(SF_VECTORS_AT, 4u);
    embed(token);
    for (uint32_t l = 0; l < SF_LAYERS; l++) {
        layer(l, vectors + l * SF_V_LAYER);
    }
    if (want_logits) {
        const uint64_t t0 = sf_port_ticks();
        head(vectors + SF_LAYERS * SF_V_LAYER);
        const uint64_t t1 = sf_port_ticks();
        sf_count_time(0, 0, t1 - t0);
        sf_event(SF_LANE_COMPUTE, "head", 0, t0, t1);
    }
    const int code = sf_flash_error();
    if (code != SF_OK) {
        take_back(); /* the position stays, so the same token can be tried again */
        return code;
    }
    position++;
    sf_count_token(sf_port_ticks() - start);
    return SF_OK;
}

void sf_reset(void) {
    position = 0;
}

uint32_t sf_position(void) {
    return position;
}

const float *sf_logits(void) {
    return logits;
}
