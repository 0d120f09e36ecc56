"""GGUF files, read with the ``gguf`` package.

Q4_0, Q4_1 and Q8_0 tensors keep their integers and scales; everything else the
package knows (F16, F32, BF16, K-quants) is dequantised to float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from sparseflash.base.errors import InputError, SparseflashError, UnsupportedError
from sparseflash.model.load.check import check_model
from sparseflash.model.load.rows import file_sha256, half_split_index, take_rows
from sparseflash.model.spec import (
    Activation,
    Layer,
    LayerSpec,
    Matrix,
    Model,
    ModelSpec,
    Q4Blocks,
    Q8Blocks,
)
from sparseflash.model.tokenizer import TURN_ENDS, Tokenizer

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")


def _matrix(tensor: Any) -> Matrix:
    """A tensor as blocks or float32; GGUF lists its shape innermost first."""
    if len(tensor.shape) != 2:
        raise InputError(f"tensor {tensor.name} is not a matrix; convert the model again")
    cols, rows = int(tensor.shape[0]), int(tensor.shape[1])
    kind = tensor.tensor_type
    raw = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(rows, -1)
    types = gguf.GGMLQuantizationType
    if kind in (types.Q4_0, types.Q4_1):
        size = 18 if kind == types.Q4_0 else 20
        block = raw.reshape(rows, cols // 32, size)
        d = np.ascontiguousarray(block[..., :2]).view(np.float16)[..., 0]
        nibbles = block[..., size - 16 :]
        q = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).reshape(rows, cols)
        if kind == types.Q4_1:
            m = np.ascontiguousarray(block[..., 2:4]).view(np.float16)[..., 0]
        else:
            m = (d.astype(np.float32) * np.float32(-8)).astype(np.float16)
        return Q4Blocks(np.ascontiguousarray(q), d, m)
    if kind == types.Q8_0:
        block = raw.reshape(rows, cols // 32, 34)
        d = np.ascontiguousarray(block[..., :2]).view(np.float16)[..., 0]
        q8 = np.ascontiguousarray(block[..., 2:]).view(np.int8).reshape(rows, cols)
        return Q8Blocks(q8, d)
    return _float32(tensor).reshape(rows, cols)


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
    """Metadata with defaults, under the architecture's prefix."""

    def __init__(self, reader: Any, path: Path) -> None:
        self.fields = reader.fields
        self.path = path

    def get(self, key: str, default: Any = None) -> Any:
        f = self.fields.get(key)
        return default if f is None else f.contents()

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise InputError(f"{self.path}: metadata {key} is missing; convert the model again")
        return value


def _layer_specs(f: _Fields, arch: str, n: int) -> tuple[LayerSpec, ...]:
    theta = float(f.get(f"{arch}.rope.freq_base", 10000.0))
    scale = float(f.get(f"{arch}.rope.scaling.factor", 1.0))
    window = int(f.get(f"{arch}.attention.sliding_window", 0) or 0)
    if arch != "gemma3":
        return tuple(LayerSpec(window=window, rope_theta=theta, rope_scale=scale) for _ in range(n))
    local = float(f.get(f"{arch}.rope.freq_base_swa", 10000.0))
    # Gemma 3: five local layers with theta 10,000 for each global one.
    return tuple(
        LayerSpec(rope_theta=theta, rope_scale=scale)
        if i % 6 == 5
        else LayerSpec(window=window, rope_theta=local)
        for i in range(n)
    )


def load_gguf(path: Path) -> Model:
    """Reads a GGUF model of the families llama, qwen2, qwen3 and gemma3.

    Raises:
        InputError: damaged or truncated. UnsupportedError: another architecture.
    """
    try:
        return _load(path)
    except SparseflashError as e:
        # Helpers know the tensor but not the file.
        if str(path) in str(e):
            raise
        raise type(e)(f"{path}: {e}") from e
    except (ValueError, TypeError, LookupError, ArithmeticError) as e:
        raise InputError(f"{path}: damaged metadata or tensors ({e}); download it again") from e


def _load(path: Path) -> Model:
    try:
        reader = gguf.GGUFReader(path)
    except Exception as e:
        raise InputError(
            f"{path}: not a whole GGUF file ({type(e).__name__}); download it again"
        ) from e
    f = _Fields(reader, path)
    arch = f.need("general.architecture")
    if arch not in ARCHITECTURES:
        raise UnsupportedError(
            f"{path}: architecture {arch!r} is not supported; known are {', '.join(ARCHITECTURES)}"
        )
    if str(f.get(f"{arch}.rope.scaling.type", "none")) not in ("none", "linear"):
        raise UnsupportedError(f"{path}: only linear RoPE scaling is supported")
    if int(f.get(f"{arch}.expert_count", 0) or 0):
        raise UnsupportedError(f"{path}: mixtures of experts are not supported")
    tensors = {t.name: t for t in reader.tensors}
    used: set[str] = set()
    size = path.stat().st_size
    for t in reader.tensors:
        if int(t.data_offset) + int(t.n_bytes) > size:
            raise InputError(f"{path}: truncated in tensor {t.name}; download it again")

    def get(name: str) -> Any:
        if name not in tensors:
            raise InputError(f"{path}: tensor {name} is missing; convert the model again")
        used.add(name)
        return tensors[name]

    def vector(name: str) -> np.ndarray:
        return _float32(get(name)).reshape(-1)

    def optional(name: str) -> np.ndarray | None:
        return vector(name) if name in tensors else None

    dim = int(f.need(f"{arch}.embedding_length"))
    heads = int(f.need(f"{arch}.attention.head_count"))
    kv_heads = int(f.get(f"{arch}.attention.head_count_kv", heads))
    head_dim = int(f.get(f"{arch}.attention.key_length", dim // heads))
    n = int(f.need(f"{arch}.block_count"))
    if min(dim, heads, kv_heads, head_dim, n) <= 0:
        raise InputError(f"{path}: a size in its metadata is not positive; download it again")
    embed = _matrix(get("token_embd.weight"))
    tokens = f.get("tokenizer.ggml.tokens") or []
    eos = {int(f.get("tokenizer.ggml.eos_token_id", -1))}
    eos |= {tokens.index(t) for t in TURN_ENDS if t in tokens}
    # A stated end that is really a turn's start would end every answer at once.
    eos -= {tokens.index(t) for t in ("<|im_start|>",) if t in tokens} | {-1}
    gemma = arch == "gemma3"
    spec = ModelSpec(
        family=arch,
        vocab=embed.shape[0],
        dim=dim,
        ffn_dim=int(f.need(f"{arch}.feed_forward_length")),
        n_layers=n,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        context=int(f.get(f"{arch}.context_length", 2048)),
        layers=_layer_specs(f, arch, n),
        activation=Activation.GELU_TANH if gemma else Activation.SILU,
        norm_eps=float(f.get(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)),
        qk_norm=arch in ("qwen3", "gemma3"),
        sandwich_norms=gemma,
        attn_bias="blk.0.attn_q.bias" in tensors,
        embed_scale=float(np.float32(dim**0.5)) if gemma else 1.0,
        # The 27B model scales by dim/heads instead of the head's size.
        attn_scale=(dim / heads) ** -0.5 if gemma and n == 62 else 0.0,
        tied_head="output.weight" not in tensors,
        bos_id=int(f.get("tokenizer.ggml.bos_token_id", -1)),
        eos_ids=tuple(sorted(eos)),
        chat_template=str(f.get("tokenizer.chat_template", "")),
    )

    def need_rows(matrix: Matrix, rows: int, name: str) -> None:
        if matrix.shape[0] != rows:
            raise InputError(
                f"{path}: {name} has {matrix.shape[0]} rows where its heads ask for {rows}; "
                "convert the model again"
            )

    layers: list[Layer] = []
    for i in range(n):
        b = f"blk.{i}."
        q, k = _matrix(get(b + "attn_q.weight")), _matrix(get(b + "attn_k.weight"))
        q_bias, k_bias = optional(b + "attn_q.bias"), optional(b + "attn_k.bias")
        if arch == "llama":
            need_rows(q, heads * head_dim, b + "attn_q")
            need_rows(k, kv_heads * head_dim, b + "attn_k")
            q = take_rows(q, half_split_index(heads, head_dim))
            k = take_rows(k, half_split_index(kv_heads, head_dim))
            q_bias = None if q_bias is None else q_bias[half_split_index(heads, head_dim)]
            k_bias = None if k_bias is None else k_bias[half_split_index(kv_heads, head_dim)]
        layers.append(
            Layer(
                attn_norm=vector(b + "attn_norm.weight"),
                q_proj=q,
                k_proj=k,
                v_proj=_matrix(get(b + "attn_v.weight")),
                o_proj=_matrix(get(b + "attn_output.weight")),
                ffn_norm=vector(b + "ffn_norm.weight"),
                gate_proj=_matrix(get(b + "ffn_gate.weight")),
                up_proj=_matrix(get(b + "ffn_up.weight")),
                down_proj=_matrix(get(b + "ffn_down.weight")),
                q_norm=optional(b + "attn_q_norm.weight"),
                k_norm=optional(b + "attn_k_norm.weight"),
                post_attn_norm=optional(b + "post_attention_norm.weight"),
                post_ffn_norm=optional(b + "post_ffw_norm.weight"),
                q_bias=q_bias,
                k_bias=k_bias,
                v_bias=optional(b + "attn_v.bias"),
            )
        )
    head = None if spec.tied_head else _matrix(get("output.weight"))
    final_norm = vector("output_norm.weight")
    left = sorted(set(tensors) - used)
    if left:
        raise UnsupportedError(
            f"{path}: tensor {left[0]} belongs to a variant of {arch!r} that is not supported"
        )
    tokenizer = Tokenizer.from_gguf(f.get) if tokens else None
    model = Model(
        spec=spec,
        embed=embed,
        layers=layers,
        final_norm=final_norm,
        head=head,
        tokenizer=tokenizer,
        name=path.stem,
        source={"kind": "gguf", "file": path.name, "sha256": file_sha256(path)},
    )
    return check_model(model, path)
