"""GGUF files, read with the ``gguf`` package.

Q4_0, Q4_1 and Q8_0 tensors keep their integers and scales; everything else the
package knows (F16, F32, BF16, K-quants) is dequantised to float32.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from sparseflash.base.errors import InputError, SparseflashError, UnsupportedError
from sparseflash.base.nibbles import unpack_nibbles
from sparseflash.base.progress import each
from sparseflash.model.checkpoint import parts_of
from sparseflash.model.load.check import check_model
from sparseflash.model.load.rows import (
    files_sha256,
    half_split_index,
    partial_index,
    take_rows,
)
from sparseflash.model.rope import yarn_factors, yarn_gain
from sparseflash.model.spec import (
    Activation,
    Layer,
    LayerSpec,
    Matrix,
    Model,
    ModelSpec,
    Norm,
    Position,
    Q4Blocks,
    Q8Blocks,
)
from sparseflash.model.tokenizer import TURN_ENDS, Tokenizer

FFN = ("gate", "up", "down")
INTERLEAVED = ("llama", "smollm3", "granite", "granitemoe")
"""Architectures whose q and k rows lie in the order of interleaved pairs."""
UNGATED = ("phi2", "gpt2", "gptneox")
LAYERNORM = (*UNGATED, "stablelm")
EXPERTS = {"llama": True, "qwen3moe": True, "granitemoe": True, "olmoe": False}
"""Architectures that can have experts: whether the router's softmax is over the chosen ones."""
ARCHITECTURES = (
    *("llama", "qwen2", "qwen3", "gemma3", "phi3", "smollm3", "granite", "olmo2"),
    *LAYERNORM,
    *("qwen3moe", "olmoe", "granitemoe"),
)
ACTIVATIONS = {"gemma3": Activation.GELU_TANH, "phi2": Activation.GELU_TANH}
ACTIVATIONS |= {"gpt2": Activation.GELU_TANH, "gptneox": Activation.GELU}
"""Those of the models themselves, where it is not SiLU: a GGUF does not say."""


def _matrix(tensor: Any, experts: int = 0) -> Matrix:
    """A tensor as blocks or float32, those of experts one below the other.

    GGUF lists its shape innermost first.
    """
    if list(tensor.shape[2:]) != ([experts] if experts else []) or len(tensor.shape) < 2:
        what = f"the matrices of {experts} experts" if experts else "a matrix"
        raise InputError(f"tensor {tensor.name} is not {what}; convert the model again")
    cols, rows = int(tensor.shape[0]), int(tensor.shape[1]) * max(experts, 1)
    kind = tensor.tensor_type
    raw = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(rows, -1)
    types = gguf.GGMLQuantizationType
    if kind in (types.Q4_0, types.Q4_1):
        size = 18 if kind == types.Q4_0 else 20
        block = raw.reshape(rows, cols // 32, size)
        d = np.ascontiguousarray(block[..., :2]).view(np.float16)[..., 0]
        q = unpack_nibbles(block[..., size - 16 :]).reshape(rows, cols)
        if kind == types.Q4_1:
            m = np.ascontiguousarray(block[..., 2:4]).view(np.float16)[..., 0]
        else:
            with np.errstate(over="ignore"):  # what is not finite is refused with the whole model
                m = (d.astype(np.float32) * np.float32(-8)).astype(np.float16)
        return Q4Blocks(np.ascontiguousarray(q), d, m)
    if kind == types.Q8_0:
        block = raw.reshape(rows, cols // 32, 34)
        d = np.ascontiguousarray(block[..., :2]).view(np.float16)[..., 0]
        q8 = np.ascontiguousarray(block[..., 2:]).view(np.int8).reshape(rows, cols)
        return Q8Blocks(q8, d)
    return _float32(tensor).reshape(rows, cols)


def _side_by_side(matrix: Matrix, experts: int) -> Matrix:
    """Matrices of experts (experts * out, in) as (out, experts * in)."""

    def moved(a: np.ndarray) -> np.ndarray:
        return np.concatenate(list(a.reshape(experts, -1, a.shape[-1])), axis=-1)

    if isinstance(matrix, np.ndarray):
        return moved(matrix)
    return replace(matrix, **{k: moved(a) for k, a in vars(matrix).items()})  # type: ignore[arg-type]


def _float32(tensor: Any) -> np.ndarray:
    """The tensor's values. Raises UnsupportedError for a type the package cannot read."""
    try:
        return np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
    except NotImplementedError as e:
        raise UnsupportedError(
            f"tensor {tensor.name} is {tensor.tensor_type.name}, which is not supported; "
            "convert the model to Q4_1, Q8_0 or F16"
        ) from e


class _Fields:
    """Metadata with defaults; remembers which keys were read.

    Keys of the architecture are named without its prefix: ``.rope.freq_base``.
    """

    def __init__(self, reader: Any, path: Path) -> None:
        self.fields = reader.fields
        self.path = path
        self.arch = ""
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        key = self.arch + key if key.startswith(".") else key
        self.read.add(key)
        f = self.fields.get(key)
        return default if f is None else f.contents()

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            name = self.arch + key if key.startswith(".") else key
            raise InputError(f"{self.path}: metadata {name} is missing; convert the model again")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """Refuses another value of a key than ``allowed`` (and than its absence)."""
        value = self.get(key)
        if value is not None and value not in allowed:
            raise UnsupportedError(
                f"{self.path}: {self.arch}{key} = {value!r} is not supported; only "
                f"{allowed[0]!r} is"
            )

    def per_layer(self, key: str, n: int, default: Any = None) -> int:
        """A number that may be given for each layer, which must then agree."""
        value = self.need(key) if default is None else self.get(key, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise UnsupportedError(
                    f"{self.path}: {self.arch}{key} differs between layers ({value[:4]}...), "
                    "which is not supported"
                )
            value = value[0]
        return int(value)

    def left(self) -> list[str]:
        """Keys of the architecture, and any of RoPE, that nobody has read."""
        return sorted(
            k
            for k in self.fields
            if k not in self.read and (k.startswith(f"{self.arch}.") or ".rope." in k)
        )


def _rope(f: _Fields, tensors: dict[str, Any], dims: int, context: int) -> tuple[LayerSpec, float]:
    """RoPE of the layers that see everything, and the gain of cosine and sine."""
    theta = float(f.get(".rope.freq_base", 10000.0))
    # As llama.cpp: the older key counts where the newer one is absent, and scaling without a
    # type is linear.
    older = float(f.get(".rope.scale_linear", 0.0))
    factor = float(f.get(".rope.scaling.factor", 0.0)) or older
    kind = str(f.get(".rope.scaling.type", "linear"))
    gain = float(f.get(".rope.scaling.attn_factor", 1.0))
    original = int(f.get(".rope.scaling.original_context_length", 0)) or context
    f.get(".rope.scaling.finetuned")  # says where the model comes from
    fast = float(f.get(".rope.scaling.yarn_beta_fast", 32.0))
    slow = float(f.get(".rope.scaling.yarn_beta_slow", 1.0))
    f.only(".rope.scaling.yarn_ext_factor", 1.0)
    f.only(".rope.scaling.yarn_attn_factor", 1.0)
    scale: float = 1.0
    factors: tuple[float, ...] = ()
    if "rope_freqs.weight" in tensors:
        factors = tuple(float(v) for v in _float32(tensors["rope_freqs.weight"]).reshape(-1))
    elif "rope_factors_short.weight" in tensors:
        factors = tuple(float(v) for v in _float32(tensors["rope_factors_short.weight"]).ravel())
    if factors and len(factors) != dims // 2:
        raise InputError(f"{f.path}: {len(factors)} RoPE factors for {dims // 2} pairs")
    if kind == "linear":
        scale = factor or 1.0
    elif kind == "yarn":
        if factors or factor <= 0:
            raise UnsupportedError(f"{f.path}: YaRN needs a factor and takes no RoPE table")
        factors = yarn_factors(theta, dims, factor, original, fast, slow)
        gain *= yarn_gain(factor)
    elif kind not in ("none", "longrope"):
        raise UnsupportedError(
            f"{f.path}: RoPE scaling {kind!r} is not supported; known are linear, yarn and longrope"
        )
    return LayerSpec(rope_theta=theta, rope_scale=scale, rope_factors=factors), gain


def _layer_specs(f: _Fields, rope: LayerSpec, n: int) -> tuple[LayerSpec, ...]:
    window = int(f.get(".attention.sliding_window", 0) or 0)
    if f.arch == "smollm3":  # every fourth layer without RoPE
        return tuple(replace(rope, rope_dims=0) if i % 4 == 3 else rope for i in range(n))
    if f.arch != "gemma3":
        return tuple(replace(rope, window=window) for _ in range(n))
    local = LayerSpec(window, float(f.get(".rope.freq_base_swa", 10000.0)))
    f.only(".rope.scaling_swa.type", "none")
    pattern = f.get(".attention.sliding_window_pattern", 6)
    if isinstance(pattern, list) and len(pattern) != n:
        raise InputError(f"{f.path}: {len(pattern)} entries of the window pattern for {n} layers")
    # Gemma 3: five local layers with theta 10,000 for each global one.
    local_layers = (
        [bool(v) for v in pattern]
        if isinstance(pattern, list)
        else [i % int(pattern) != int(pattern) - 1 for i in range(n)]
    )
    return tuple(local if is_local else rope for is_local in local_layers)


def load_gguf(path: Path) -> Model:
    """Reads a GGUF model of the families in ``ARCHITECTURES``; of a split one, give any part.

    Raises:
        InputError: damaged or truncated. UnsupportedError: another architecture, or a key of
            the architecture or of RoPE that nothing here reads.
    """
    try:
        return _load(path)
    except SparseflashError as e:
        # Helpers know the tensor but not the file.
        if str(path) in str(e):
            raise
        raise type(e)(f"{path}: {e}") from e
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as e:
        why = " ".join(str(e).split()) or type(e).__name__
        raise InputError(f"{path}: damaged metadata or tensors ({why}); download it again") from e


def _open(path: Path) -> Any:
    try:
        return gguf.GGUFReader(path)
    except Exception as e:
        raise InputError(
            f"{path}: not a whole GGUF file ({type(e).__name__}); download it again"
        ) from e


def _readers(path: Path) -> tuple[list[Path], list[Any]]:
    """The files of the model and their readers; the first one has the metadata."""
    paths = parts_of(path)
    readers = [_open(p) for p in paths]

    def said(reader: Any, key: str, default: int) -> int:
        field = reader.fields.get(key)
        return default if field is None else int(field.contents())

    count = said(readers[0], "split.count", 1) or 1
    numbers = [said(r, "split.no", 0) for r in readers]
    if count != len(paths) or (count > 1 and numbers != list(range(count))):
        raise InputError(
            f"{path}: it is part {numbers[0] + 1} of a GGUF split into {count}; give "
            f"...-00001-of-{count:05d}.gguf with all the others beside it"
        )
    found = sum(len(r.tensors) for r in readers)
    if said(readers[0], "split.tensors.count", found) != found:
        raise InputError(f"{path}: its parts hold {found} tensors, not what they say; fetch again")
    return paths, readers


def _tensors(paths: list[Path], readers: list[Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for path, reader in zip(paths, readers):
        size = path.stat().st_size
        for t in reader.tensors:
            if int(t.data_offset) + int(t.n_bytes) > size:
                raise InputError(f"{path}: truncated in tensor {t.name}; download it again")
            if t.name in out:
                raise InputError(f"{path}: tensor {t.name} comes twice; convert the model again")
            out[t.name] = t
    return out


def outline(path: Path) -> tuple[int, int, bool, dict[str, int]]:
    """Weights, context, whether there is a tokenizer, and weights by tensor type of a file.

    Raises:
        InputError: damaged, or a part of a split model without the others.
    """
    _, readers = _readers(path)
    f = _Fields(readers[0], path)
    f.arch = str(f.need("general.architecture"))
    kinds: dict[str, int] = {}
    for t in (t for r in readers for t in r.tensors):
        kinds[t.tensor_type.name] = kinds.get(t.tensor_type.name, 0) + int(t.n_elements)
    if not kinds:
        raise InputError(f"{path}: it holds no tensors; give the model's own file")
    context = int(f.get(".context_length", 2048))
    tokens = "tokenizer.ggml.tokens" in f.fields
    return sum(kinds.values()), context, tokens, kinds


def _ends(f: _Fields, tokens: list[str]) -> tuple[int, ...]:
    """Ids that end an answer: the stated ones and the known ends of a turn."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ends = {int(f.get(f"tokenizer.ggml.{k}", -1)) for k in keys}
    ends |= {tokens.index(t) for t in TURN_ENDS if t in tokens}
    # A stated end that is really a turn's start would end every answer at once.
    ends -= {tokens.index(t) for t in ("<|im_start|>",) if t in tokens} | {-1}
    return tuple(sorted(ends))


def _load(path: Path) -> Model:
    paths, readers = _readers(path)
    f = _Fields(readers[0], path)
    kind = str(f.get("general.type", "model"))
    if kind != "model":
        raise UnsupportedError(f"{path}: it holds a {kind}, not a model; give the model's own file")
    f.arch = arch = str(f.need("general.architecture"))
    if arch not in ARCHITECTURES:
        raise UnsupportedError(
            f"{path}: architecture {arch!r} is not supported; known are {', '.join(ARCHITECTURES)}"
        )
    tensors = _tensors(paths, readers)
    used = {"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"}

    def get(name: str) -> Any:
        if name not in tensors:
            raise InputError(f"{path}: tensor {name} is missing; convert the model again")
        used.add(name)
        return tensors[name]

    def vector(name: str) -> np.ndarray:
        return _float32(get(name)).reshape(-1)

    def optional(name: str) -> np.ndarray | None:
        return vector(name) if name in tensors else None

    experts, used_experts = (int(f.get(f".expert_{k}", 0) or 0) for k in ("count", "used_count"))
    if experts and (arch not in EXPERTS or not 0 < used_experts <= experts):
        raise UnsupportedError(f"{path}: {used_experts} of {experts} experts in {arch!r}")
    n = int(f.need(".block_count"))
    if not 0 < n <= len(tensors):
        raise InputError(
            f"{path}: {n} layers do not fit its {len(tensors)} tensors; fetch it again"
        )
    dim = int(f.need(".embedding_length"))
    heads = f.per_layer(".attention.head_count", n)
    kv_heads = f.per_layer(".attention.head_count_kv", n, heads)
    if min(dim, heads, kv_heads) <= 0:
        raise InputError(f"{path}: a size in its metadata is not positive; download it again")
    head_dim = int(f.get(".attention.key_length", dim // heads))
    f.only(".attention.value_length", head_dim)
    turning = head_dim
    if arch in LAYERNORM:
        turning = int(f.get(".rope.dimension_count", head_dim))
        if turning % 2 or not 0 < turning <= head_dim:
            raise UnsupportedError(f"{path}: RoPE on {turning} of {head_dim} dimensions")
    else:
        f.only(".rope.dimension_count", head_dim)
    for key in ("key_length", "value_length"):
        f.only(f".attention.{key}_swa", head_dim)
    f.only(".rope.dimension_count_swa", head_dim)
    f.only(".attention.causal", True)
    f.only(".attn_logit_softcapping", 0.0)
    f.only(".final_logit_softcapping", 0.0)
    parallel = arch in ("phi2", "gptneox") and bool(f.get(".use_parallel_residual", True))
    if arch == "stablelm":
        parallel = "blk.0.ffn_norm.weight" not in tensors
    f.only(".use_parallel_residual", parallel)
    f.get(".tensor_data_layout")  # how a converter ordered rows, which the family says already
    ffn_dim = f.per_layer(".feed_forward_length", n)
    if arch == "qwen3moe":
        ffn_dim = int(f.need(".expert_feed_forward_length"))
    ffn_dim *= max(experts, 1)
    if min(ffn_dim, head_dim) <= 0:
        raise InputError(f"{path}: a size in its metadata is not positive; download it again")
    embed = _matrix(get("token_embd.weight"))
    vocab = int(f.get(".vocab_size", embed.shape[0]))
    if vocab != embed.shape[0]:
        raise InputError(
            f"{path}: {arch}.vocab_size is {vocab} and the embedding has {embed.shape[0]} rows"
        )
    tokens = f.get("tokenizer.ggml.tokens") or []
    context = int(f.get(".context_length", 2048))
    rope, gain = _rope(f, tensors, turning, context)
    if turning < head_dim:
        rope = replace(rope, rope_dims=turning)
    if "rope_factors_long.weight" in tensors:  # the short table holds for the trained context
        context = min(context, int(f.get(".rope.scaling.original_context_length", context)))
    gemma, granite = arch == "gemma3", arch in ("granite", "granitemoe")
    # The 27B model of Gemma scales by dim/heads instead of the head's size.
    score = (dim / heads) ** -0.5 if gemma and n == 62 else 0.0
    score = float(f.get(".attention.scale", score)) if granite else score
    eps_key = "layer_norm_epsilon" if arch in LAYERNORM else "layer_norm_rms_epsilon"
    eps = float(f.get(f".attention.{eps_key}", 1e-5))
    branch = float(f.get(".residual_scale", 1.0)) if granite else 1.0
    start = float(f.get(".embedding_scale", 1.0)) if granite else 1.0
    logits = float(f.get(".logit_scale", 1.0)) if granite else 1.0
    if min(branch, start, logits) <= 0:
        raise InputError(f"{path}: a multiplier in its metadata is not positive; fetch it again")
    layer_specs = _layer_specs(f, rope, n)
    if gain != 1.0:
        # cosine and sine times gain, for q and for k: scores times its square.
        if turning < head_dim or any(replace(s, window=0) != rope for s in layer_specs):
            raise UnsupportedError(f"{path}: YaRN on only a part of the layers is not supported")
        score = (score or head_dim**-0.5) * gain**2
    spec = ModelSpec(
        family=arch,
        vocab=embed.shape[0],
        dim=dim,
        ffn_dim=ffn_dim,
        n_layers=n,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        context=context,
        layers=layer_specs,
        activation=ACTIVATIONS.get(arch, Activation.SILU),
        gated=arch not in UNGATED,
        norm=Norm.LAYER if arch in LAYERNORM else Norm.RMS,
        norm_eps=eps / branch**2,
        position=Position.LEARNED if arch == "gpt2" else Position.ROPE,
        qk_norm=arch in ("qwen3", "gemma3", "qwen3moe", "olmo2", "olmoe"),
        qk_norm_whole=arch in ("olmo2", "olmoe"),
        pre_norms=arch != "olmo2",
        sandwich_norms=arch in ("gemma3", "olmo2"),
        parallel=parallel,
        attn_bias=any(f"blk.0.attn_{x}.bias" in tensors for x in ("q", "qkv")),
        out_bias="blk.0.attn_output.bias" in tensors,
        ffn_bias="blk.0.ffn_up.bias" in tensors,
        head_bias="output.bias" in tensors,
        experts=experts,
        experts_used=used_experts,
        experts_normed=EXPERTS.get(arch, True),
        active_share=used_experts / experts if experts else 1.0,
        embed_scale=float(np.float32(dim**0.5)) if gemma else start / branch,
        attn_scale=score,
        tied_head="output.weight" not in tensors,
        bos_id=int(f.get("tokenizer.ggml.bos_token_id", -1)),
        eos_ids=_ends(f, tokens),
        chat_template=str(f.get("tokenizer.chat_template", "")),
    )
    left_keys = f.left()
    if left_keys:
        value = f.fields[left_keys[0]].contents()
        raise UnsupportedError(
            f"{path}: metadata {left_keys[0]} = {str(value)[:40]} belongs to a variant of {arch!r} "
            "that is not supported"
        )

    def split(name: str, sizes: list[int]) -> list[Matrix]:
        """Rows of a fused matrix."""
        whole = _matrix(get(name))
        need_rows(whole, sum(sizes), name)
        ends = np.cumsum([0, *sizes])
        return [take_rows(whole, np.arange(a, b)) for a, b in pairwise(ends)]

    def need_rows(matrix: Any, rows: int, name: str) -> None:
        if matrix.shape[0] != rows:
            raise InputError(
                f"{path}: {name} has {matrix.shape[0]} rows where its configuration asks for "
                f"{rows}; convert the model again"
            )

    turns = np.arange(head_dim)
    if arch in INTERLEAVED:
        turns = half_split_index(1, head_dim)
    elif turning < head_dim:
        turns = partial_index(1, head_dim, turning)

    def turned(value: Any, count: int, name: str) -> Any:
        """Rows of q or k, or their biases, in the order of pairs that turn."""
        if value is None:
            return None
        need_rows(value, count * head_dim, name)
        index = np.concatenate([h * head_dim + turns for h in range(count)])
        return value if (turns[1:] > turns[:-1]).all() else take_rows(value, index)

    layers: list[Layer] = []
    for i in each("reading layers", range(n)):
        b = f"blk.{i}."
        bias: dict[str, np.ndarray | None]
        if b + "attn_qkv.weight" in tensors:
            sizes = [spec.q_dim, spec.kv_dim, spec.kv_dim]
            q, k, v = split(b + "attn_qkv.weight", sizes)
            whole = optional(b + "attn_qkv.bias")
            if whole is not None:
                need_rows(whole, sum(sizes), b + "attn_qkv.bias")
            parts = [None] * 3 if whole is None else np.split(whole, np.cumsum(sizes)[:2])
            bias = dict(zip("qkv", parts))
        else:
            q, k, v = (_matrix(get(f"{b}attn_{x}.weight")) for x in "qkv")
            bias = {x: optional(f"{b}attn_{x}.bias") for x in "qkv"}
        ffn: dict[str, Any] = {}
        if experts:
            ffn = {f"{m}_proj": _matrix(get(f"{b}ffn_{m}_exps.weight"), experts) for m in FFN}
            ffn["down_proj"] = _side_by_side(ffn["down_proj"], experts)
            ffn["router"] = _matrix(get(b + "ffn_gate_inp.weight"))
        else:
            ffn["down_proj"] = _matrix(get(b + "ffn_down.weight"))
            if b + "ffn_gate.weight" in tensors:
                ffn["gate_proj"] = _matrix(get(b + "ffn_gate.weight"))
            if "gate_proj" in ffn or not spec.gated:
                ffn["up_proj"] = _matrix(get(b + "ffn_up.weight"))
            else:
                both = split(b + "ffn_up.weight", [ffn_dim, ffn_dim])
                ffn["gate_proj"], ffn["up_proj"] = both
        ffn |= {f"{m}_bias": optional(f"{b}ffn_{m}.bias") for m in FFN}
        # Where attention and FFN stand side by side, one norm may serve both.
        shared = "attn_norm" if b + "ffn_norm.weight" not in tensors else "ffn_norm"
        norms = {"attn_norm": "attn_norm", "ffn_norm": shared} if spec.pre_norms else {}
        layers.append(
            Layer(
                attn_norm=None,
                q_proj=turned(q, heads, b + "attn_q"),
                k_proj=turned(k, kv_heads, b + "attn_k"),
                v_proj=v,
                o_proj=_matrix(get(b + "attn_output.weight")),
                ffn_norm=None,
                q_norm=optional(b + "attn_q_norm.weight"),
                k_norm=optional(b + "attn_k_norm.weight"),
                post_attn_norm=optional(b + "post_attention_norm.weight"),
                post_ffn_norm=optional(b + "post_ffw_norm.weight"),
                q_bias=turned(bias["q"], heads, b + "attn_q.bias"),
                k_bias=turned(bias["k"], kv_heads, b + "attn_k.bias"),
                v_bias=bias["v"],
                o_bias=optional(b + "attn_output.bias"),
                **ffn,
            )
        )
        for field, name in norms.items():
            setattr(layers[-1], field, vector(f"{b}{name}.weight"))
            setattr(layers[-1], f"{field}_bias", optional(f"{b}{name}.bias"))
    head = None if spec.tied_head else _matrix(get("output.weight"))
    final_norm = vector("output_norm.weight") / np.float32(logits)
    tokenizer = Tokenizer.from_gguf(f.get, spec.vocab) if tokens else None
    model = Model(
        spec=spec,
        embed=embed,
        layers=layers,
        final_norm=final_norm,
        head=head,
        final_norm_bias=optional("output_norm.bias"),
        head_bias=optional("output.bias"),
        positions=_float32(get("position_embd.weight")) if arch == "gpt2" else None,
        tokenizer=tokenizer,
        name=path.stem,
        source={"kind": "gguf", "file": paths[0].name, "sha256": files_sha256(paths)},
    )
    left = sorted(set(tensors) - used)
    if left:
        raise UnsupportedError(
            f"{path}: tensor {left[0]} belongs to a variant of {arch!r} that is not supported"
        )
    return check_model(model, path)
