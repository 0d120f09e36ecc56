"""Rotary positions: the frequency of every pair of a head, and what scales it.

A pair is (i, i + head_dim/2); position p turns it by p * frequency[i]. Scalings are divisors of
the plain frequencies theta^(-2i/dims), so whoever computes angles knows one formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparseflash.base.errors import InputError, UnsupportedError
from sparseflash.model.spec import LayerSpec


def plain(theta: float, dims: int) -> np.ndarray:
    """theta^(-2i/dims) for every pair, float64 (dims/2,), in radians a position."""
    return np.asarray(theta ** (-2.0 * np.arange(dims // 2) / dims))


def frequencies(layer: LayerSpec, head_dim: int) -> np.ndarray:
    """Radians a position of every pair of a layer, float64 (head_dim/2,); 0 does not turn."""
    out = np.zeros(head_dim // 2)
    dims = layer.turning(head_dim)
    if dims:
        factors = np.asarray(layer.rope_factors or 1.0, np.float64)
        out[: dims // 2] = plain(layer.rope_theta, dims) / layer.rope_scale / factors
    return out


def llama3_factors(
    theta: float, dims: int, factor: float, low: float, high: float, original: float
) -> tuple[float, ...]:
    """Divisors of Llama 3.1: long waves by ``factor``, short ones by 1, a ramp between.

    ``low`` and ``high`` are original_context / wavelength where the ramp starts and ends.
    """
    f = plain(theta, dims)
    wave = 2 * math.pi / f
    smooth = (original / wave - low) / (high - low)
    mixed = (1 - smooth) * f / factor + smooth * f
    scaled = np.where(wave > original / low, f / factor, np.where(wave < original / high, f, mixed))
    return tuple(float(v) for v in f / scaled)


def yarn_factors(
    theta: float,
    dims: int,
    factor: float,
    original: float,
    fast: float = 32.0,
    slow: float = 1.0,
    truncate: bool = True,
) -> tuple[float, ...]:
    """Divisors of YaRN: pairs that turn ``fast`` times or more in the original context keep
    their frequency, those that turn ``slow`` times or less are divided by ``factor``."""

    def pair(turns: float) -> float:
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(fast), pair(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dims // 2) - low) / (high - low), 0, 1)
    return tuple(float(v) for v in 1 / (ramp / factor + (1 - ramp)))


def yarn_gain(factor: float, mscale: float = 1.0) -> float:
    """What YaRN multiplies cosine and sine by."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def scaling_of(
    scaling: Mapping[str, Any], theta: float, dims: int, context: int, original: int = 0
) -> tuple[float, tuple[float, ...], float, int]:
    """(linear scale, factors, gain of cosine and sine, usable context) of a Hugging Face
    ``rope_scaling``.

    original: the trained context beside the scaling (Phi-3), 0 when it is inside or absent.

    Raises:
        InputError: a value is missing. UnsupportedError: another kind of scaling.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default")) or "default"

    def number(key: str) -> float:
        value = scaling.get(key)
        if value is None:
            raise InputError(f"RoPE scaling {kind!r} lacks {key!r}; export the checkpoint again")
        return float(value)

    if kind == "default":
        return 1.0, (), 1.0, context
    if kind == "linear":
        return number("factor"), (), 1.0, context
    before = float(scaling.get("original_max_position_embeddings") or original or context)
    if kind == "llama3":
        if scaling.get("original_max_position_embeddings") is None:
            number("original_max_position_embeddings")
        low, high = number("low_freq_factor"), number("high_freq_factor")
        factors = llama3_factors(theta, dims, number("factor"), low, high, before)
        return 1.0, factors, 1.0, context
    if kind == "yarn":
        factor = number("factor")
        fast, slow = scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1
        truncate = bool(scaling.get("truncate", True))
        factors = yarn_factors(theta, dims, factor, before, float(fast), float(slow), truncate)
        gain = scaling.get("attention_factor")
        if gain is None:
            all_dims, mscale = scaling.get("mscale_all_dim"), scaling.get("mscale")
            gain = yarn_gain(factor)
            if mscale and all_dims:
                gain = yarn_gain(factor, float(mscale)) / yarn_gain(factor, float(all_dims))
        return 1.0, factors, float(gain), context
    if kind == "longrope":
        # Two tables, chosen by the length; the short one holds for the trained context.
        short = tuple(float(v) for v in scaling.get("short_factor") or ())
        if len(short) != dims // 2:
            raise InputError(f"RoPE scaling 'longrope' has {len(short)} factors for {dims // 2}")
        trained = int(original or context)
        ratio = context / trained if original else float(scaling.get("factor") or 1.0)
        gain = scaling.get("attention_factor")
        if gain is None:
            gain = math.sqrt(1 + math.log(ratio) / math.log(trained)) if ratio > 1 else 1.0
        return 1.0, short, float(gain), min(context, trained)
    raise UnsupportedError(
        f"RoPE scaling {kind!r} is not supported; known are linear, llama3, yarn and longrope"
    )
