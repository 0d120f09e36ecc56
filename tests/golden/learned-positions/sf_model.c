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
    { 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x1.0000000000000p-3f, 0x0.0p+0f, 0x1.0800000000000p+5f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f },
    { 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x1.0000000000000p-3f, 0x0.0p+0f, 0x1.0800000000000p+5f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f, 0x0.0p+0f },
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
static uint16_t shared[SF_SHARED];                                 /* numbers that some token keeps */
static uint32_t wanted[SF_BLOCK][SF_SHARED_WORDS];                 /* a bit for each of them */
static uint32_t sign[SF_BLOCK][SF_SIGN_WORDS];                     /* of y, a bit set below zero */
uint32_t sf_site_hash[SF_LAYERS][SF_SITES];                        /* of the last token */
float sf_site_values[SF_LONGEST];                                  /* of the site that is tapped */
static sf_bfp act[SF_BLOCK];                                       /* what a matrix is multiplied by */
static uint32_t position;                                          /* of the block's first token in the cache */
static uint32_t token_count = 1;                                   /* tokens that go through the layers together */

_Static_assert(sizeof x + sizeof y + sizeof qkv + sizeof gate + sizeof up + sizeof active +
    sizeof logits + sizeof k_cache + sizeof v_cache + sizeof k_exp + sizeof v_exp +
    sizeof k_least + sizeof v_least + sizeof score + sizeof q16 + sizeof mix +
    sizeof angles + sizeof isum + sizeof acc + sizeof act_q + sizeof act_sum +
    sizeof act_k + sizeof shared + sizeof wanted + sizeof sign + sizeof sf_threshold
    + sizeof sf_site_hash + sizeof sf_site_values == SF_ARENA_BYTES,
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

/* out [n] = the entries of v in a list, and zero elsewhere; out may be v. */
static void only(list which, const float *v, uint32_t n, float *out) {
    uint32_t next = 0;
    for (uint32_t k = 0; k < which.n; k++) {
        const uint32_t i = which.idx[k];
        while (next < i) {
            out[next++] = 0.0f;
        }
        out[next] = v[next];
        next++;
    }
    while (next < n) {
        out[next++] = 0.0f;
    }
}

/* What any of the tokens' lists holds. */
static list any_of(const list *of) {
    uint32_t n = 0;
    memset(wanted, 0, sizeof wanted);
    for (uint32_t t = 0; t < tokens(); t++) {
        for (uint32_t k = 0; k < of[t].n; k++) {
            wanted[t][of[t].idx[k] / 32u] |= 1u << of[t].idx[k] % 32u;
        }
    }
    for (uint32_t w = 0; w < SF_SHARED_WORDS; w++) {
        uint32_t m = 0;
        for (uint32_t t = 0; t < tokens(); t++) {
            m |= wanted[t][w];
        }
        for (; m != 0; m &= m - 1u) {
            shared[n++] = (uint16_t)(32u * w + (uint32_t)__builtin_ctz(m));
        }
    }
    return (list){shared, n};
}

/* The same of lists that are all of the first n, or all have indices. */
static inline list together(const list *of) {
    return tokens() == 1u || of[0].idx == NULL ? of[0] : any_of(of);
}

/* Whether token t wants row i of those that some token wants. */
static inline bool wants(uint32_t t, uint32_t i) {
    return tokens() == 1u || (wanted[t][i / 32u] >> i % 32u & 1u) != 0;
}

/* Rows: parts of the weights times the activations of each token, an output a row. */

/* out[r] = row r of n times the activations of token t. */
static void dot(const sf_part *p, const uint8_t *const *row, uint32_t n, uint32_t t, float *out) {
    switch (p->grid) {
    case SF_GRID_Q4: sf_dot_q4(row, n, &act[t], out); break;
    case SF_GRID_Q8: sf_dot_q8(row, n, &act[t], out); break;
    default: sf_dot_signs(row, n, sign[t], SF_SIGN_WORDS, out); break;
    }
}

/* out[0] and out[1] for tokens t and t + 1. */
static inline void dot2(const sf_part *p, const uint8_t *const *row, uint32_t n, uint32_t t,
                        float *const *out) {
    switch (p->grid) {
    case SF_GRID_Q4: sf_dot2_q4(row, n, &act[t], out); break;
    case SF_GRID_Q8: sf_dot2_q8(row, n, &act[t], out); break;
    default:
        dot(p, row, n, t, out[0]);
        dot(p, row, n, t + 1u, out[1]);
        break;
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
    for (; t + 1u < tokens(); t += 2u) {
        float *const two[2] = {of_token(w->out, t) + at, of_token(w->out, t + 1u) + at};
        dot2(w->part, row, n, t, two);
    }
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

/* Threads share the columns of one token: each adds some to sums of its own, which are then joined.
 * They are integers, so any shares give the same bits. */

/* Workers that share columns at most. A block has sums for each of its tokens; one token leaves
 * all but the first to the other workers. */
enum { SHARERS = SF_WORKERS < SF_BLOCK ? SF_WORKERS : SF_BLOCK };
/* Columns of fewer bytes are read before another thread has begun and its sums are joined. */
enum { FEW_BYTES = 16384 };

/* Whether this thread takes n columns of one token by itself. */
static bool alone(const sf_part *p, uint32_t n) {
    return sf_workers() == 1u || n * p->bytes < FEW_BYTES;
}

static uint32_t at_most(uint32_t n, uint32_t limit) {
    return n < limit ? n : limit;
}

/* Workers that share the columns of a token. */
static uint32_t sharers(uint32_t workers) {
    return at_most(workers, SHARERS);
}

/* Numbers from..to, without the last. */
typedef struct {
    uint32_t from, to;
} span;

/* A worker's part of n. The first worker has some of any, those without sums have none. */
static span share(uint32_t n, uint32_t worker, uint32_t workers) {
    const uint32_t of = sharers(workers), to = (n * (worker + 1u) + of - 1u) / of;
    return (span){(n * worker + of - 1u) / of, at_most(to, n)};
}

static bool begun; /* threads have shared columns of this list */

/* A worker's sums begin at zero, and it has the scales of the token's activations beside them.
 * Each grid uses sums of one size, and of the other there may be fewer. */
static void begin_sums(uint32_t worker, uint32_t workers, uint32_t outputs) {
    if (begun || worker == 0 || worker >= sharers(workers)) {
        return;
    }
    memset(acc[worker], 0, at_most(outputs, SF_OUTPUTS) * sizeof acc[0][0]);
    memcpy(act_k[worker], act_k[0], sizeof act_k[0]);
    memcpy(act_sum[worker], act_sum[0], sizeof act_sum[0]);
    memset(isum[worker], 0, at_most(outputs, SF_BLOCK_OUTPUTS) * sizeof isum[0][0]);
}

/* The token's sums of 32 bits += those of the other workers, if they have some, and these begin
 * anew. */
static void join_isum(uint32_t outputs) {
    for (uint32_t worker = 1; begun && worker < sharers(sf_workers()); worker++) {
        for (uint32_t i = 0; i < at_most(outputs, SF_BLOCK_OUTPUTS); i++) {
            isum[0][i] += isum[worker][i];
            isum[worker][i] = 0;
        }
    }
}

/* The same of 64 bits, at the end of a list. */
static void join_acc(uint32_t outputs) {
    for (uint32_t worker = 1; begun && worker < sharers(sf_workers()); worker++) {
        for (uint32_t i = 0; i < outputs; i++) {
            acc[0][i] += acc[worker][i];
        }
    }
    begun = false;
}

/* Pieces that threads work on at once. In mapped flash the scales of all are at hand. */
enum { PIECES = 64 };

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

/* What comes behind a piece: its columns, and the scales of their block. It is asked for in parts
 * while the piece is at work, since processors forget some of what they are asked for at once. */
typedef struct {
    const sf_tile *tile;
    const uint8_t *at, *scales;
    uint32_t bytes, table;       /* left to ask for from there on */
    uint32_t share, table_share; /* of a part */
    uint32_t column, to, size;   /* columns that are asked for one by one, and their bytes */
} asks;

static uint32_t whole_lines(uint32_t bytes) {
    return (bytes + SF_LINE - 1u) / SF_LINE * SF_LINE;
}

/* Of what comes behind piece k, before piece `end`, in so many parts. Where a quarter of the
 * columns are wanted it is all memory between the first and the last: the read-ahead of processors
 * brings the others with them. */
static asks behind(const columns_task *w, uint32_t k, uint32_t end, uint32_t parts) {
    const uint8_t *const *row = w->tile->row;
    asks a = {.tile = w->tile, .at = row[0], .scales = row[0]};
    if (SF_AHEAD == 0u) {
        return a;
    }
    const bool more = PIECES > 1 && k + 1u < end; /* a single piece knows no other */
    const columns_piece *c = &w->piece[k], *next = more ? c + 1 : c;
    const uint32_t limit = PIECES > 1 ? w->piece[end - 1u].to : w->tile->rows;
    const uint32_t to = more ? next->to : at_most(2u * c->to - c->from, limit);
    const uint32_t columns = to - c->to, size = w->part->bytes;
    a.column = a.to = c->to;
    if (more && next->scales != NULL) {
        a.scales = next->scales;
        a.table = w->table;
        a.table_share = whole_lines(a.table / parts + 1u);
    }
    if (columns == 0) {
        return a;
    }
    const uintptr_t first = (uintptr_t)row[c->to], all = (uintptr_t)row[to - 1u] + size - first;
    if (all < 4u * columns * size) {
        a.at = row[c->to] - first % SF_LINE;
        a.bytes = (uint32_t)(all + first % SF_LINE);
        a.share = whole_lines(a.bytes / parts + 1u);
    } else {
        a.to = to;
        a.size = size;
        a.share = columns / parts + 1u;
    }
    return a;
}

/* Asks for a part. */
static void ask(asks *a) {
    const uint32_t table = at_most(a->table_share, a->table), bytes = at_most(a->share, a->bytes);
    const uint32_t columns = at_most(a->share, a->to - a->column);
    sf_ask_for_row(a->scales, table, 0);
    sf_ask_for_row(a->at, bytes, 0);
    sf_ask_for(a->tile, a->column, columns, a->size);
    a->scales += table;
    a->table -= table;
    a->at += bytes;
    a->bytes -= bytes;
    a->column += columns;
}

enum { SLICE = 2 * SF_GROUP }; /* outputs whose sums take their scales between two asks */
enum { WIDE = 1024 };          /* more outputs are summed in stretches, to ask between them */

/* All columns of narrow ones are asked for where a quarter is wanted, since they share lines. */
enum { NARROW = 512 };

/* What is read behind the columns of a task: more of them, or the part that is used next. */
static const uint8_t *read_next(const columns_task *w, const columns_piece *c, uint32_t t,
                                const uint8_t **scales) {
    const sf_part *p = w->part + 1;
    if (w->tile->first + c->to < w->n) {
        return w->tile->row[c->to - 1u] + w->part->stride;
    }
    while (p->tables || p->rows == 0) {
        p++;
    }
    if (p[1].tables || p[-1].tables) {
        *scales = sf_flash_map(p[p[1].tables ? 1 : -1].at, 0);
    }
    return sf_flash_map(p->at, 0) + p->rows * t / sharers(sf_workers()) * p->stride;
}

/* Piece k, if it is a whole block and the tier has a kernel that sums and scales at once, which asks
 * for the next piece meanwhile. */
static bool sum_block(const columns_task *w, uint32_t k, uint32_t to, const int8_t *h, uint32_t t) {
    const columns_piece *c = &w->piece[k], *next = PIECES > 1 && k + 1u < to ? c + 1 : NULL;
    const uint8_t *between[SF_GROUP];
    if (!c->whole || w->part->grid != SF_GRID_Q4 || sf_block_q4 == NULL) {
        return false;
    }
    sf_block b = {.col = w->tile->row + c->from,
                  .h = h,
                  .n = c->to - c->from,
                  .scales = c->scales,
                  .k = act_k[t][c->block],
                  .sum = act_sum[t][c->block],
                  .later_scales = next != NULL && next->scales != NULL ? next->scales : c->scales};
    if (next != NULL) {
        const uint32_t some = next->to - next->from, stride = w->part->stride;
        const uint8_t *const *col = w->tile->row + next->from;
        const uintptr_t apart = (uintptr_t)col[some - 1u] - (uintptr_t)col[0];
        const uint32_t all = (uint32_t)apart / stride + 1u;
        const bool narrow = w->part->bytes < NARROW && all < 4u * some;
        for (uint32_t i = 0; narrow && i < all; i++) {
            between[i] = col[0] + i * stride;
        }
        b.later = narrow ? between : col;
        b.laters = narrow ? all : some;
    } else if (PIECES > 1) {
        const uint8_t *at = read_next(w, c, t, &b.later_scales);
        for (b.laters = 0; b.laters < SF_GROUP; b.laters++) {
            between[b.laters] = at + b.laters * w->part->bytes;
        }
        b.later = between;
    }
    sf_block_q4(&b, w->outputs, acc[t]);
    return true;
}

/* A piece in stretches, with parts of what comes behind it asked for between them. */
static void sum_piece(const columns_task *w, uint32_t k, uint32_t to, const int8_t *h, uint32_t t) {
    const columns_piece *c = &w->piece[k];
    const uint32_t n = c->to - c->from;
    const uint32_t stretch = w->outputs > WIDE ? 2u * SLICE : w->outputs;
    const uint32_t parts = w->outputs / (2u * SLICE) + (w->outputs + SLICE - 1u) / SLICE;
    const uint8_t *col[SF_GROUP];
    asks next = behind(w, k, to, parts);
    memcpy(col, w->tile->row + c->from, n * sizeof col[0]);
    for (uint32_t from = 0, last; from < w->outputs; from = last) {
        last = at_most(from + stretch, w->outputs);
        for (uint32_t j = from; j + 2u * SLICE <= last; j += 2u * SLICE) {
            ask(&next);
        }
        add_columns(w, c->block, col, n, h, t, from, last);
        for (uint32_t j = from; j < last; j += SLICE) {
            ask(&next);
            if (c->ends) {
                end_block(w->part, c, t, j, at_most(j + SLICE, last));
            }
        }
        for (uint32_t r = 0; r < n && last < w->outputs; r++) {
            col[r] += stretch / SF_GROUP * group_bytes(w->part);
        }
    }
}

/* A worker's share of the columns of one token, whole pieces; it adds them to sums of its own. */
static void some_pieces(uint32_t worker, uint32_t workers, const void *task) {
    const columns_task *w = task;
    const span mine = share(w->pieces, worker, workers);
    begin_sums(worker, workers, w->outputs);
    if (mine.from < mine.to) { /* nobody has asked for these */
        const columns_piece *c = &w->piece[mine.from];
        sf_ask_for(w->tile, c->from, c->to - c->from, w->part->bytes);
    }
    for (uint32_t k = mine.from; k < mine.to; k++) {
        const columns_piece *c = &w->piece[k];
        const uint32_t at = w->tile->first + c->from, n = c->to - c->from;
        const uint16_t *const idx = w->idx; /* or it is loaded again after each byte */
        int8_t h[SF_GROUP];
        for (uint32_t r = 0; r < n; r++) {
            h[r] = act_q[0][idx ? idx[at + r] : at + r];
        }
        if (sum_block(w, k, mine.to, h, worker)) {
            continue;
        }
        sum_piece(w, k, mine.to, h, worker);
    }
}

/* The pieces of a task times each token's activations; n columns, the last of them in c. */
static void all_pieces(const columns_task *w, const columns_piece *c, uint32_t n) {
    (void)c; /* not used where sums take no scales */
    if (tokens() > 1u) {
        sf_parallel(some_columns, w);
    } else if (w->pieces == 1u || alone(w->part, n)) {
        some_pieces(0, 1, w);
    } else {
        sf_parallel(some_pieces, w);
        begun = true;
        if (!c->ends) { /* the first worker goes on with the block */
            join_isum(w->outputs);
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
                all_pieces(&task, c, to - task.piece[0].from);
                task.pieces = 0;
            }
        }
    }
    if (s.next < which.n) { /* a failed read may have left a block unfinished */
        memset(isum, 0, sizeof isum);
    }
    join_acc(outputs);
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

/* Lists the neurons of whose gate weights enough have the sign of their input y; takes up. */
static void predict(uint32_t l) {
    const sf_part *part = &sf_parts[l * SF_LAYER_PARTS];
    for (uint32_t t = 0; t < tokens(); t++) {
        for (uint32_t i = 0; i < SF_DIM; i += SF_GROUP) {
            uint32_t word = 0;
            for (uint32_t j = 0; j < SF_GROUP; j++) {
                word |= (uint32_t)(sf_bits(y[t][i + j]) > 0x80000000u) << j; /* below zero */
            }
            sign[t][i / SF_GROUP] = word;
        }
        neurons[t] = first(SF_FFN);
    }
    rows(part + SF_PART_PREDICTOR, first(SF_FFN), (vectors){up[0], SF_FFN});
    keep_reaching(up, sf_threshold[l][SF_T_PREDICTOR]);
}

/* Prefetch: where the parts lie, and which are read before they are asked for. */

/* clang-format off */
const sf_part sf_parts[SF_PARTS] = {
    /* at, stride, bytes, rows, resident rows and where, FFN, scales, threshold of inputs, grid, shift */
    { 37696u, 40u, 40u, 128u, 0u, 0u, false, false, 0, SF_GRID_Q4, 0 }, /* qkv 0 */
    { 42816u, 40u, 40u, 64u, 0u, 0u, false, false, 0, SF_GRID_Q4, 0 }, /* o 0 */
    { 59328u, 8u, 8u, 172u, 0u, 0u, true, false, 0, SF_GRID_SIGNS, 0 }, /* predictor_up 0 */
    { 45376u, 40u, 40u, 172u, 0u, 0u, true, false, 0, SF_GRID_Q4, 0 }, /* up 0 */
    { 57792u, 256u, 256u, 6u, 0u, 0u, true, true, 0, SF_GRID_Q4, 0 }, /* down_scales 0 */
    { 52256u, 32u, 32u, 172u, 0u, 0u, true, false, 0, SF_GRID_Q4, 0 }, /* down 0 */
    { 60736u, 40u, 40u, 128u, 0u, 0u, false, false, 0, SF_GRID_Q4, 0 }, /* qkv 1 */
    { 65856u, 40u, 40u, 64u, 0u, 0u, false, false, 0, SF_GRID_Q4, 0 }, /* o 1 */
    { 82368u, 8u, 8u, 172u, 0u, 0u, true, false, 0, SF_GRID_SIGNS, 0 }, /* predictor_up 1 */
    { 68416u, 40u, 40u, 172u, 0u, 0u, true, false, 0, SF_GRID_Q4, 0 }, /* up 1 */
    { 80832u, 256u, 256u, 6u, 0u, 0u, true, true, 0, SF_GRID_Q4, 0 }, /* down_scales 1 */
    { 75296u, 32u, 32u, 172u, 0u, 0u, true, false, 0, SF_GRID_Q4, 0 }, /* down 1 */
    { 9408u, 68u, 68u, 160u, 0u, 0u, false, false, 0, SF_GRID_Q8, 0 }, /* head 2 */
    { 9408u, 68u, 68u, 160u, 0u, 0u, false, false, 0, SF_GRID_Q8, 0 }, /* embed 2 */
    { 20288u, 68u, 68u, 256u, 0u, 0u, false, false, 0, SF_GRID_Q8, 0 }, /* positions 2 */
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
    case SF_PART_PREDICTOR_UP:
        return limit[SF_T_PREDICTOR] > 0.0f && !all.h; /* else it is not read at all */
    case SF_PART_UP: return all.up;
    case SF_PART_DOWN: return SF_DOWN_ROWS || all.h;
    default: return true;
    }
}

/* Norms. A branch, attention or FFN, takes y and leaves in y what x gains. */

/* out = in normed with weights w, behind which the biases are; in itself without weights. */
static void normed(const float *in, const float *w, float *out) {
    if (w == NULL) {
        memcpy(out, in, SF_DIM * sizeof *in);
        return;
    }
    sf_layernorm(in, w, w + SF_DIM, SF_DIM, SF_NORM_EPS, out);
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
        sf_add(q, vec + SF_V_Q_BIAS, SF_Q_DIM);
        sf_add(k, vec + SF_V_K_BIAS, SF_KV_DIM);
        sf_add(v, vec + SF_V_V_BIAS, SF_KV_DIM);
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
        sf_add(y[t], vec + SF_V_O_BIAS, SF_DIM);
        sf_add(x[t], y[t], SF_DIM);
    }
}

/* The end of the FFN: columns of the active neurons. */

/* v += bias for each token's neurons. */
static void add_biases(float v[][SF_FFN], const float *bias) {
    for (uint32_t t = 0; t < tokens(); t++) {
        for (uint32_t k = 0; k < neurons[t].n; k++) {
            const uint32_t i = neurons[t].idx ? neurons[t].idx[k] : k;
            v[t][i] += bias[i];
        }
    }
}

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
        sf_add(y[t], vec + SF_V_DOWN_BIAS, SF_DIM);
        drop_outputs(sf_threshold[l][SF_T_DOWN], y[t]);
    }
    observe(l, SF_SITE_FFN_OUT, out, SF_DIM);
    for (uint32_t t = 0; t < tokens(); t++) {
        sf_add(x[t], y[t], SF_DIM);
    }
}

/* The FFN without a gate, down(act(up(x))): rows and columns of the active neurons alone. */

/* gate [SF_FFN] holds h, and becomes zero where it is below a limit; the neurons above are kept. */
static void mask(float limit) {
    keep_reaching(gate, limit);
    for (uint32_t t = 0; t < tokens(); t++) {
        only(neurons[t], gate[t], SF_FFN, gate[t]);
    }
}

/* x += FFN of x. */
static void ffn(uint32_t l, const float *vec) {
    const sf_part *part = &sf_parts[l * SF_LAYER_PARTS];
    const float *limit = sf_threshold[l];
    const whole_ffn all = whole(limit);
    const vectors in = {y[0], SF_WIDEST}, h = {gate[0], SF_FFN};
    norm_all(vec + SF_V_FFN_NORM);
    observe(l, SF_SITE_FFN_IN, in, SF_DIM);
    if (!all.up) {
        predict(l);
    }
    for (uint32_t t = 0; t < tokens() && (all.up || SF_SPECULATES); t++) {
        neurons[t] = first(SF_FFN);
    }
    project(part + SF_PART_UP, in, SF_DIM, together(neurons), h);
    add_biases(gate, vec + SF_V_UP_BIAS);
    for (uint32_t t = 0; t < tokens(); t++) {
        sf_relu(gate[t], SF_FFN, gate[t]);
    }
    if (!all.h) {
        mask(limit[SF_T_H]);
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

/* x = the embedding of a token and of its position. */
static void embed(uint32_t token, uint32_t t) {
    float *const out = x[t];
    sf_row_q8(sf_flash_row(&sf_parts[SF_PART_EMBED], token), SF_DIM, out);
    sf_row_q8(sf_flash_row(&sf_parts[SF_PART_POSITIONS], position + t), SF_DIM, y[t]);
    sf_add(out, y[t], SF_DIM);
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
