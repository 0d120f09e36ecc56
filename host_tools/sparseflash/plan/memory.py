"""Arrays of the forward pass: each size is said here once.

The plan sums them, ``sf_model.h`` defines the sizes, ``sf_model.c`` declares the arrays from them
and asserts that the compiler counts the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from sparseflash.image.formats import SITES, THRESHOLDS
from sparseflash.model.spec import ModelSpec

BYTES = {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "uint16_t": 2, "int32_t": 4, "uint32_t": 4}
BYTES |= {"float": 4, "int64_t": 8}
"""Of the C types."""
PART_BYTES = 28
"""Of the C struct of a part."""


@dataclass(frozen=True)
class Size:
    """A constant of the generated C."""

    name: str
    value: int
    note: str = ""


@dataclass(frozen=True)
class Array:
    """A static array of the generated C; one that would be empty is left out."""

    name: str
    type: str
    shape: tuple[str, ...]
    """Names of sizes."""
    line: str
    """Of the memory table."""
    note: str = ""
    words: bool = False
    """Begins at a multiple of 8 bytes, for kernels that load words."""
    given: bool = False
    """Has values, so that it is declared with them."""


def sizes_of(
    s: ModelSpec,
    kv_len: int,
    outputs: int = 0,
    block_outputs: int = 0,
    rank: int = 0,
    most_rank: int = 0,
    signs: bool = False,
    predicts: bool = False,
    input_columns: bool = False,
    scored: bool = False,
    head_rows: int = 0,
    block: int = 1,
    workers: int = 1,
    draft: int = 0,
) -> list[Size]:
    """The shapes of a model's forward pass.

    outputs: the most outputs of a matrix by columns, block_outputs of one whose columns share
    scales by blocks; rank, most_rank: of the predictor, and of it and all factors; input_columns:
    some matrix reads the columns of its active inputs; scored: what is dropped is chosen by top-k
    or with norms of columns; head_rows: rows that a screened head
    computes exactly; block: tokens of a prompt that go through the layers together; workers:
    threads at most; draft: tokens that are drafted at once.
    """
    widest = max(s.dim, s.q_dim)
    longest = max(widest, s.ffn_dim, most_rank)
    groups = longest // 32 + 1
    shared = max(s.ffn_dim, widest) if block > 1 else 0
    return [
        Size("SF_BLOCK", block, "most tokens that go through the layers together"),
        Size("SF_WORKERS", workers, "most threads"),
        Size("SF_VOCAB", s.vocab),
        Size("SF_DIM", s.dim, "of the residual stream"),
        Size("SF_FFN", s.ffn_dim, "neurons of a layer"),
        Size("SF_LAYERS", s.n_layers),
        Size("SF_HEADS", s.n_heads),
        Size("SF_KV_HEADS", s.n_kv_heads),
        Size("SF_HEAD_DIM", s.head_dim),
        Size("SF_Q_DIM", s.q_dim),
        Size("SF_KV_DIM", s.kv_dim),
        Size("SF_QKV", s.q_dim + 2 * s.kv_dim, "q, k and v of a token"),
        Size("SF_KV_LEN", kv_len, "positions that the cache holds"),
        Size("SF_LAYER_STATE", 2 * (s.kv_dim + s.n_kv_heads), "bytes of the cache a position"),
        Size("SF_STATE", 2 * (s.kv_dim + s.n_kv_heads) * s.n_layers, "of all layers"),
        Size("SF_SCORES", 2 * (kv_len + kv_len % 2), "of two heads"),
        Size("SF_HEAD_PAIR", 2 * s.head_dim),
        Size("SF_WIDEST", widest, "input of attention and FFN"),
        Size("SF_LONGEST", longest, "vector that is quantised"),
        Size("SF_BFP_GROUPS", groups, "of that vector"),
        Size("SF_BFP_LENGTH", 32 * groups),
        Size("SF_OUTPUTS", outputs, "most of a matrix by columns"),
        Size("SF_BLOCK_OUTPUTS", block_outputs, "of one with scales for each block of columns"),
        Size(
            "SF_ACTIVE_INPUTS",
            widest if input_columns else 0,
            "most of a matrix by columns that drops some",
        ),
        Size("SF_JUDGED", max(widest, s.ffn_dim) if scored else 0, "scores of an input or of h"),
        Size("SF_SHARED", shared, "neurons or inputs that some token of a block keeps"),
        Size("SF_SHARED_WORDS", (shared + 31) // 32),
        Size("SF_UP", s.ffn_dim if s.gated or predicts else 0, "values of up, or of a predictor"),
        Size("SF_BRANCH", s.dim if s.parallel else 0, "of attention beside the FFN"),
        Size("SF_EXPERTS", s.experts, "of a layer, with as many neurons each"),
        Size("SF_EXPERTS_USED", s.experts_used, "by a token"),
        Size("SF_RANK", rank, "of the predictor"),
        Size("SF_MOST_RANK", most_rank, "of it and of projections in factors"),
        Size("SF_SIGN_WORDS", s.dim // 32 if signs else 0),
        Size("SF_DRAFT", draft, "tokens that are drafted at once"),
        Size("SF_CHOICES", draft + 1 if draft else 0, "tokens after which greedy decoding chooses"),
        Size("SF_HISTORY", kv_len if draft else 0, "tokens of the cache"),
        Size("SF_HEAD_ROWS", head_rows, "that a screened head computes exactly"),
    ]


BRANCH, HEADS, NEURONS = "residual and branch", "q, k, v", "gate, up and mask"
CACHE, ATTENTION, SUMS = "KV cache", "attention scratch", "down sums"
QUANTISED, INPUTS, DRAFTS = "quantised activations", "input masks", "drafts"
OBSERVED = "thresholds, trace and tap"
ARRAYS = (
    Array("x", "float", ("SF_BLOCK", "SF_DIM"), BRANCH, "residual stream"),
    Array(
        "y", "float", ("SF_BLOCK", "SF_WIDEST"), BRANCH, "normed input of a branch, then its output"
    ),
    Array("branch", "float", ("SF_BLOCK", "SF_BRANCH"), BRANCH, "output of attention"),
    Array("qkv", "float", ("SF_BLOCK", "SF_QKV"), HEADS, "q, then k, then v"),
    Array("gate", "float", ("SF_BLOCK", "SF_FFN"), NEURONS, "gate, then act(gate), then h"),
    Array("up", "float", ("SF_BLOCK", "SF_UP"), NEURONS),
    Array("active", "uint16_t", ("SF_BLOCK", "SF_FFN"), NEURONS, "numbers of neurons, ascending"),
    Array("expert", "uint16_t", ("SF_BLOCK", "SF_EXPERTS_USED"), NEURONS, "chosen, ascending"),
    Array("expert_weight", "float", ("SF_BLOCK", "SF_EXPERTS_USED"), NEURONS, "what each counts"),
    Array("logits", "float", ("SF_VOCAB",), "logits"),
    Array("k_cache", "int8_t", ("SF_LAYERS", "SF_KV_LEN", "SF_KV_DIM"), CACHE, words=True),
    Array("v_cache", "int8_t", ("SF_LAYERS", "SF_KV_LEN", "SF_KV_DIM"), CACHE, words=True),
    Array("k_exp", "int8_t", ("SF_LAYERS", "SF_KV_LEN", "SF_KV_HEADS"), CACHE, "exponents"),
    Array("v_exp", "int8_t", ("SF_LAYERS", "SF_KV_LEN", "SF_KV_HEADS"), CACHE),
    Array("k_least", "int8_t", ("SF_LAYERS", "SF_KV_HEADS"), ATTENTION, "least of k_exp so far"),
    Array("v_least", "int8_t", ("SF_LAYERS", "SF_KV_HEADS"), ATTENTION),
    Array("score", "int32_t", ("SF_WORKERS", "SF_SCORES"), ATTENTION, words=True),
    Array("q16", "int16_t", ("SF_WORKERS", "SF_HEAD_PAIR"), ATTENTION, words=True),
    Array("mix", "int32_t", ("SF_WORKERS", "SF_HEAD_PAIR"), ATTENTION),
    Array("angles", "float", ("SF_HEAD_DIM",), ATTENTION, "cosine and sine of each pair"),
    Array("isum", "int32_t", ("SF_BLOCK", "SF_BLOCK_OUTPUTS"), SUMS, "of a block of 32 columns"),
    Array("acc", "int64_t", ("SF_BLOCK", "SF_OUTPUTS"), SUMS, "of all columns"),
    Array("act_q", "int8_t", ("SF_BLOCK", "SF_BFP_LENGTH"), QUANTISED, words=True),
    Array("act_sum", "int32_t", ("SF_BLOCK", "SF_BFP_GROUPS"), QUANTISED),
    Array("act_k", "uint8_t", ("SF_BLOCK", "SF_BFP_GROUPS"), QUANTISED),
    Array(
        "masked", "float", ("SF_BLOCK", "SF_ACTIVE_INPUTS"), INPUTS, "an input, zero where dropped"
    ),
    Array(
        "active_input",
        "uint16_t",
        ("SF_BLOCK", "SF_ACTIVE_INPUTS"),
        INPUTS,
        "numbers of the others, ascending",
    ),
    Array("judged", "float", ("SF_JUDGED",), INPUTS, "scores"),
    Array("shared", "uint16_t", ("SF_SHARED",), NEURONS, "numbers that some token keeps"),
    Array("wanted", "uint32_t", ("SF_BLOCK", "SF_SHARED_WORDS"), NEURONS, "a bit for each of them"),
    Array(
        "z", "float", ("SF_BLOCK", "SF_MOST_RANK"), "products of factors", "B x of a product A B x"
    ),
    Array("sign", "uint32_t", ("SF_BLOCK", "SF_SIGN_WORDS"), "signs", "of y, a bit set below zero"),
    Array("history", "uint32_t", ("SF_HISTORY",), DRAFTS, "the tokens of the cache"),
    Array("best", "float", ("SF_WORKERS", "SF_CHOICES"), DRAFTS, "largest logits"),
    Array("choice", "uint32_t", ("SF_WORKERS", "SF_CHOICES"), DRAFTS, "and their tokens"),
    Array("head_row", "uint16_t", ("SF_HEAD_ROWS",), "exact head rows", "ascending"),
    Array("sf_threshold", "float", ("SF_LAYERS", "SF_THRESHOLDS"), OBSERVED, given=True),
    Array("sf_site_hash", "uint32_t", ("SF_LAYERS", "SF_SITES"), OBSERVED, "of the last token"),
    Array("sf_site_values", "float", ("SF_LONGEST",), OBSERVED, "of the site that is tapped"),
)
FIXED = {"SF_THRESHOLDS": len(THRESHOLDS), "SF_SITES": len(SITES)}
"""Sizes of sf_runtime.h."""


def bytes_of(sizes: list[Size]) -> dict[str, int]:
    """Bytes of each array of :data:`ARRAYS` that is not empty."""
    value = FIXED | {s.name: s.value for s in sizes}
    out = {a.name: BYTES[a.type] * prod(value[n] for n in a.shape) for a in ARRAYS}
    return {name: size for name, size in out.items() if size}


def memory_table(sizes: list[Size]) -> dict[str, int]:
    """SRAM by category, bytes, and its ``total``."""
    size, out = bytes_of(sizes), dict[str, int]()
    for a in ARRAYS:
        if a.name in size:
            out[a.line] = out.get(a.line, 0) + size[a.name]
    return out | {"total": sum(out.values())}


def position_bytes(memory: dict[str, int], kv_len: int) -> int:
    """SRAM of one position: its keys and values, and its scores."""
    return memory["KV cache"] // kv_len + 8


LEAST_POSITIONS = 16
"""Fewer are no conversation."""


def most_positions(memory: dict[str, int], kv_len: int, room: int) -> int:
    """Positions for which ``memory``, that of ``kv_len``, shrinks or grows to ``room`` bytes.

    0 where not even a few fit.
    """
    most = kv_len + (room - memory["total"]) // position_bytes(memory, kv_len)
    return most if most >= LEAST_POSITIONS else 0
