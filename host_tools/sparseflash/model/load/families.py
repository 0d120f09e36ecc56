"""Hugging Face families: one spec builder and one table of tensor names each.

A builder turns ``config.json`` into a :class:`ModelSpec`; ``tied_head`` is settled
afterwards by the reader, which knows the tensors. A table maps the fields of
:class:`Layer` to checkpoint names, with ``{i}`` for the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseflash.base.errors import InputError, UnsupportedError
from sparseflash.model.spec import Activation, LayerSpec, ModelSpec, Norm, Position

Config = dict[str, Any]

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
}


@dataclass(frozen=True)
class Family:
    """How one ``model_type`` is read."""

    spec: Callable[[Config], ModelSpec]
    prefix: str
    """Where the decoder's tensors live; checkpoints of the bare decoder drop it."""
    embed: str
    final_norm: str
    layer: dict[str, str]
    """Field of Layer to tensor name after the prefix."""
    positions: str = ""
    fused_qkv: str = ""
    """Base name of one q, k, v matrix and bias (GPT-2)."""
    transposed: bool = False
    """Matrices are stored (in, out)."""
    norm_plus_one: bool = False
    """Norm factors are stored as w and applied as 1 + w."""
    tied_default: bool = False


def _need(cfg: Config, *keys: str) -> int:
    for key in keys:
        if cfg.get(key) is not None:
            return int(cfg[key])
    raise InputError(f"config.json has no {keys[0]!r}; export the checkpoint again")


def _activation(cfg: Config, *keys: str) -> Activation:
    name = str(next((cfg[k] for k in keys if cfg.get(k) is not None), ""))
    if name not in _ACTIVATIONS:
        raise UnsupportedError(
            f"activation {name!r} is not supported; known are {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _refuse(cfg: Config, key: str, allowed: tuple[Any, ...]) -> None:
    if key in cfg and cfg[key] not in allowed:
        raise UnsupportedError(
            f"{cfg.get('model_type')} with {key}={cfg[key]!r} is not supported; "
            f"only {key}={allowed[0]!r} is"
        )


def _rope(cfg: Config, kind: str = "", theta: float = 10000.0) -> tuple[float, float]:
    """(theta, linear scale), from the fields of transformers 4 or 5."""
    parameters = cfg.get("rope_parameters") or {}
    if kind and isinstance(parameters.get(kind), dict):
        parameters = parameters[kind]
    scaling = cfg.get("rope_scaling") or parameters
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if rope_type not in ("default", "linear"):
        raise UnsupportedError(
            f"RoPE scaling {rope_type!r} is not supported; only linear scaling is"
        )
    scale = float(scaling.get("factor", 1.0)) if rope_type == "linear" else 1.0
    return float(parameters.get("rope_theta") or cfg.get("rope_theta") or theta), scale


def _eos(cfg: Config) -> tuple[int, ...]:
    eos = cfg.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return tuple(sorted({int(i) for i in ids}))


def _bos(cfg: Config) -> int:
    bos = cfg.get("bos_token_id")
    return -1 if bos is None else int(bos)


def _windows(cfg: Config, n: int) -> list[int]:
    """Sliding window of every layer, 0 for none (Mistral, Qwen)."""
    window = int(cfg.get("sliding_window") or 0)
    kinds = cfg.get("layer_types")
    if kinds is not None:
        return [window if kind == "sliding_attention" else 0 for kind in kinds]
    if cfg.get("model_type") == "mistral":
        return [window] * n
    if cfg.get("use_sliding_window") and window:
        first = int(cfg.get("max_window_layers") or 0)
        return [window if i >= first else 0 for i in range(n)]
    return [0] * n


def _swiglu(cfg: Config, qk_norm: bool = False, attn_bias: bool = False) -> ModelSpec:
    n, dim, heads = (
        _need(cfg, "num_hidden_layers"),
        _need(cfg, "hidden_size"),
        _need(cfg, "num_attention_heads"),
    )
    theta, scale = _rope(cfg)
    windows = _windows(cfg, n)
    return ModelSpec(
        family=str(cfg["model_type"]),
        vocab=_need(cfg, "vocab_size"),
        dim=dim,
        ffn_dim=_need(cfg, "intermediate_size"),
        n_layers=n,
        n_heads=heads,
        n_kv_heads=int(cfg.get("num_key_value_heads") or heads),
        head_dim=int(cfg.get("head_dim") or dim // heads),
        context=int(cfg.get("max_position_embeddings") or 2048),
        layers=tuple(LayerSpec(w, theta, scale) for w in windows),
        activation=_activation(cfg, "hidden_act"),
        norm_eps=float(cfg.get("rms_norm_eps", 1e-6)),
        qk_norm=qk_norm,
        attn_bias=attn_bias,
        bos_id=_bos(cfg),
        eos_ids=_eos(cfg),
    )


def llama_spec(cfg: Config) -> ModelSpec:
    """Llama, Mistral and SmolLM2: RMSNorm, RoPE, SwiGLU, no biases."""
    _refuse(cfg, "attention_bias", (False, None))
    _refuse(cfg, "mlp_bias", (False, None))
    return _swiglu(cfg)


def qwen2_spec(cfg: Config) -> ModelSpec:
    """Qwen2: as Llama with biases on q, k, v."""
    return _swiglu(cfg, attn_bias=True)


def qwen3_spec(cfg: Config) -> ModelSpec:
    """Qwen3: as Llama with RMSNorm on the heads of q and k."""
    _refuse(cfg, "attention_bias", (False, None))
    return _swiglu(cfg, qk_norm=True)


def gemma3_spec(cfg: Config) -> ModelSpec:
    """Gemma 3 text: GeGLU, sandwich norms, q/k norms, local and global layers."""
    _refuse(cfg, "attention_bias", (False, None))
    _refuse(cfg, "final_logit_softcapping", (None,))
    _refuse(cfg, "attn_logit_softcapping", (None,))
    _refuse(cfg, "use_bidirectional_attention", (False, None))
    n, dim = _need(cfg, "num_hidden_layers"), _need(cfg, "hidden_size")
    heads = _need(cfg, "num_attention_heads")
    head_dim = int(cfg.get("head_dim") or 256)
    kinds = cfg.get("layer_types")
    if kinds is None:
        every = int(cfg.get("sliding_window_pattern") or cfg.get("_sliding_window_pattern") or 6)
        kinds = [
            "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(n)
        ]
    full_theta, full_scale = _rope(cfg, "full_attention", 1e6)
    local = (cfg.get("rope_parameters") or {}).get("sliding_attention") or {}
    local_theta = float(local.get("rope_theta") or cfg.get("rope_local_base_freq") or 10000.0)
    window = int(cfg.get("sliding_window") or 4096)
    scalar = float(cfg.get("query_pre_attn_scalar") or 256)
    return ModelSpec(
        family="gemma3",
        vocab=_need(cfg, "vocab_size"),
        dim=dim,
        ffn_dim=_need(cfg, "intermediate_size"),
        n_layers=n,
        n_heads=heads,
        n_kv_heads=int(cfg.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        context=int(cfg.get("max_position_embeddings") or 32768),
        layers=tuple(
            LayerSpec(window, local_theta, 1.0)
            if kind == "sliding_attention"
            else LayerSpec(0, full_theta, full_scale)
            for kind in kinds
        ),
        activation=_activation(cfg, "hidden_activation", "hidden_act"),
        norm_eps=float(cfg.get("rms_norm_eps", 1e-6)),
        qk_norm=True,
        sandwich_norms=True,
        embed_scale=float(np.float32(dim**0.5)),
        attn_scale=0.0 if scalar == head_dim else scalar**-0.5,
        bos_id=_bos(cfg),
        eos_ids=_eos(cfg),
    )


def gpt2_spec(cfg: Config) -> ModelSpec:
    """GPT-2: LayerNorm, learned positions, plain FFN with biases."""
    _refuse(cfg, "scale_attn_weights", (True,))
    _refuse(cfg, "scale_attn_by_inverse_layer_idx", (False,))
    _refuse(cfg, "add_cross_attention", (False,))
    n, dim, heads = _need(cfg, "n_layer"), _need(cfg, "n_embd"), _need(cfg, "n_head")
    return ModelSpec(
        family="gpt2",
        vocab=_need(cfg, "vocab_size"),
        dim=dim,
        ffn_dim=int(cfg.get("n_inner") or 4 * dim),
        n_layers=n,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=dim // heads,
        context=_need(cfg, "n_positions", "n_ctx"),
        layers=tuple(LayerSpec() for _ in range(n)),
        activation=_activation(cfg, "activation_function"),
        gated=False,
        norm=Norm.LAYER,
        norm_eps=float(cfg.get("layer_norm_epsilon", 1e-5)),
        position=Position.LEARNED,
        attn_bias=True,
        out_bias=True,
        bos_id=_bos(cfg),
        eos_ids=_eos(cfg),
    )


def opt_spec(cfg: Config) -> ModelSpec:
    """OPT with norms before each block: LayerNorm, positions offset by 2, ReLU FFN."""
    _refuse(cfg, "do_layer_norm_before", (True,))
    _refuse(cfg, "enable_bias", (True,))
    _refuse(cfg, "layer_norm_elementwise_affine", (True,))
    _refuse(cfg, "_remove_final_layer_norm", (False,))
    n, dim = _need(cfg, "num_hidden_layers"), _need(cfg, "hidden_size")
    heads = _need(cfg, "num_attention_heads")
    _refuse(cfg, "word_embed_proj_dim", (dim, None))
    return ModelSpec(
        family="opt",
        vocab=_need(cfg, "vocab_size"),
        dim=dim,
        ffn_dim=_need(cfg, "ffn_dim"),
        n_layers=n,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=dim // heads,
        context=_need(cfg, "max_position_embeddings"),
        layers=tuple(LayerSpec() for _ in range(n)),
        activation=_activation(cfg, "activation_function"),
        gated=False,
        norm=Norm.LAYER,
        norm_eps=1e-5,
        position=Position.LEARNED,
        position_offset=2,
        attn_bias=True,
        out_bias=True,
        bos_id=_bos(cfg),
        eos_ids=_eos(cfg),
    )


_BLOCK = "layers.{i}."
_ATTENTION = {f"{x}_proj": f"{_BLOCK}self_attn.{x}_proj.weight" for x in "qkvo"}
_GATED = {f"{x}_proj": f"{_BLOCK}mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
_LLAMA = {
    **_ATTENTION,
    **_GATED,
    "attn_norm": f"{_BLOCK}input_layernorm.weight",
    "ffn_norm": f"{_BLOCK}post_attention_layernorm.weight",
}
_QWEN2 = {**_LLAMA, **{f"{x}_bias": f"{_BLOCK}self_attn.{x}_proj.bias" for x in "qkv"}}
_QWEN3 = {**_LLAMA, **{f"{x}_norm": f"{_BLOCK}self_attn.{x}_norm.weight" for x in "qk"}}
_GEMMA3 = {
    **_QWEN3,
    "post_attn_norm": f"{_BLOCK}post_attention_layernorm.weight",
    "ffn_norm": f"{_BLOCK}pre_feedforward_layernorm.weight",
    "post_ffn_norm": f"{_BLOCK}post_feedforward_layernorm.weight",
}
_GPT2 = {
    "attn_norm": "h.{i}.ln_1.weight",
    "attn_norm_bias": "h.{i}.ln_1.bias",
    "o_proj": "h.{i}.attn.c_proj.weight",
    "o_bias": "h.{i}.attn.c_proj.bias",
    "ffn_norm": "h.{i}.ln_2.weight",
    "ffn_norm_bias": "h.{i}.ln_2.bias",
    "up_proj": "h.{i}.mlp.c_fc.weight",
    "up_bias": "h.{i}.mlp.c_fc.bias",
    "down_proj": "h.{i}.mlp.c_proj.weight",
    "down_bias": "h.{i}.mlp.c_proj.bias",
}
_OPT = {
    **{f"{x}_proj": f"{_BLOCK}self_attn.{x}_proj.weight" for x in "qkv"},
    **{f"{x}_bias": f"{_BLOCK}self_attn.{x}_proj.bias" for x in "qkv"},
    "o_proj": f"{_BLOCK}self_attn.out_proj.weight",
    "o_bias": f"{_BLOCK}self_attn.out_proj.bias",
    "attn_norm": f"{_BLOCK}self_attn_layer_norm.weight",
    "attn_norm_bias": f"{_BLOCK}self_attn_layer_norm.bias",
    "up_proj": f"{_BLOCK}fc1.weight",
    "up_bias": f"{_BLOCK}fc1.bias",
    "down_proj": f"{_BLOCK}fc2.weight",
    "down_bias": f"{_BLOCK}fc2.bias",
    "ffn_norm": f"{_BLOCK}final_layer_norm.weight",
    "ffn_norm_bias": f"{_BLOCK}final_layer_norm.bias",
}

_MODEL = ("model.", "embed_tokens.weight", "norm.weight")

FAMILIES: dict[str, Family] = {
    "llama": Family(llama_spec, *_MODEL, _LLAMA),
    "mistral": Family(llama_spec, *_MODEL, _LLAMA),
    "smollm2": Family(llama_spec, *_MODEL, _LLAMA),
    "qwen2": Family(qwen2_spec, *_MODEL, _QWEN2),
    "qwen3": Family(qwen3_spec, *_MODEL, _QWEN3),
    "gemma3_text": Family(gemma3_spec, *_MODEL, _GEMMA3, norm_plus_one=True, tied_default=True),
    "gpt2": Family(
        gpt2_spec,
        "transformer.",
        "wte.weight",
        "ln_f.weight",
        _GPT2,
        positions="wpe.weight",
        fused_qkv="h.{i}.attn.c_attn",
        transposed=True,
        tied_default=True,
    ),
    "opt": Family(
        opt_spec,
        "model.decoder.",
        "embed_tokens.weight",
        "final_layer_norm.weight",
        _OPT,
        positions="embed_positions.weight",
        tied_default=True,
    ),
}
