"""Hugging Face families: one spec builder and one table of tensor names each.

A builder turns ``config.json`` into a :class:`ModelSpec`; ``tied_head`` is settled
afterwards by the reader, which knows the tensors. A table maps the fields of
:class:`Layer` to checkpoint names, with ``{i}`` for the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sparseflash.base.errors import InputError, UnsupportedError
from sparseflash.model.rope import scaling_of
from sparseflash.model.spec import Activation, LayerSpec, ModelSpec, Norm, Position

Config = dict[str, Any]
Get = Callable[[str], np.ndarray]
"""Reads a tensor by its name after the prefix, float32."""

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
    head: str = "lm_head.weight"
    """Where the head lies when it is not the embedding, without the prefix."""
    positions: str = ""
    fused: Callable[[Get, ModelSpec, str], dict[str, np.ndarray]] | None = None
    """Takes fused tensors apart: reader, spec and layer's place to fields of Layer."""
    block: str = "layers.{i}."
    """A layer's place, where ``fused`` reads."""
    parallel: dict[str, str] = field(default_factory=dict)
    """Names that differ where attention and FFN stand side by side."""
    transposed: bool = False
    """Matrices are stored (in, out)."""
    logits_divisor: str = ""
    """Key of config.json that logits are divided by; the final norm takes it."""
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


@dataclass(frozen=True)
class _Rope:
    """What RoPE adds to a spec: the layer's fields, the scores' factor, the usable context."""

    layer: LayerSpec
    gain: float
    context: int

    def score(self, cfg: Config, head_dim: int, scale: float = 0.0) -> float:
        """``attn_scale`` with the gain of cosine and sine, which q and k both take."""
        if self.gain == 1.0:
            return scale
        if self.layer.turning(head_dim) != head_dim:
            raise UnsupportedError(
                f"{cfg.get('model_type')} with YaRN on a part of each head is not supported"
            )
        return (scale or head_dim**-0.5) * self.gain**2


def _rope(
    cfg: Config, head_dim: int, kind: str = "", theta: float = 10000.0, partial: float = 1.0
) -> _Rope:
    """RoPE from the fields of transformers 4 or 5."""
    parameters = cfg.get("rope_parameters") or {}
    if kind and isinstance(parameters.get(kind), dict):
        parameters = parameters[kind]
    scaling = cfg.get("rope_scaling") or parameters
    base = float(parameters.get("rope_theta") or cfg.get("rope_theta") or theta)
    part = parameters.get("partial_rotary_factor", cfg.get("partial_rotary_factor"))
    dims = int(head_dim * float(partial if part is None else part))
    if dims % 2 or not 0 < dims <= head_dim:
        raise UnsupportedError(f"RoPE on {dims} of {head_dim} dimensions is not supported")
    context = int(cfg.get("max_position_embeddings") or 2048)
    original = int(cfg.get("original_max_position_embeddings") or 0)
    scale, factors, gain, context = scaling_of(scaling, base, dims, context, original)
    layer = LayerSpec(0, base, scale, factors, -1 if dims == head_dim else dims)
    return _Rope(layer, gain, context)


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
    if cfg.get("model_type") in ("mistral", "phi3"):
        return [window] * n
    if cfg.get("use_sliding_window") and window:
        first = int(cfg.get("max_window_layers") or 0)
        return [window if i >= first else 0 for i in range(n)]
    return [0] * n


def _swiglu(cfg: Config, **more: Any) -> ModelSpec:
    """Llama's shape; ``more`` are fields of the spec that differ."""
    n, dim, heads = (
        _need(cfg, "num_hidden_layers"),
        _need(cfg, "hidden_size"),
        _need(cfg, "num_attention_heads"),
    )
    head_dim = int(cfg.get("head_dim") or dim // heads)
    rope = _rope(cfg, head_dim)
    fields: dict[str, Any] = {
        "family": str(cfg["model_type"]),
        "vocab": _need(cfg, "vocab_size"),
        "dim": dim,
        "ffn_dim": _need(cfg, "intermediate_size"),
        "n_layers": n,
        "n_heads": heads,
        "n_kv_heads": _kv_heads(cfg, heads),
        "head_dim": head_dim,
        "context": rope.context,
        "layers": tuple(replace(rope.layer, window=w) for w in _windows(cfg, n)),
        "activation": _activation(cfg, "hidden_act"),
        "norm_eps": float(cfg.get("rms_norm_eps", 1e-6)),
        "attn_scale": rope.score(cfg, head_dim),
        "attn_bias": bool(cfg.get("attention_bias")),
        "out_bias": bool(cfg.get("attention_bias")),
        "ffn_bias": bool(cfg.get("mlp_bias")),
        "bos_id": _bos(cfg),
        "eos_ids": _eos(cfg),
    }
    return ModelSpec(**fields | more)


def _kv_heads(cfg: Config, heads: int) -> int:
    value = cfg.get("num_key_value_heads")
    if isinstance(value, list):
        raise UnsupportedError("num_key_value_heads for each layer is not supported")
    return int(value or heads)


def llama_spec(cfg: Config) -> ModelSpec:
    """Llama, Mistral and SmolLM2: RMSNorm, RoPE, SwiGLU."""
    return _swiglu(cfg)


def qwen2_spec(cfg: Config) -> ModelSpec:
    """Qwen2: as Llama with biases on q, k, v."""
    return _swiglu(cfg, attn_bias=True)


def qwen3_spec(cfg: Config) -> ModelSpec:
    """Qwen3: as Llama with RMSNorm on the heads of q and k."""
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
    full = _rope(cfg, head_dim, "full_attention", 1e6)
    local = (cfg.get("rope_parameters") or {}).get("sliding_attention") or {}
    if full.gain != 1.0 or local.get("rope_type", "default") != "default":
        raise UnsupportedError("gemma3 with another RoPE scaling than linear is not supported")
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
        n_kv_heads=_kv_heads(cfg, heads),
        head_dim=head_dim,
        context=int(cfg.get("max_position_embeddings") or 32768),
        layers=tuple(
            LayerSpec(window, local_theta) if kind == "sliding_attention" else full.layer
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


def phi3_spec(cfg: Config) -> ModelSpec:
    """Phi-3 and Phi-4-mini: as Llama, with q, k, v in one matrix and gate and up in another."""
    return _swiglu(cfg)


def smollm3_spec(cfg: Config) -> ModelSpec:
    """SmolLM3: as Llama, with layers without RoPE."""
    spec = _swiglu(cfg)
    n, every = spec.n_layers, int(cfg.get("no_rope_layer_interval") or 4)
    turning = cfg.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(n)]
    if len(turning) != n:
        raise InputError(f"no_rope_layers has {len(turning)} entries for {n} layers; correct it")
    if spec.attn_scale and not all(turning):
        raise UnsupportedError("smollm3 with YaRN and layers without RoPE is not supported")
    layers = (s if on else LayerSpec(s.window, rope_dims=0) for s, on in zip(spec.layers, turning))
    return replace(spec, layers=tuple(layers))


def granite_spec(cfg: Config) -> ModelSpec:
    """Granite: as Llama, with four multipliers that other fields express.

    Branches times r add to the residual as they are when the embedding is divided by r and the
    norm's epsilon by r squared: a norm does not see the scale of its input.
    """
    r = float(cfg.get("residual_multiplier", 1.0))
    start = float(cfg.get("embedding_multiplier", 1.0))
    scores = float(cfg.get("attention_multiplier", 1.0))
    if min(r, start, scores, float(cfg.get("logits_scaling", 1.0))) <= 0:
        raise UnsupportedError("granite with a multiplier that is not positive is not supported")
    head_dim = int(cfg.get("head_dim") or _need(cfg, "hidden_size") // cfg["num_attention_heads"])
    return _swiglu(
        cfg,
        embed_scale=start / r,
        attn_scale=_rope(cfg, head_dim).score(cfg, head_dim, scores),
        norm_eps=float(cfg.get("rms_norm_eps", 1e-6)) / r**2,
    )


def olmo2_spec(cfg: Config) -> ModelSpec:
    """OLMo 2: norms after attention and FFN only, q and k norms over all heads."""
    more = {"pre_norms": False, "sandwich_norms": True}
    return _swiglu(cfg, qk_norm=True, qk_norm_whole=True, **more)


def _experts(cfg: Config, neurons: str, experts: str, normed: bool) -> dict[str, Any]:
    """Fields of a spec with experts, from the keys of an expert's neurons and of their number."""
    count, used = _need(cfg, experts), _need(cfg, "num_experts_per_tok")
    if not 0 < used <= count:
        raise InputError(f"a token uses {used} of {count} experts; correct {experts}")
    return {
        "ffn_dim": count * _need(cfg, neurons),
        "experts": count,
        "experts_used": used,
        "experts_normed": normed,
        "active_share": used / count,
    }


def qwen3_moe_spec(cfg: Config) -> ModelSpec:
    """Qwen3-MoE: as Qwen3, with experts in every layer."""
    _refuse(cfg, "decoder_sparse_step", (1, None))
    _refuse(cfg, "mlp_only_layers", ([], None))
    normed = bool(cfg.get("norm_topk_prob", False))
    more = _experts(cfg, "moe_intermediate_size", "num_experts", normed)
    return _swiglu({**cfg, "intermediate_size": 0}, qk_norm=True, **more)


def olmoe_spec(cfg: Config) -> ModelSpec:
    """OLMoE: experts; q and k norms over all heads."""
    _refuse(cfg, "clip_qkv", (None,))
    more = _experts(cfg, "intermediate_size", "num_experts", bool(cfg.get("norm_topk_prob", False)))
    eps = float(cfg.get("rms_norm_eps", 1e-5))
    return _swiglu(cfg, qk_norm=True, qk_norm_whole=True, norm_eps=eps, **more)


def granite_moe_spec(cfg: Config) -> ModelSpec:
    """Granite-MoE: Granite with experts, whose router's softmax is over the chosen ones."""
    more = _experts(cfg, "intermediate_size", "num_local_experts", True)
    return replace(granite_spec(cfg), **more)


def stablelm_spec(cfg: Config) -> ModelSpec:
    """StableLM: LayerNorm, RoPE on a part of each head, SwiGLU."""
    _refuse(cfg, "qk_layernorm", (False, None))
    cfg = {"partial_rotary_factor": 0.25, **cfg}
    return _swiglu(
        cfg,
        norm=Norm.LAYER,
        norm_eps=float(cfg.get("layer_norm_eps", 1e-5)),
        attn_bias=bool(cfg.get("use_qkv_bias", False)),
        parallel=bool(cfg.get("use_parallel_residual", False)),
    )


def phi_spec(cfg: Config) -> ModelSpec:
    """Phi-1.5 and Phi-2: attention and FFN side by side behind one LayerNorm, biases, no gate."""
    _refuse(cfg, "qk_layernorm", (False, None))
    cfg = {"partial_rotary_factor": 0.5, **cfg}
    return _swiglu(
        cfg,
        gated=False,
        norm=Norm.LAYER,
        norm_eps=float(cfg.get("layer_norm_eps", 1e-5)),
        attn_bias=True,
        out_bias=True,
        ffn_bias=True,
        parallel=True,
    )


def neox_spec(cfg: Config) -> ModelSpec:
    """GPT-NeoX and Pythia: attention and FFN side by side, LayerNorm, biases, no gate."""
    _refuse(cfg, "attention_bias", (True, None))
    theta = float(cfg.get("rotary_emb_base") or 10000.0)
    part = float(cfg.get("rotary_pct", 0.25))
    cfg = {"partial_rotary_factor": part, "rope_theta": theta, **cfg}
    return _swiglu(
        cfg,
        n_kv_heads=_need(cfg, "num_attention_heads"),
        gated=False,
        norm=Norm.LAYER,
        norm_eps=float(cfg.get("layer_norm_eps", 1e-5)),
        attn_bias=True,
        out_bias=True,
        ffn_bias=True,
        parallel=bool(cfg.get("use_parallel_residual", True)),
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
        ffn_bias=True,
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
        ffn_bias=True,
        bos_id=_bos(cfg),
        eos_ids=_eos(cfg),
    )


_BLOCK = "layers.{i}."
_ATTENTION = {f"{x}_proj": f"{_BLOCK}self_attn.{x}_proj.weight" for x in "qkvo"}
_GATED = {f"{x}_proj": f"{_BLOCK}mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
_BIASES = {f"{x}_bias": f"{_BLOCK}self_attn.{x}_proj.bias" for x in "qkvo"}
_BIASES |= {f"{x}_bias": f"{_BLOCK}mlp.{x}_proj.bias" for x in ("gate", "up", "down")}
_LLAMA = {
    **_ATTENTION,
    **_GATED,
    **_BIASES,
    "attn_norm": f"{_BLOCK}input_layernorm.weight",
    "ffn_norm": f"{_BLOCK}post_attention_layernorm.weight",
}
_QWEN3 = {**_LLAMA, **{f"{x}_norm": f"{_BLOCK}self_attn.{x}_norm.weight" for x in "qk"}}
_GEMMA3 = {
    **_QWEN3,
    "post_attn_norm": f"{_BLOCK}post_attention_layernorm.weight",
    "ffn_norm": f"{_BLOCK}pre_feedforward_layernorm.weight",
    "post_ffn_norm": f"{_BLOCK}post_feedforward_layernorm.weight",
}


def _checked(tensor: np.ndarray, rows: int, name: str) -> np.ndarray:
    if len(tensor) != rows:
        raise InputError(f"tensor {name} has {len(tensor)} rows where {rows} belong")
    return tensor


def _gpt2_fused(get: Get, spec: ModelSpec, at: str) -> dict[str, np.ndarray]:
    """q, k and v side by side, stored (in, out)."""
    name, out = f"{at}attn.c_attn", 3 * spec.q_dim
    weight = _checked(np.ascontiguousarray(get(name + ".weight").T), out, name)
    bias = _checked(get(name + ".bias"), out, name)
    parts = dict(zip(("q_proj", "k_proj", "v_proj"), np.split(weight, 3)))
    return parts | dict(zip(("q_bias", "k_bias", "v_bias"), np.split(bias, 3)))


def _phi3_fused(get: Get, spec: ModelSpec, at: str) -> dict[str, np.ndarray]:
    """q, k and v one below the other, gate and up one below the other."""
    q, kv = spec.q_dim, spec.kv_dim
    name = f"{at}self_attn.qkv_proj.weight"
    qkv = np.split(_checked(get(name), q + 2 * kv, name), [q, q + kv])
    name = f"{at}mlp.gate_up_proj.weight"
    halves = np.split(_checked(get(name), 2 * spec.ffn_dim, name), 2)
    return dict(zip(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), [*qkv, *halves]))


def _experts_fused(get: Get, spec: ModelSpec, at: str) -> dict[str, np.ndarray]:
    """The experts' matrices one after the other: rows of gate and up, columns of down."""

    def of_all(m: str) -> list[np.ndarray]:
        return [get(f"{at}mlp.experts.{e}.{m}_proj.weight") for e in range(spec.experts)]

    rows = {f"{m}_proj": np.concatenate(of_all(m)) for m in ("gate", "up")}
    return rows | {"down_proj": np.concatenate(of_all("down"), axis=1)}


def _granite_fused(get: Get, spec: ModelSpec, at: str) -> dict[str, np.ndarray]:
    """(experts, gate and up one below the other, in) and (experts, out, in)."""
    both = get(f"{at}block_sparse_moe.input_linear.weight")
    down = get(f"{at}block_sparse_moe.output_linear.weight")
    if both.ndim != 3 or down.ndim != 3 or both.shape[1] % 2:
        raise InputError(f"{at}block_sparse_moe: experts of another shape; export it again")
    gate, up = np.split(both, 2, axis=1)
    return {
        "gate_proj": gate.reshape(-1, gate.shape[-1]),
        "up_proj": up.reshape(-1, up.shape[-1]),
        "down_proj": np.concatenate(list(down), axis=1),
    }


def _neox_fused(get: Get, spec: ModelSpec, at: str) -> dict[str, np.ndarray]:
    """q, k and v of a head one below the other, head by head."""
    name, out = f"{at}attention.query_key_value", 3 * spec.q_dim
    weight = _checked(get(name + ".weight"), out, name)
    bias = _checked(get(name + ".bias"), out, name)
    w = weight.reshape(spec.n_heads, 3, spec.head_dim, -1)
    b = bias.reshape(spec.n_heads, 3, spec.head_dim)
    parts = {f"{x}_proj": w[:, i].reshape(spec.q_dim, -1) for i, x in enumerate("qkv")}
    return parts | {f"{x}_bias": b[:, i].reshape(-1) for i, x in enumerate("qkv")}


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
_PHI3 = {
    "o_proj": _LLAMA["o_proj"],
    "down_proj": _LLAMA["down_proj"],
    "attn_norm": _LLAMA["attn_norm"],
    "ffn_norm": _LLAMA["ffn_norm"],
}
_OLMO2 = {
    **_ATTENTION,
    **_GATED,
    **_BIASES,
    **{f"{x}_norm": f"{_BLOCK}self_attn.{x}_norm.weight" for x in "qk"},
    "post_attn_norm": f"{_BLOCK}post_attention_layernorm.weight",
    "post_ffn_norm": f"{_BLOCK}post_feedforward_layernorm.weight",
}
_WITHOUT_FFN = {k: v for k, v in _LLAMA.items() if ".mlp." not in v}
_EXPERTS = _WITHOUT_FFN | {"router": f"{_BLOCK}mlp.gate.weight"}
_EXPERTS |= {f"{x}_norm": f"{_BLOCK}self_attn.{x}_norm.weight" for x in "qk"}
_GRANITE_MOE = _WITHOUT_FFN | {"router": f"{_BLOCK}block_sparse_moe.router.layer.weight"}
_STABLELM = {
    **_LLAMA,
    "attn_norm_bias": f"{_BLOCK}input_layernorm.bias",
    "ffn_norm_bias": f"{_BLOCK}post_attention_layernorm.bias",
}
_PHI = {
    **{f"{x}_proj": f"{_BLOCK}self_attn.{x}_proj.weight" for x in "qkv"},
    **{f"{x}_bias": f"{_BLOCK}self_attn.{x}_proj.bias" for x in "qkv"},
    "o_proj": f"{_BLOCK}self_attn.dense.weight",
    "o_bias": f"{_BLOCK}self_attn.dense.bias",
    "attn_norm": f"{_BLOCK}input_layernorm.weight",
    "attn_norm_bias": f"{_BLOCK}input_layernorm.bias",
    "ffn_norm": f"{_BLOCK}input_layernorm.weight",
    "ffn_norm_bias": f"{_BLOCK}input_layernorm.bias",
    "up_proj": f"{_BLOCK}mlp.fc1.weight",
    "up_bias": f"{_BLOCK}mlp.fc1.bias",
    "down_proj": f"{_BLOCK}mlp.fc2.weight",
    "down_bias": f"{_BLOCK}mlp.fc2.bias",
}
_NEOX = {
    "o_proj": f"{_BLOCK}attention.dense.weight",
    "o_bias": f"{_BLOCK}attention.dense.bias",
    "attn_norm": f"{_BLOCK}input_layernorm.weight",
    "attn_norm_bias": f"{_BLOCK}input_layernorm.bias",
    "ffn_norm": f"{_BLOCK}post_attention_layernorm.weight",
    "ffn_norm_bias": f"{_BLOCK}post_attention_layernorm.bias",
    "up_proj": f"{_BLOCK}mlp.dense_h_to_4h.weight",
    "up_bias": f"{_BLOCK}mlp.dense_h_to_4h.bias",
    "down_proj": f"{_BLOCK}mlp.dense_4h_to_h.weight",
    "down_bias": f"{_BLOCK}mlp.dense_4h_to_h.bias",
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
    "qwen2": Family(qwen2_spec, *_MODEL, _LLAMA),
    "qwen3": Family(qwen3_spec, *_MODEL, _QWEN3),
    "gemma3_text": Family(gemma3_spec, *_MODEL, _GEMMA3, norm_plus_one=True, tied_default=True),
    "phi3": Family(phi3_spec, *_MODEL, _PHI3, fused=_phi3_fused),
    "smollm3": Family(smollm3_spec, *_MODEL, _LLAMA, tied_default=True),
    "granite": Family(granite_spec, *_MODEL, _LLAMA, logits_divisor="logits_scaling"),
    "olmo2": Family(olmo2_spec, *_MODEL, _OLMO2),
    "qwen3_moe": Family(qwen3_moe_spec, *_MODEL, _EXPERTS, fused=_experts_fused),
    "olmoe": Family(olmoe_spec, *_MODEL, _EXPERTS, fused=_experts_fused),
    "granitemoe": Family(
        granite_moe_spec,
        *_MODEL,
        _GRANITE_MOE,
        fused=_granite_fused,
        logits_divisor="logits_scaling",
    ),
    "stablelm": Family(
        stablelm_spec,
        *_MODEL,
        _STABLELM,
        parallel={
            "ffn_norm": _STABLELM["attn_norm"],
            "ffn_norm_bias": _STABLELM["attn_norm_bias"],
        },
    ),
    "phi": Family(phi_spec, "model.", "embed_tokens.weight", "final_layernorm.weight", _PHI),
    "gpt_neox": Family(
        neox_spec,
        "gpt_neox.",
        "embed_in.weight",
        "final_layer_norm.weight",
        _NEOX,
        head="embed_out.weight",
        fused=_neox_fused,
    ),
    "gpt2": Family(
        gpt2_spec,
        "transformer.",
        "wte.weight",
        "ln_f.weight",
        _GPT2,
        positions="wpe.weight",
        fused=_gpt2_fused,
        block="h.{i}.",
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
