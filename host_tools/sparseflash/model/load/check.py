"""One check that every loader ends with: shapes follow the spec and numbers are finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparseflash.base.errors import InputError
from sparseflash.model.spec import Matrix, Model, Position


def _finite(matrix: Matrix) -> bool:
    if isinstance(matrix, np.ndarray):
        return bool(np.isfinite(matrix).all())
    ok = bool(np.isfinite(matrix.d).all())
    m = getattr(matrix, "m", None)
    return ok and (m is None or bool(np.isfinite(m).all()))


def check_model(model: Model, path: Path) -> Model:
    """The same model, once its shapes and values are known to be sound.

    Raises:
        InputError: a tensor is missing, has another shape than the spec asks for,
            or holds values that are not finite.
    """
    s = model.spec
    positive = (s.vocab, s.dim, s.ffn_dim, s.n_layers, s.n_heads, s.n_kv_heads, s.head_dim)
    if min(positive) <= 0 or s.n_heads % s.n_kv_heads or len(s.layers) != s.n_layers:
        raise InputError(f"{path}: its layer, head or size counts contradict each other")

    def want(name: str, tensor: Matrix | None, shape: tuple[int, ...], needed: bool = True) -> None:
        if tensor is None:
            if needed:
                raise InputError(f"{path}: {name} is missing; convert the model again")
            return
        if tuple(tensor.shape) != shape:
            raise InputError(
                f"{path}: {name} has shape {tuple(tensor.shape)} where the configuration "
                f"asks for {shape}; convert the model again"
            )
        if not _finite(tensor):
            raise InputError(f"{path}: {name} holds values that are not finite numbers")

    if not 0 <= s.gate_inputs < s.dim:
        raise InputError(f"{path}: gate_inputs {s.gate_inputs} is not below dim {s.dim}")
    want("embed", model.embed, (s.vocab, s.dim))
    want("head", model.head, (s.vocab, s.dim), not s.tied_head)
    want("final_norm", model.final_norm, (s.dim,))
    want("final_norm_bias", model.final_norm_bias, (s.dim,), False)
    want("head_bias", model.head_bias, (s.vocab,), s.head_bias)
    if s.position is Position.LEARNED:
        want("positions", model.positions, (s.context + s.position_offset, s.dim))
    for i, layer in enumerate(model.layers):
        shapes: dict[str, tuple[tuple[int, ...], bool]] = {
            "attn_norm": ((s.dim,), s.pre_norms),
            "ffn_norm": ((s.dim,), s.pre_norms),
            "q_proj": ((s.q_dim, s.dim), True),
            "k_proj": ((s.kv_dim, s.dim), True),
            "v_proj": ((s.kv_dim, s.dim), True),
            "o_proj": ((s.dim, s.q_dim), True),
            "up_proj": ((s.ffn_dim, s.up_width), True),
            "down_proj": ((s.dim, s.ffn_dim), True),
            "gate_proj": ((s.ffn_dim, s.gate_width), s.gated),
            "router": ((s.experts, s.dim), s.experts > 0),
            "q_norm": ((s.q_dim if s.qk_norm_whole else s.head_dim,), s.qk_norm),
            "k_norm": ((s.kv_dim if s.qk_norm_whole else s.head_dim,), s.qk_norm),
            "post_attn_norm": ((s.dim,), s.sandwich_norms),
            "post_ffn_norm": ((s.dim,), s.sandwich_norms),
            "q_bias": ((s.q_dim,), s.attn_bias),
            "k_bias": ((s.kv_dim,), s.attn_bias),
            "v_bias": ((s.kv_dim,), s.attn_bias),
            "o_bias": ((s.dim,), s.out_bias),
            "gate_bias": ((s.ffn_dim,), s.gated and s.ffn_bias),
            "up_bias": ((s.ffn_dim,), s.ffn_bias),
            "down_bias": ((s.dim,), s.ffn_bias),
            "attn_norm_bias": ((s.dim,), False),
            "ffn_norm_bias": ((s.dim,), False),
        }
        for name, (shape, needed) in shapes.items():
            want(f"layer {i} {name}", getattr(layer, name), shape, needed)
        for name, size in (("x", s.dim), ("act", s.ffn_dim), ("h", s.ffn_dim)):
            own = getattr(layer.thresholds, name, None)
            want(f"layer {i} thresholds of {name}", own, (size,), s.own_thresholds)
    _check_ids(model, path)
    return model


def _check_ids(model: Model, path: Path) -> None:
    """Refuses ids of the tokenizer, or of a start or an end, without a row of the embedding."""
    s, tok = model.spec, model.tokenizer
    if tok is not None and tok.used_size > s.vocab:
        raise InputError(
            f"{path}: the tokenizer has {tok.used_size} tokens and the embedding {s.vocab} rows; "
            "give the tokenizer that belongs to these weights"
        )
    named = [("start", s.bos_id), *(("end", i) for i in s.eos_ids)]
    if tok is not None:
        named += [("start", tok.bos_id), ("end", tok.eos_id)]
    for name, i in named:
        if i >= s.vocab or i < -1:
            raise InputError(
                f"{path}: the id of its {name} token is {i} and the embedding has {s.vocab} rows; "
                "correct the configuration"
            )
