/* An example of generated code. */
#ifndef SF_MODEL_H
#define SF_MODEL_H

#include <stdint.h>

/* clang-format off */
#define SF_BOARD "host"
#define SF_PLAN 0x0000000000000000ull /* begins the digest of plan.json */
#ifdef SF_PLAN_ASKED
_Static_assert(SF_PLAN == SF_PLAN_ASKED, "sf_model.h is of another plan than plan.json");
#endif

/* Sizes, in elements. */
#define SF_BLOCK 64u /* most tokens that go through the layers together */
#define SF_WORKERS 16u /* most threads */
#define SF_VOCAB 160u
#define SF_DIM 64u /* of the residual stream */
#define SF_FFN 172u /* neurons of a layer */
#define SF_LAYERS 2u
#define SF_HEADS 8u
#define SF_KV_HEADS 4u
#define SF_HEAD_DIM 8u
#define SF_Q_DIM 64u
#define SF_KV_DIM 32u
#define SF_QKV 128u /* q, k and v of a token */
#define SF_KV_LEN 32u /* positions that the cache holds */
#define SF_LAYER_STATE 72u /* bytes of the cache a position */
#define SF_STATE 144u /* of all layers */
#define SF_SCORES 64u /* of two heads */
#define SF_HEAD_PAIR 16u
#define SF_WIDEST 64u /* input of attention and FFN */
#define SF_LONGEST 172u /* vector that is quantised */
#define SF_BFP_GROUPS 6u /* of that vector */
#define SF_BFP_LENGTH 192u
#define SF_BLOCK_OUTPUTS 192u /* of one with scales for each block of columns */
#define SF_ACTIVE_INPUTS 64u /* most of a matrix by columns that drops some */
#define SF_SHARED 172u /* neurons or inputs that some token of a block keeps */
#define SF_SHARED_WORDS 6u
#define SF_UP 172u /* values of up, or of a predictor */
#define SF_ARENA_BYTES 277200u /* of all arrays of sf_model.c */

/* Constants of the model. */
#define SF_NORM_EPS 0x1.4f8b580000000p-17f
#define SF_SCORE_SCALE 0x1.0527dc0000000p-1f /* of attention, times log2(e) */
#define SF_ACT_THRESHOLD 0x0.0p+0f /* that a neuron's act must reach; 0: any */
#define SF_OWN_THRESHOLDS 1 /* each layer has vectors of them */
#define SF_TRAINED_MASK 1 /* one of both */
#define SF_GATE_INPUTS 64u /* that gate sees, from the first on */
#define SF_UP_INPUTS 64u /* that up sees, to the last */
#define SF_EMBED_SCALE 0x1.0000000000000p+0f

/* Flash image: offsets and strides in bytes. */
#define SF_IMAGE_BYTES 70272u
#define SF_TOKENS_AT 1472u
#define SF_VECTORS_AT 2176u
#define SF_ROPE_AT 4352u

/* How the rows or columns of a part store their weights. */
enum sf_grid {
    SF_GRID_Q4,
    SF_GRID_Q8,
    SF_GRID_S4,
};

/* Parts of the weights, in order of use: those of layer l from SF_LAYER_PARTS * l on. The scales of
 * a matrix by columns follow it, those of down_proj come before it; B of a product A B comes before
 * A. Parts that a layer does not need have no rows. */
enum sf_part_kind {
    SF_PART_QKV = 0,
    SF_PART_O = 1,
    SF_PART_GATE = 2,
    SF_PART_UP = 3,
    SF_PART_DOWN = 4,
    SF_LAYER_PARTS = 5,
    SF_PART_HEAD = 10,
    SF_PART_EMBED = 11,
    SF_PARTS = 12,
    SF_PART_WHOLE_HEAD = SF_PART_HEAD /* read by a token with logits */
};
#define SF_DOWN_ROWS 0 /* down_proj is by rows, and read whole */
#define SF_GATED 1 /* the FFN has a gate */
#define SF_ROUTES 0 /* a router chooses the experts whose neurons are read */
#define SF_PREDICTS 0 /* a predictor names the active neurons */
#define SF_PROXY_BITS 0u /* of the proxies of gate and up that predict; 0: none */
#define SF_SPECULATES 0 /* it only reads early, and masks look at true values */
/* Vectors of a layer, in floats from its first. */
#define SF_V_ATTN_NORM 0u
#define SF_V_FFN_NORM 64u
#define SF_V_X_THRESHOLD 128u
#define SF_V_ACT_THRESHOLD 145u
#define SF_V_H_THRESHOLD 189u
/* Vectors behind those of the layers, from the final norm. */
#define SF_V_FINAL_NORM 0u
#define SF_V_LAYER 233u
/* clang-format on */

#endif
