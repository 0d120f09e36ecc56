"""The architecture of a model, as one frozen value, and the model in memory.

Every loader produces a :class:`Model`; every later stage reads only that.
Names follow Hugging Face: ``gate_proj``, ``up_proj``, ``down_proj``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Protocol, Self

import numpy as np


class Activation(StrEnum):
    SILU = "silu"
    GELU_TANH = "gelu_tanh"
    GELU = "gelu"
    RELU = "relu"


class Norm(StrEnum):
    RMS = "rms"
    LAYER = "layer"


class Position(StrEnum):
    ROPE = "rope"
    LEARNED = "learned"


@dataclass(frozen=True)
class LayerSpec:
    """What differs between layers."""

    window: int = 0
    """Sliding window in positions; 0 attends to the whole past."""
    rope_theta: float = 10000.0
    rope_scale: float = 1.0
    """Linear position scaling: angle = position / rope_scale * frequency."""
    rope_factors: tuple[float, ...] = ()
    """A divisor more for the frequency of each turning pair (Llama 3, YaRN); empty for none."""
    rope_dims: int = -1
    """Dimensions of a head that RoPE turns: -1 all, 0 none (SmolLM3's layers without RoPE).

    Pairs 0 to rope_dims/2 turn; loaders order the rows of q and k so (``rows.partial_index``).
    """

    def __post_init__(self) -> None:
        # JSON brings lists, and specs are keys of dictionaries.
        object.__setattr__(self, "rope_factors", tuple(self.rope_factors))

    def turning(self, head_dim: int) -> int:
        """Dimensions of a head that turn."""
        return head_dim if self.rope_dims < 0 else self.rope_dims


@dataclass(frozen=True)
class ModelSpec:
    """Architecture. Shapes in comments are (out, in) as Hugging Face stores them."""

    family: str
    vocab: int
    dim: int
    ffn_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    context: int
    """Longest sequence the model was trained for, in tokens."""
    layers: tuple[LayerSpec, ...]
    activation: Activation = Activation.SILU
    gated: bool = True
    """True: down(act(gate(x)) * up(x)); False: down(act(up(x)))."""
    norm: Norm = Norm.RMS
    norm_eps: float = 1e-5
    position: Position = Position.ROPE
    position_offset: int = 0
    """Added to the position before the learned table is read (OPT: 2)."""
    qk_norm: bool = False
    """RMSNorm on every q and k head before RoPE (Qwen3, Gemma 3)."""
    qk_norm_whole: bool = False
    """That norm goes over all heads of q, and of k, together (OLMo 2)."""
    pre_norms: bool = True
    """Norms before attention and before the FFN; OLMo 2 has none."""
    sandwich_norms: bool = False
    """Norms after attention and after the FFN, before the residual add (Gemma 3)."""
    parallel: bool = False
    """Attention and FFN read the same residual and add to it together (GPT-NeoX, Phi-2)."""
    attn_bias: bool = False
    """Bias on q, k, v (Qwen2)."""
    out_bias: bool = False
    """Bias on o."""
    ffn_bias: bool = False
    """Bias on every matrix of the FFN."""
    head_bias: bool = False
    """Bias on the logits (Phi)."""
    embed_scale: float = 1.0
    """Embedding rows are multiplied by this (Gemma: sqrt(dim))."""
    attn_scale: float = 0.0
    """Scores are multiplied by this; 0 means 1/sqrt(head_dim)."""
    gate_inputs: int = 0
    """gate sees only the first so many FFN inputs and up only the others; 0: both see all."""
    act_threshold: float = 0.0
    """The model was trained so that a neuron counts only where abs(act(gate)) reaches this."""
    active_share: float = 1.0
    """Of the neurons, a token, in a model with experts or its own thresholds; plans expect it."""
    own_thresholds: bool = False
    """The model was trained with thresholds of its own: every layer has ``thresholds``."""
    experts: int = 0
    """The FFN's neurons are those of so many experts, one after the other; 0: there are none."""
    experts_used: int = 0
    """Experts that a token uses: those with the largest outputs of the router."""
    experts_normed: bool = True
    """The router's softmax is over the chosen experts, else over all."""
    tied_head: bool = True
    bos_id: int = -1
    eos_ids: tuple[int, ...] = ()
    """Ids that end a generation."""
    chat_template: str = ""

    @classmethod
    def of_plain(cls, d: dict[str, Any]) -> ModelSpec:
        """From what ``asdict`` made and JSON kept."""
        d = dict(d)
        d["layers"] = tuple(LayerSpec(**x) for x in d["layers"])
        d["eos_ids"] = tuple(d["eos_ids"])
        d["activation"] = Activation(d["activation"])
        d["norm"] = Norm(d["norm"])
        d["position"] = Position(d["position"])
        return cls(**d)

    @property
    def trained_mask(self) -> bool:
        """The model drops neurons by itself."""
        return self.own_thresholds or self.act_threshold > 0

    @property
    def q_dim(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def gate_width(self) -> int:
        """Inputs of gate."""
        return self.gate_inputs or self.dim

    @property
    def up_width(self) -> int:
        """Inputs of up, the last of the FFN's."""
        return self.dim - self.gate_inputs

    @property
    def score_scale(self) -> float:
        return self.attn_scale or self.head_dim**-0.5


@dataclass(frozen=True)
class _Grid:
    """A matrix of integers ``q`` (out, in); every field has a row for each output."""

    q: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.q.shape[0]), int(self.q.shape[1]))

    def rows(self, index: np.ndarray) -> Self:
        """The rows ``index``, in that order (used to undo RoPE permutations)."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True)
class Q4Blocks(_Grid):
    """A matrix whose groups of 32 along ``in`` are already affine 4-bit: w = d*q + m.

    ``q`` uint8 (out, in) in 0..15; ``d``, ``m`` float16 (out, in/32).
    GGUF Q4_1 and Q4_0 arrive so, bit for bit.
    """

    d: np.ndarray
    m: np.ndarray

    def float32(self) -> np.ndarray:
        out, cols = self.shape
        q = self.q.reshape(out, cols // 32, 32).astype(np.float32)
        w = self.d.astype(np.float32)[:, :, None] * q + self.m.astype(np.float32)[:, :, None]
        return np.ascontiguousarray(w.reshape(out, cols))


@dataclass(frozen=True)
class Q8Blocks(_Grid):
    """A matrix in symmetric 8-bit groups of 32 along ``in``: w = d*q (GGUF Q8_0).

    ``q`` int8 (out, in); ``d`` float16 (out, in/32).
    """

    d: np.ndarray

    def float32(self) -> np.ndarray:
        out, cols = self.shape
        q = self.q.reshape(out, cols // 32, 32).astype(np.float32)
        return np.ascontiguousarray((self.d.astype(np.float32)[:, :, None] * q).reshape(out, cols))


@dataclass(frozen=True)
class R8Blocks(_Grid):
    """A matrix in symmetric 8-bit rows: w = d*q, one d for each output.

    ``q`` int8 (out, in); ``d`` float32 (out,).
    """

    d: np.ndarray

    def float32(self) -> np.ndarray:
        return np.ascontiguousarray(self.d[:, None] * self.q.astype(np.float32))


@dataclass(frozen=True)
class S4Blocks(_Grid):
    """A matrix in symmetric 4-bit groups of 32 along ``in``: w = d*q.

    ``q`` int8 (out, in) in -8..7; ``d`` float16 (out, in/32).
    """

    d: np.ndarray

    def float32(self) -> np.ndarray:
        out, cols = self.shape
        q = self.q.reshape(out, cols // 32, 32).astype(np.float32)
        return np.ascontiguousarray((self.d.astype(np.float32)[:, :, None] * q).reshape(out, cols))


@dataclass(frozen=True)
class S4Columns:
    """A matrix in symmetric 4-bit groups of 32 along ``out``, so that a column holds its scales.

    ``q`` int8 (out, in) in -8..7; ``d`` float16 (out/32, in).
    """

    q: np.ndarray
    d: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.q.shape[0]), int(self.q.shape[1]))

    def rows(self, index: np.ndarray) -> S4Columns:
        raise TypeError("groups of 32 outputs share a scale, so outputs cannot move")

    def float32(self) -> np.ndarray:
        return np.ascontiguousarray(
            self.q.astype(np.float32) * self.d.astype(np.float32).repeat(32, 0)[: len(self.q)]
        )


Matrix = np.ndarray | Q4Blocks | Q8Blocks | R8Blocks | S4Blocks | S4Columns
"""float32 (out, in), or blocks that are already on a grid the pack keeps."""


def as_float32(matrix: Matrix) -> np.ndarray:
    """The matrix dequantised, float32 (out, in)."""
    return matrix if isinstance(matrix, np.ndarray) else matrix.float32()


@dataclass(frozen=True)
class Thresholds:
    """What the FFN of one layer drops: an entry v stays where abs(v) >= its threshold.

    float32; ``x`` (dim,) before gate, ``act`` (ffn_dim,) on act(gate), ``h`` (ffn_dim,) on the
    product that enters down. 0 keeps everything.
    """

    x: np.ndarray
    act: np.ndarray
    h: np.ndarray


@dataclass
class Layer:
    """One decoder layer. Vectors are float32; optional ones are None when absent.

    RoPE convention is Hugging Face's half-split: loaders of interleaved formats
    (llama2.c, GGUF ``llama``) permute the rows of q and k.
    """

    attn_norm: np.ndarray | None  # (dim,)
    q_proj: Matrix  # (q_dim, dim)
    k_proj: Matrix  # (kv_dim, dim)
    v_proj: Matrix  # (kv_dim, dim)
    o_proj: Matrix  # (dim, q_dim)
    ffn_norm: np.ndarray | None  # (dim,)
    up_proj: Matrix  # (ffn_dim, dim)
    down_proj: Matrix  # (dim, ffn_dim)
    gate_proj: Matrix | None = None  # (ffn_dim, dim)
    router: Matrix | None = None  # (experts, dim)
    q_norm: np.ndarray | None = None  # (head_dim,), or (q_dim,) over all heads
    k_norm: np.ndarray | None = None  # (head_dim,), or (kv_dim,)
    post_attn_norm: np.ndarray | None = None  # (dim,)
    post_ffn_norm: np.ndarray | None = None  # (dim,)
    q_bias: np.ndarray | None = None
    k_bias: np.ndarray | None = None
    v_bias: np.ndarray | None = None
    o_bias: np.ndarray | None = None
    gate_bias: np.ndarray | None = None
    up_bias: np.ndarray | None = None
    down_bias: np.ndarray | None = None
    attn_norm_bias: np.ndarray | None = None
    ffn_norm_bias: np.ndarray | None = None
    thresholds: Thresholds | None = None


class Words(Protocol):
    """What the stages ask of a model's tokenizer (``tokenizer.Tokenizer``)."""

    special: dict[str, int]
    bos_id: int
    eos_id: int

    @property
    def vocab_size(self) -> int: ...

    @property
    def used_size(self) -> int: ...

    def token_bytes(self, token: int) -> bytes: ...

    def encode(self, text: str, bos: bool = False) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def chat(
        self,
        messages: list[dict[str, Any]],
        raw: bool = False,
        warn: Callable[[str], None] | None = None,
    ) -> list[int]: ...

    def kept(self) -> str: ...


@dataclass
class Model:
    """A model in memory.

    Norm weights are the factor applied: Gemma's ``1 + w`` is folded by the loader.
    """

    spec: ModelSpec
    embed: Matrix  # (vocab, dim)
    layers: list[Layer]
    final_norm: np.ndarray  # (dim,)
    head: Matrix | None = None  # (vocab, dim); None when tied
    final_norm_bias: np.ndarray | None = None
    head_bias: np.ndarray | None = None  # (vocab,), of Phi-2
    positions: np.ndarray | None = None  # (context + offset, dim), learned
    tokenizer: Words | None = None
    name: str = ""
    source: dict[str, str] = field(default_factory=dict)
    """Where the weights come from: ``kind``, ``file``, ``sha256``."""
