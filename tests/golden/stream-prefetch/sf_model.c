/* An example of generated code.
 *
 * The forward pass of random: llama, 2 layers. Weights stay in flash. */
#include "sf_model.h"

#include "sf_flash.h"
#include "sf_kernels.h"
#include "sf_port.h"
#include "sf_runtime.h"
#include "sf_state.h"
#include "sf_threads.h"
#include "sf_timeline.h"

_Static_assert(SF_PLAN == 0x0000000000000000ull, "sf_model.h is of another plan");
_Static_assert(SF_RUNTIME_VERSION == 9, "generated for another runtime");
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
    { 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x1.0000000000000p-3f, 0x0.0p+0f, 0x1.0000000000000p-2f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f },
    { 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x1.0000000000000p-3f, 0x0.0p+0f, 0x1.0000000000000p-2f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f },
};

/* Working memory. */
static float x[SF_BLOCK][SF_DIM];                                  /* residual stream */
static float y[SF_BLOCK][SF_WIDEST];                               /* normed input of a branch, then its output */
static float qkv[SF_BLOCK][SF_QKV];                                /* q, then k, then v */
static float gate[SF_BLOCK][SF_FFN];                               /* gate, then act(gate), then h */
static float up[SF_BLOCK][SF_UP];
static uint16_t active[SF_BLOCK][SF_FFN];                          /* numbers of neurons, ascending */
static float logits[SF_VOCAB];
static _Alignas(8) int8_t k_cache[SF_LAYERS][SF_KV_LEN][SF_KV_DIM];
static _Alignas(8) int8_t v_cache[SF_LAYERS][SF_KV_LEN][SF_KV_DIM];
static int8_t k_exp[SF_LAYERS][SF_KV_LEN][SF_KV_HEADS];            /* exponents */
static int8_t v_exp[SF_LAYERS][SF_KV_LEN][SF_KV_HEADS];
static int8_t k_least[SF_LAYERS][SF_KV_HEADS];                     /* least of k_exp so far */
static int8_t v_least[SF_LAYERS][SF_KV_HEADS];
static _Alignas(8) int32_t score[SF_WORKERS][SF_SCORES];
static _Alignas(8) int16_t q16[SF_WORKERS][SF_HEAD_PAIR];
static int32_t mix[SF_WORKERS][SF_HEAD_PAIR];
static float angles[SF_HEAD_DIM];                                  /* cosine and sine of each pair */
static int32_t isum[SF_BLOCK][SF_BLOCK_OUTPUTS];                   /* of a block of 32 columns */
static int64_t acc[SF_BLOCK][SF_OUTPUTS];                          /* of all columns */
static _Alignas(8) int8_t act_q[SF_BLOCK][SF_BFP_LENGTH];
static int32_t act_sum[SF_BLOCK][SF_BFP_GROUPS];
static uint8_t act_k[SF_BLOCK][SF_BFP_GROUPS];
uint32_t sf_site_hash[SF_LAYERS][SF_SITES];                        /* of the last token */
float sf_site_values[SF_LONGEST];                                  /* of the site that is tapped */
static sf_bfp act[SF_BLOCK];                                       /* what a matrix is multiplied by */
static uint32_t position;                                          /* of the block's first token in the cache */
static uint32_t token_count = 1;                                   /* tokens that go through the layers together */

_Static_assert(sizeof x + sizeof y + sizeof qkv + sizeof gate + sizeof up + sizeof active +
    sizeof logits + sizeof k_cache + sizeof v_cache + sizeof k_exp + sizeof v_exp +
    sizeof k_least + sizeof v_least + sizeof score + sizeof q16 + sizeof mix +
    sizeof angles + sizeof isum + sizeof acc + sizeof act_q + sizeof act_sum +
    sizeof act_k + sizeof sf_threshold + sizeof sf_site_hash + sizeof sf_site_values == SF_ARENA_BYTES,
    "the compiler counts the bytes of the plan");
/* clang-format on */

/* Matrices: by rows, by columns, in two factors. */
/* Tokens of a block: their vectors, and the lists of rows or columns that they want. */

/* Tokens of this block; the compiler knows where there can only be one. */
static inline uint32_t tokens(void) {
    return SF_BLOCK > 1u ? token_count : 1u;
}

/* A vector of each token: of the first, and the way from one to the next. */
typedef struct {
    float *first;
    uint32_t stride;
} vectors;

static inline float *of_token(vectors v, uint32_t t) {
    return v.first + t * v.stride;
}

/* Each token's vector becomes what matrices are multiplied by. */
static void quantize(vectors in, uint32_t n) {
    for (uint32_t t = 0; t < tokens(); t++) {
        sf_quantize(of_token(in, t), n, &act[t]);
    }
}

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

static list together(const list *of) {
    return of[0];
}

static inline bool wants(uint32_t t, uint32_t i) {
    (void)t;
    (void)i;
    return true;
}

/* Rows: parts of the weights times the activations of each token, an output a row. */

/* out[r] = row r of n times the activations of token t. */
static void dot(const sf_part *p, const uint8_t *const *row, uint32_t n, uint32_t t, float *out) {
    switch (p->grid) {
    case SF_GRID_PROXY: sf_dot_proxy(row, n, SF_PROXY_BITS, &act[t], out); break;
    case SF_GRID_Q4: sf_dot_q4(row, n, &act[t], out); break;
    default: sf_dot_q8(row, n, &act[t], out); break;
    }
}

/* Rows of a tile, and where each token's products with them go. */
typedef struct {
    const sf_part *part;
    const sf_tile *tile;
    const uint16_t *idx;
    vectors out;
} rows_task;

/* The products of n rows of a tile with every token. */
static inline void for_all(const rows_task *w, uint32_t from, uint32_t n) {
    const uint8_t *const *row = w->tile->row + from;
    const uint32_t at = w->tile->first + from;
    uint32_t t = 0;
    if (t < tokens()) {
        dot(w->part, row, n, t, of_token(w->out, t) + at);
    }
}

/* A worker's share of a tile's rows, as many at a time as kernels take. */
static void some_rows(uint32_t worker, uint32_t workers, const void *task) {
    const rows_task *w = task;
    const bool one = SF_SPAN == SF_TILE; /* a tile is one piece */
    const uint32_t rows = w->tile->rows, pieces = one ? 1u : (rows + SF_TILE - 1u) / SF_TILE;
    const uint32_t end = pieces * (worker + 1u) / workers * SF_TILE;
    for (uint32_t from = pieces * worker / workers * SF_TILE; from < end; from += SF_TILE) {
        for_all(w, from, one || rows - from < SF_TILE ? rows - from : SF_TILE);
    }
}

/* out[idx[r]] = row r of n times the activations of token t. */
static void scatter(const rows_task *w, const uint8_t *const *row, const uint16_t *idx, uint32_t n,
                    uint32_t t) {
    float value[SF_LISTED], *out = of_token(w->out, t);
    dot(w->part, row, n, t, value);
    for (uint32_t r = 0; r < n; r++) {
        out[idx[r]] = value[r];
    }
}

/* The same for those that token t wants: the list is that of all tokens. It asks twice, for stacks
 * of microcontrollers have no room for the indices that scatter() would take. */
static void scatter_wanted(const rows_task *w, const uint8_t *const *row, const uint16_t *idx,
                           uint32_t n, uint32_t t) {
    const uint8_t *own[SF_LISTED];
    float value[SF_LISTED], *out = of_token(w->out, t);
    uint32_t kept = 0;
    for (uint32_t r = 0; r < n; r++) {
        own[kept] = row[r];
        kept += wants(t, idx[r]);
    }
    if (kept == 0) {
        return;
    }
    dot(w->part, own, kept, t, value);
    for (uint32_t r = 0, k = 0; r < n; r++) {
        if (wants(t, idx[r])) {
            out[idx[r]] = value[k++];
        }
    }
}

/* A worker's share of a tile's listed rows; later ones are asked for meanwhile. */
static void some_listed(uint32_t worker, uint32_t workers, const void *task) {
    const rows_task *w = task;
    const uint32_t rows = w->tile->rows, pieces = (rows + SF_LISTED - 1u) / SF_LISTED;
    const uint32_t end = pieces * (worker + 1u) / workers * SF_LISTED;
    uint32_t from = pieces * worker / workers * SF_LISTED;
    sf_ask_for(w->tile, from, SF_AHEAD, w->part->bytes);
    for (; from < end; from += SF_LISTED) {
        const uint32_t n = rows - from < SF_LISTED ? rows - from : SF_LISTED;
        sf_ask_for(w->tile, from + SF_AHEAD, SF_LISTED, w->part->bytes);
        const uint8_t *const *row = w->tile->row + from;
        const uint16_t *idx = w->idx + w->tile->first + from;
        if (tokens() == 1u) {
            scatter(w, row, idx, n, 0);
            continue;
        }
        for (uint32_t t = 0; t < tokens(); t++) {
            scatter_wanted(w, row, idx, n, t);
        }
    }
}

/* Each token's out[i] = row i of p times its activations, for the rows of a list. */
static void rows(const sf_part *p, list which, vectors out) {
    sf_stream s;
    sf_tile t;
    const rows_task task = {p, &t, which.idx, out};
    sf_stream_open(&s, p, which.idx, which.n);
    while (sf_stream_next(&s, &t)) {
        if (which.idx != NULL) {
            sf_parallel(some_listed, &task);
        } else {
            sf_parallel(some_rows, &task);
        }
    }
}

/* Columns: parts of the weights times the activations of each token, an input a column. */

/* Pieces that threads work on at once. In mapped flash the scales of all are at hand. */
enum { PIECES = 1 };

/* Columns of a tile that lie in one block of 32 inputs, and the scales of the block. */
typedef struct {
    uint32_t from, to, block;
    bool ends;  /* no more of its columns are in the next tile, */
    bool whole; /* and none in the one before */
    const uint8_t *scales;
} columns_piece;

typedef struct {
    const sf_part *part;
    const sf_tile *tile;
    const uint16_t *idx;
    uint32_t n, outputs, pieces, table; /* bytes of a block's scales */
    columns_piece piece[PIECES];
} columns_task;

/* Bytes of 32 outputs of a column. */
static uint32_t group_bytes(const sf_part *p) {
    switch (p->grid) {
    case SF_GRID_Q4: return 16;
    default: return 0;
    }
}

/* Sums of the outputs from..to of token t += n columns, from `from` on, times h. */
static void add_columns(const columns_task *w, uint32_t block, const uint8_t *const *col,
                        uint32_t n, const int8_t *h, uint32_t t, uint32_t from, uint32_t to) {
    (void)block; /* not used where sums take the shift of a block with its scales */
    switch (w->part->grid) {
    case SF_GRID_Q4: sf_axpy_q4(col, h, n, to - from, isum[t] + from); break;
    default: break;
    }
}

/* The sums of a block take its scales. */
static void end_block(const sf_part *p, const columns_piece *c, uint32_t t, uint32_t from,
                      uint32_t to) {
    const int32_t sum = act_sum[t][c->block];
    switch (p->grid) {
    case SF_GRID_Q4:
        sf_scale_q4(c->scales + from * 4u, act_k[t][c->block], sum, to - from, isum[t] + from,
                    acc[t] + from);
        break;
    default: break;
    }
}

/* A worker's share of the outputs, whole pairs of groups. */
static void some_columns(uint32_t worker, uint32_t workers, const void *task) {
    const columns_task *w = task;
    const uint32_t pairs = (w->outputs + 2u * SF_GROUP - 1u) / (2u * SF_GROUP);
    const uint32_t from = pairs * worker / workers * 2u * SF_GROUP;
    const uint32_t last = pairs * (worker + 1u) / workers * 2u * SF_GROUP;
    const uint32_t to = last < w->outputs ? last : w->outputs;
    for (uint32_t k = 0; k < w->pieces && from < to; k++) {
        const columns_piece *c = &w->piece[k];
        const uint32_t n = c->to - c->from, at = w->tile->first + c->from;
        const uint8_t *const *col = w->tile->row + c->from;
        const uint8_t *moved[SF_WORKERS > 1u ? SF_GROUP : 1u];
        for (uint32_t r = 0; r < n && from > 0; r++) {
            moved[r] = col[r] + from / SF_GROUP * group_bytes(w->part);
        }
        col = from > 0 ? moved : col;
        for (uint32_t t = 0; t < tokens(); t++) {
            const uint8_t *own_col[SF_GROUP];
            int8_t h[SF_GROUP];
            uint32_t own = 0; /* others want the columns that are zero here */
            if (w->idx == NULL) {
                add_columns(w, c->block, col, n, act_q[t] + at, t, from, to);
            } else if (tokens() == 1u) {
                for (uint32_t r = 0; r < n; r++) {
                    h[r] = act_q[t][w->idx[at + r]];
                }
                add_columns(w, c->block, col, n, h, t, from, to);
            } else {
                for (uint32_t r = 0; r < n; r++) {
                    h[own] = act_q[t][w->idx[at + r]];
                    own_col[own] = col[r];
                    own += h[own] != 0;
                }
                if (own > 0) {
                    add_columns(w, c->block, own_col, own, h, t, from, to);
                }
            }
            if (c->ends) {
                end_block(w->part, c, t, from, to);
            }
        }
    }
}

/* How many of n ascending numbers lie in a block, from the first on. */
static inline uint32_t of_block(const uint16_t *idx, uint32_t n, uint32_t block) {
    const uint16_t last = (uint16_t)(SF_GROUP * block + SF_GROUP - 1u);
    if (PIECES > 1 && n >= SF_GROUP) { /* without branches, for vectors */
        uint16_t some = 0;
        for (uint32_t k = 0; k < SF_GROUP; k++) {
            some = (uint16_t)(some + (idx[k] <= last));
        }
        return some;
    }
    uint32_t k = 1;
    while (k < n && idx[k] <= last) {
        k++;
    }
    return k;
}

/* acc [outputs] of each token = the columns of a list times its activations. Sums are integers, so
 * their order is free. */
static void sum_columns(const sf_part *p, list which, const sf_part *scales, uint32_t outputs) {
    const uint16_t *idx = which.idx;
    sf_tile tile;
    columns_task task = {.part = p, .tile = &tile, .idx = idx, .n = which.n, .outputs = outputs};
    sf_stream s;
    (void)scales; /* not used where they are those of outputs, once for all blocks */
    for (uint32_t t = 0; t < tokens(); t++) {
        memset(acc[t], 0, outputs * sizeof acc[t][0]);
    }
    sf_stream_open(&s, p, idx, which.n);
    while (sf_stream_next(&s, &tile)) {
        for (uint32_t from = 0, to; from < tile.rows; from = to) {
            const uint32_t at = tile.first + from, block = (idx ? idx[at] : at) / SF_GROUP;
            const uint32_t end = SF_GROUP * (block + 1u) - tile.first;
            to = idx ? from + of_block(idx + at, tile.rows - from, block)
                     : (end < tile.rows ? end : tile.rows);
            columns_piece *const c = &task.piece[task.pieces++];
            *c = (columns_piece){.from = from, .to = to, .block = block};
            const uint32_t next = tile.first + to;
            c->ends = next == which.n || (idx ? idx[next] : next) / SF_GROUP != block;
            c->whole = c->ends && (from > 0 || at == 0 || (idx ? idx[at - 1u] : at - 1u) / SF_GROUP != block);
            if (c->ends) {
                c->scales = sf_flash_row(scales, block);
                task.table = scales->bytes;
            }
            if (task.pieces == PIECES || to == tile.rows) {
                if (PIECES == 1) { /* too little for threads */
                    some_columns(0, 1, &task);
                } else {
                    sf_parallel(some_columns, &task);
                }
                task.pieces = 0;
            }
        }
    }
    if (s.next < which.n) { /* a failed read may have left a block unfinished */
        memset(isum, 0, sizeof isum);
    }
}

/* out [outputs] of each token = the columns of a list times its activations. */
static void columns(const sf_part *p, const sf_part *scales, list which, uint32_t outputs,
                    vectors out) {
    sum_columns(p, which, scales, (outputs + SF_GROUP - 1u) / SF_GROUP * SF_GROUP);
    for (uint32_t t = 0; t < tokens(); t++) {
        sf_floats(acc[t], outputs, act[t].s, of_token(out, t));
    }
}

/* out = W in [inputs] of each token: the outputs of a list. */
static void project(const sf_part *p, vectors in, uint32_t inputs, list which, vectors out) {
    quantize(in, inputs);
    rows(p, which, out);
}

/* Trace and tap see the block's last token. */
static void observe(uint32_t l, uint32_t site, vectors v, uint32_t n) {
    sf_observe(l, site, of_token(v, tokens() - 1u), n);
}

/* The predictor: which neurons will be active, before their rows are read. */

/* Neurons of each token that can still be active. */
static list neurons[SF_BLOCK];

/* Of the neurons of each token those whose v [SF_FFN] reaches a limit. Where there was no list, v
 * becomes 0 for the others. */
static void keep_reaching(float v[][SF_FFN], float limit) {
    for (uint32_t t = 0; t < tokens(); t++) {
        const list from = neurons[t];
        uint32_t kept = 0;
        if (from.idx == NULL) {
            kept = sf_keep_reaching(v[t], SF_FFN, limit, active[t]);
        }
        for (uint32_t k = 0; k < from.n && from.idx != NULL; k++) {
            const uint32_t i = from.idx[k];
            active[t][kept] = (uint16_t)i;
            kept += reaches(v[t][i], limit);
        }
        neurons[t] = (list){active[t], kept};
    }
}

/* Lists the neurons whose h is large by smaller matrices of gate and up; takes act, gate, up. */
static void predict(uint32_t l) {
    const sf_part *part = &sf_parts[l * SF_LAYER_PARTS];
    quantize((vectors){y[0], SF_WIDEST}, SF_DIM);
    rows(part + SF_PART_PREDICTOR_UP, first(SF_FFN), (vectors){up[0], SF_FFN});
    rows(part + SF_PART_PREDICTOR_GATE, first(SF_FFN), (vectors){gate[0], SF_FFN});
    for (uint32_t t = 0; t < tokens(); t++) {
        sf_silu(gate[t], SF_FFN, gate[t]);
        sf_multiply(up[t], gate[t], SF_FFN);
        neurons[t] = first(SF_FFN);
    }
    keep_reaching(up, sf_threshold[l][SF_T_PREDICTOR]);
}

/* Prefetch: where the parts lie, and which are read before they are asked for. */

/* clang-format off */
const sf_part sf_parts[SF_PARTS] = {
    /* at, stride, bytes, rows, resident rows and where, FFN, scales, threshold of inputs, grid, shift */
    { 15744u, 40u, 40u, 128u, 40u, 0u, false, false, 0, SF_GRID_Q4, 0 }, /* qkv 0 */
    { 20864u, 40u, 40u, 64u, 19u, 1600u, false, false, 0, SF_GRID_Q4, 0 }, /* o 0 */
    { 44224u, 20u, 20u, 172u, 52u, 2368u, true, false, 0, SF_GRID_PROXY, 0 }, /* predictor_gate 0 */
    { 47664u, 20u, 20u, 172u, 52u, 3456u, true, false, 0, SF_GRID_PROXY, 0 }, /* predictor_up 0 */
    { 23424u, 40u, 40u, 172u, 54u, 4544u, true, false, 0, SF_GRID_Q4, 0 }, /* gate 0 */
    { 30304u, 40u, 40u, 172u, 54u, 6720u, true, false, 0, SF_GRID_Q4, 0 }, /* up 0 */
    { 42688u, 256u, 256u, 6u, 6u, 8896u, true, true, 0, SF_GRID_Q4, 0 }, /* down_scales 0 */
    { 37184u, 32u, 32u, 172u, 54u, 10432u, true, false, 0, SF_GRID_Q4, 0 }, /* down 0 */
    { 51136u, 40u, 40u, 128u, 40u, 12160u, false, false, 0, SF_GRID_Q4, 0 }, /* qkv 1 */
    { 56256u, 40u, 40u, 64u, 19u, 13760u, false, false, 0, SF_GRID_Q4, 0 }, /* o 1 */
    { 79616u, 20u, 20u, 172u, 52u, 14528u, true, false, 0, SF_GRID_PROXY, 0 }, /* predictor_gate 1 */
    { 83056u, 20u, 20u, 172u, 52u, 15616u, true, false, 0, SF_GRID_PROXY, 0 }, /* predictor_up 1 */
    { 58816u, 40u, 40u, 172u, 54u, 16704u, true, false, 0, SF_GRID_Q4, 0 }, /* gate 1 */
    { 65696u, 40u, 40u, 172u, 54u, 18880u, true, false, 0, SF_GRID_Q4, 0 }, /* up 1 */
    { 78080u, 256u, 256u, 6u, 6u, 21056u, true, true, 0, SF_GRID_Q4, 0 }, /* down_scales 1 */
    { 72576u, 32u, 32u, 172u, 54u, 22592u, true, false, 0, SF_GRID_Q4, 0 }, /* down 1 */
    { 4864u, 68u, 68u, 160u, 51u, 24320u, false, false, 0, SF_GRID_Q8, 0 }, /* head 2 */
    { 4864u, 68u, 68u, 160u, 51u, 24320u, false, false, 0, SF_GRID_Q8, 0 }, /* embed 2 */
};
/* clang-format on */

/* What the masks of a layer leave whole: all gate rows, all up rows, all of h. */
typedef struct {
    bool gate, up, h;
} whole_ffn;

static whole_ffn whole(const float *limit) {
    const bool every_gate = !SF_ROUTES && (SF_SPECULATES || !(limit[SF_T_PREDICTOR] > 0.0f));
    const bool every_up =
        every_gate && !SF_TRAINED_MASK && !(limit[SF_T_GATE] > 0.0f || limit[SF_T_ACT] > 0.0f);
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
    case SF_PART_PREDICTOR_UP:
        return limit[SF_T_PREDICTOR] > 0.0f && !all.h; /* else it is not read at all */
    case SF_PART_GATE: return all.gate;
    case SF_PART_UP: return all.up;
    case SF_PART_DOWN: return SF_DOWN_ROWS || all.h;
    default: return true;
    }
}

/* Starts reading the rows of the predicted neurons, of the first part that a mask picks from. The
 * mask itself looks at true values. */
static void prefetch(uint32_t l) {
    if (sf_reads_all(l, SF_PART_PREDICTOR)) {
        const uint32_t kind = sf_reads_all(l, SF_PART_UP) ? SF_PART_DOWN : SF_PART_UP;
        predict(l);
        const list predicted = together(neurons);
        sf_stream_early(&sf_parts[l * SF_LAYER_PARTS + kind], predicted.idx, predicted.n);
    }
}

/* Norms. A branch, attention or FFN, takes y and leaves in y what x gains. */

/* out = in normed with weights w, behind which the biases are; in itself without weights. */
static void normed(const float *in, const float *w, float *out) {
    if (w == NULL) {
        memcpy(out, in, SF_DIM * sizeof *in);
        return;
    }
    sf_rmsnorm(in, w, SF_DIM, SF_NORM_EPS, out);
}

/* y = x normed, of each token. */
static void norm_all(const float *w) {
    for (uint32_t t = 0; t < tokens(); t++) {
        normed(x[t], w, y[t]);
    }
}

/* Attention. */

/* qkv = the projections of y. */
static void project_qkv(const sf_part *part) {
    const vectors in = {y[0], SF_WIDEST}, out = {qkv[0], SF_QKV};
    project(part + SF_PART_QKV, in, SF_DIM, first(SF_QKV), out);
}

/* Each of n heads turns by the angles of its position. */
static void rotate_heads(float *heads, uint32_t n) {
    for (uint32_t h = 0; h < n; h++) {
        sf_rope(heads + h * SF_HEAD_DIM, angles, SF_HEAD_DIM / 2u);
    }
}

/* k and v of token t go into the cache; an exponent for each head. */
static void cache_heads(uint32_t l, uint32_t t, const float *k, const float *v) {
    const uint32_t p = position + t;
    for (uint32_t h = 0; h < SF_KV_HEADS; h++) {
        const uint32_t at = h * SF_HEAD_DIM;
        k_exp[l][p][h] = (int8_t)sf_quantize8(k + at, SF_HEAD_DIM, k_cache[l][p] + at);
        v_exp[l][p][h] = (int8_t)sf_quantize8(v + at, SF_HEAD_DIM, v_cache[l][p] + at);
    }
}

/* The least exponents of a head of k and v; those of the positions before the block are kept. */
typedef struct {
    int8_t k, v;
} exponents;

static exponents least_before(uint32_t l, uint32_t g) {
    const exponents none = {INT8_MAX, INT8_MAX};
    return position == 0 ? none : (exponents){k_least[l][g], v_least[l][g]};
}

static exponents least_with(exponents e, uint32_t l, uint32_t g, uint32_t p) {
    const int8_t k = k_exp[l][p][g], v = v_exp[l][p][g];
    return (exponents){k < e.k ? k : e.k, v < e.v ? v : e.v};
}

/* A layer, and the least exponents that hold for each token of the block. */
typedef struct {
    uint32_t layer;
    exponents least[SF_KV_HEADS][SF_BLOCK];
} attention_task;

/* y = the heads' mixes of values, a worker's share of the heads; heads of q that share a head of k
 * and v go together. */
static void some_heads(uint32_t worker, uint32_t workers, const void *task) {
    const attention_task *w = task;
    const uint32_t l = w->layer, heads = SF_HEADS / SF_KV_HEADS;
    const uint32_t end = SF_HEADS * (worker + 1u) / workers;
    for (uint32_t h = SF_HEADS * worker / workers, n; h < end; h += n) {
        const uint32_t g = h / heads;
        n = (g + 1u) * heads < end ? (g + 1u) * heads - h : end - h;
        sf_attn a = {
            .k = k_cache[l][0] + g * SF_HEAD_DIM,
            .v = v_cache[l][0] + g * SF_HEAD_DIM,
            .ks = k_exp[l][0] + g,
            .vs = v_exp[l][0] + g,
            .stride = SF_KV_DIM,
            .estride = SF_KV_HEADS,
            .head_dim = SF_HEAD_DIM,
            .scale = SF_SCORE_SCALE,
        };
        for (uint32_t t = 0; t < tokens(); t++) {
            a.last = position + t;
            a.k_least = w->least[g][t].k;
            a.v_least = w->least[g][t].v;
            sf_attention(&a, n, qkv[t] + h * SF_HEAD_DIM, q16[worker], score[worker], mix[worker],
                         y[t] + h * SF_HEAD_DIM);
        }
    }
}

/* y = attention of the block's tokens, whose exponents the least ones then take in. */
static void attend(uint32_t l) {
    attention_task task;
    task.layer = l;
    for (uint32_t g = 0; g < SF_KV_HEADS; g++) {
        exponents least = least_before(l, g);
        for (uint32_t t = 0; t < tokens(); t++) {
            least = least_with(least, l, g, position + t);
            task.least[g][t] = least;
        }
        k_least[l][g] = least.k;
        v_least[l][g] = least.v;
    }
    sf_parallel(some_heads, &task);
}

/* x += attention of x. */
static void attention(uint32_t l, const float *vec) {
    const sf_part *part = &sf_parts[l * SF_LAYER_PARTS];
    const vectors mixed = {y[0], SF_WIDEST};
    norm_all(vec + SF_V_ATTN_NORM);
    observe(l, SF_SITE_ATTN_IN, mixed, SF_DIM);
    project_qkv(part);
    const uint8_t *step = sf_flash_map(SF_ROPE_AT + l * SF_HEAD_DIM * 2u, SF_HEAD_DIM * 2u);
    for (uint32_t t = 0; t < tokens(); t++) {
        float *const q = qkv[t], *const k = q + SF_Q_DIM, *const v = k + SF_KV_DIM;
        sf_rope_angles((const uint32_t *)(const void *)step, SF_HEAD_DIM / 2u, position + t,
                       angles);
        rotate_heads(q, SF_HEADS);
        rotate_heads(k, SF_KV_HEADS);
        cache_heads(l, t, k, v);
    }
    observe(l, SF_SITE_Q, (vectors){qkv[0], SF_QKV}, SF_Q_DIM);
    attend(l);
    observe(l, SF_SITE_ATTN, mixed, SF_Q_DIM);
    project(part + SF_PART_O, mixed, SF_Q_DIM, first(SF_DIM), mixed);
    for (uint32_t t = 0; t < tokens(); t++) {
        sf_add(x[t], y[t], SF_DIM);
    }
}

/* The end of the FFN: columns of the active neurons. */

/* Outputs v below a limit become 0. */
static void drop_outputs(float limit, float *v) {
    for (uint32_t i = 0; limit > 0.0f && i < SF_DIM; i++) {
        v[i] = reaches(v[i], limit) ? v[i] : 0.0f;
    }
}

/* x += down times h, which gate holds; the lists have the active neurons. */
static void down(uint32_t l, const float *vec) {
    const sf_part *part = &sf_parts[l * SF_LAYER_PARTS];
    const vectors h = {gate[0], SF_FFN}, out = {y[0], SF_WIDEST};
    (void)vec;
    observe(l, SF_SITE_H, h, SF_FFN);
    for (uint32_t t = 0; t < tokens(); t++) {
        sf_count_neurons(neurons[t].n);
    }
    quantize(h, SF_FFN);
    columns(part + SF_PART_DOWN, part + SF_PART_DOWN_SCALES, together(neurons), SF_DIM, out);
    for (uint32_t t = 0; t < tokens(); t++) {
        drop_outputs(sf_threshold[l][SF_T_DOWN], y[t]);
    }
    observe(l, SF_SITE_FFN_OUT, out, SF_DIM);
    for (uint32_t t = 0; t < tokens(); t++) {
        sf_add(x[t], y[t], SF_DIM);
    }
}

/* The FFN: rows and columns of the active neurons alone. */

/* Which neurons the product of gate and up keeps. */

/* mask() of all neurons without limits of their own. */
static list mask_all(uint32_t t, const float *limit) {
    list kept = first(SF_FFN);
    if (limit[SF_T_UP] > 0.0f) {
        kept = (list){active[t], sf_keep_reaching(up[t], SF_FFN, limit[SF_T_UP], active[t])};
    }
    sf_multiply(gate[t], up[t], SF_FFN);
    if (limit[SF_T_H] > 0.0f) { /* leaves out those whose up was dropped, too */
        kept = (list){active[t], sf_keep_reaching(gate[t], SF_FFN, limit[SF_T_H], active[t])};
    }
    return kept;
}

/* h [SF_FFN] = product for the neurons of a list, zero for the others. */
static list only_of(list kept, const float *product, float *h) {
    memset(h, 0, SF_FFN * sizeof h[0]);
    for (uint32_t k = 0; k < kept.n; k++) {
        h[kept.idx[k]] = product[kept.idx[k]];
    }
    return kept;
}

/* gate [SF_FFN] of token t becomes h, zero where the mask drops it, and lists the neurons that it
 * keeps; takes up. own: limits of h of each neuron, if there are some. */
static list mask(uint32_t t, const float *limit, sf_limits own) {
    float *const h = gate[t], *const product = up[t];
    const list from = neurons[t];
    uint32_t kept = 0;
    if (from.idx == NULL && own.code == NULL) {
        return mask_all(t, limit);
    }
    if (own.code == NULL && limit[SF_T_UP] <= 0.0f && limit[SF_T_H] <= 0.0f) {
        for (uint32_t k = 0; k < from.n; k++) {
            product[from.idx[k]] *= h[from.idx[k]];
        }
        return only_of(from, product, h);
    }
    /* No branches: which neurons are kept cannot be foretold. */
    for (uint32_t k = 0; k < from.n; k++) {
        const uint32_t i = from.idx ? from.idx[k] : k;
        const bool large_up = reaches(product[i], limit[SF_T_UP]);
        product[i] *= h[i];
        active[t][kept] = (uint16_t)i;
        const bool large_h = reaches(product[i], limit[SF_T_H]);
        const bool own_large = own.code == NULL || sf_reaches(product[i], own, i);
        kept += large_up & large_h & own_large;
    }
    return only_of((list){active[t], kept}, product, h);
}
/* x += FFN of x. */
static void ffn(uint32_t l, const float *vec) {
    const sf_part *part = &sf_parts[l * SF_LAYER_PARTS];
    const float *limit = sf_threshold[l];
    const whole_ffn all = whole(limit);
    const vectors in = {y[0], SF_WIDEST}, gates = {gate[0], SF_FFN}, ups = {up[0], SF_FFN};
    norm_all(vec + SF_V_FFN_NORM);
    observe(l, SF_SITE_FFN_IN, in, SF_DIM);
    prefetch(l);
    for (uint32_t t = 0; t < tokens() && (all.gate || SF_SPECULATES); t++) {
        neurons[t] = first(SF_FFN);
    }
    project(part + SF_PART_GATE, in, SF_GATE_INPUTS, together(neurons), gates);
    if (limit[SF_T_GATE] > 0.0f) {
        keep_reaching(gate, limit[SF_T_GATE]);
    }
    for (uint32_t t = 0; t < tokens(); t++) {
        sf_silu(gate[t], SF_FFN, gate[t]);
    }
    if (limit[SF_T_ACT] > 0.0f) {
        keep_reaching(gate, limit[SF_T_ACT]);
    }
    rows(part + SF_PART_UP, together(neurons), ups); /* act still holds y */
    for (uint32_t t = 0; t < tokens(); t++) {
        if (all.h) {
            sf_multiply(gate[t], up[t], SF_FFN);
        } else {
            neurons[t] = mask(t, limit, (sf_limits){0, NULL});
        }
    }
    down(l, vec);
}

/* The head: out = logits of n of the block's tokens. */
static void head(const float *norm, uint32_t from, uint32_t n, float *out) {
    for (uint32_t t = 0; t < n; t++) {
        normed(x[from + t], norm, y[t]);
    }
    token_count = n;
    quantize((vectors){y[0], SF_WIDEST}, SF_DIM);
    const vectors each = {out, SF_VOCAB};
    rows(&sf_parts[SF_PART_WHOLE_HEAD], first(SF_VOCAB), each);
}

/* x = the embedding of a token. */
static void embed(uint32_t token, uint32_t t) {
    float *const out = x[t];
    sf_row_q8(sf_flash_row(&sf_parts[SF_PART_EMBED], token), SF_DIM, out);
}

/* One layer: attention and FFN each add to x. */
static void layer(uint32_t l, const float *vec) {
    const uint64_t t0 = sf_port_ticks();
    attention(l, vec);
    const uint64_t t1 = sf_port_ticks();
    ffn(l, vec);
    observe(l, SF_SITE_RESIDUAL, (vectors){x[0], SF_DIM}, SF_DIM);
    const uint64_t t2 = sf_port_ticks();
    sf_count_time(t1 - t0, t2 - t1, 0);
    sf_event(SF_LANE_COMPUTE, "attention", l, t0, t1);
    sf_event(SF_LANE_COMPUTE, "FFN", l, t1, t2);
}

void sf_rewind(uint32_t to) {
    position = to < position ? to : position;
    for (uint32_t l = 0; l < SF_LAYERS; l++) {
        for (uint32_t h = 0; h < SF_KV_HEADS; h++) {
            exponents least = {INT8_MAX, INT8_MAX};
            for (uint32_t p = 0; p < position; p++) {
                least = least_with(least, l, h, p);
            }
            k_least[l][h] = least.k;
            v_least[l][h] = least.v;
        }
    }
}

/* Runs n tokens, which fit the block and the cache, at the next positions. */
static int run(const uint32_t *token, uint32_t n, bool want_logits) {
    const uint64_t start = sf_port_ticks();
    sf_flash_token(want_logits);
    const float *vec = (const float *)(const void *)sf_flash_map(SF_VECTORS_AT, 4u);
    token_count = n;
    for (uint32_t t = 0; t < n; t++) {
        act[t].q = act_q[t];
        act[t].sum = act_sum[t];
        act[t].k = act_k[t];
        embed(token[t], t);
    }
    for (uint32_t l = 0; l < SF_LAYERS; l++) {
        layer(l, vec + l * SF_V_LAYER);
    }
    if (want_logits) {
        const uint64_t t0 = sf_port_ticks();
        const float *norm = vec + SF_LAYERS * SF_V_LAYER;
        head(norm, n - 1u, 1, logits);
        const uint64_t t1 = sf_port_ticks();
        sf_count_time(0, 0, t1 - t0);
        sf_event(SF_LANE_COMPUTE, "head", 0, t0, t1);
    }
    const int code = sf_flash_error();
    if (code != SF_OK) {
        sf_rewind(position); /* which stays, so the same tokens can be tried again */
        return code;
    }
    position += n;
    sf_count_tokens(n, sf_port_ticks() - start);
    return SF_OK;
}

int sf_prefill(const uint32_t *token, uint32_t count, bool want_logits) {
    for (uint32_t from = 0, n; from < count; from += n) {
        for (n = 0; n < SF_BLOCK && n < count - from; n++) {
            if (token[from + n] >= SF_VOCAB || position + n >= SF_KV_LEN) {
                break;
            }
        }
        if (n == 0) {
            return token[from] >= SF_VOCAB ? SF_ERR_TOKEN : SF_ERR_CONTEXT;
        }
        const int code = run(token + from, n, want_logits && from + n == count);
        if (code != SF_OK) {
            return code;
        }
    }
    return SF_OK;
}

int sf_step(uint32_t token, bool want_logits) {
    return sf_prefill(&token, 1, want_logits);
}

void sf_reset(void) {
    position = 0;
}

int sf_greedy(uint32_t token, uint32_t most, uint32_t *next, uint32_t *count) {
    (void)most;
    const int code = sf_step(token, true);
    *count = code == SF_OK;
    next[0] = code == SF_OK ? sf_largest() : 0;
    return code;
}

/* Kept state: what the cache holds of a position, in bytes. */

/* Copies bytes of position p from `at` on, to `out` or, to write them, from `in`: of each layer k,
 * v, and their exponents. */
static void copy_state(uint32_t p, uint32_t at, uint32_t n, bool write, uint8_t *out,
                       const uint8_t *in) {
    for (uint32_t done = 0, some; done < n; done += some) {
        const uint32_t l = (at + done) / SF_LAYER_STATE;
        uint32_t i = (at + done) % SF_LAYER_STATE, width = SF_KV_DIM;
        int8_t *from = k_cache[l][p];
        if (i >= 2u * SF_KV_DIM) {
            i -= 2u * SF_KV_DIM;
            width = SF_KV_HEADS;
            from = i < width ? k_exp[l][p] : v_exp[l][p];
        } else if (i >= width) {
            from = v_cache[l][p];
        }
        i -= i >= width ? width : 0;
        some = width - i < n - done ? width - i : n - done;
        if (write) {
            memcpy(from + i, in + done, some);
        } else {
            memcpy(out + done, from + i, some);
        }
    }
}

int sf_state_read(uint32_t p, uint32_t at, uint32_t n, uint8_t *out) {
    if (p >= position || at > SF_STATE || n > SF_STATE - at) {
        return SF_ERR_ARG;
    }
    copy_state(p, at, n, false, out, NULL);
    return SF_OK;
}

int sf_state_write(uint32_t at, uint32_t n, const uint8_t *in) {
    if (position >= SF_KV_LEN) {
        return SF_ERR_CONTEXT;
    }
    if (at > SF_STATE || n > SF_STATE - at) {
        return SF_ERR_ARG;
    }
    copy_state(position, at, n, true, NULL, in);
    return SF_OK;
}

int sf_state_keep(uint32_t token) {
    if (token >= SF_VOCAB || position >= SF_KV_LEN) {
        return token >= SF_VOCAB ? SF_ERR_TOKEN : SF_ERR_CONTEXT;
    }
    /* Kernels count on what attention writes. */
    bool good = true;
    for (uint32_t l = 0; l < SF_LAYERS; l++) {
        for (uint32_t i = 0; i < SF_KV_DIM; i++) {
            good &= k_cache[l][position][i] != INT8_MIN && v_cache[l][position][i] != INT8_MIN;
        }
        for (uint32_t h = 0; h < SF_KV_HEADS; h++) {
            const int8_t k = k_exp[l][position][h], v = v_exp[l][position][h];
            good &= k >= -40 && k <= 60 && v >= -40 && v <= 60;
        }
    }
    if (!good) {
        return SF_ERR_ARG;
    }
    position++;
    sf_rewind(position);
    return SF_OK;
}

uint32_t sf_position(void) {
    return position;
}

const float *sf_logits(void) {
    return logits;
}

int sf_block_logits(float *out) {
    sf_flash_token(true);
    const float *vec = (const float *)(const void *)sf_flash_map(SF_VECTORS_AT, 4u);
    const float *norm = vec + SF_LAYERS * SF_V_LAYER;
    head(norm, 0, tokens(), out);
    return sf_flash_error();
}
