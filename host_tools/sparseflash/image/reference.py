"""The integer reference: docs/SPEC.md "Numbers" in numpy, from the bytes of a flash image.

It runs all positions of a sequence at once but defines each of them alone; the
C in ``firmware/`` must give the same bits. Every sum is an integer sum, so no
order of additions can change a result; floats are only ever elementwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sparseflash.base.progress import each
from sparseflash.image.bfp import F32, S_MIN, Bfp, magnitude, pow2, quantize_bfp, quantize_vector
from sparseflash.image.formats import INPUTS, SITES, THRESHOLDS
from sparseflash.image.grids import Blocks, linear
from sparseflash.image.proxy import agreeing_signs
from sparseflash.image.screen import largest, screened
from sparseflash.image.sfm import Image
from sparseflash.model.spec import Activation, ModelSpec, Norm, Position

Sites = dict[str, np.ndarray]
Product = Callable[[str, str, Blocks, np.ndarray], np.ndarray]
"""Name of a projection, site of its input, A or the whole matrix, input (T, n)."""
HASH_MULTIPLIER = 0x01000193


def rmsnorm(x: np.ndarray, w: np.ndarray, eps: float) -> np.ndarray:
    """x / rms(x) * w over the last axis."""
    n = x.shape[-1]
    s = np.clip(14 - ((magnitude(x).max(-1) >> np.uint32(23)).astype(np.int64) - 127), S_MIN, 60)
    q = np.rint(x * pow2(s)[..., None]).astype(np.int64)
    mean = (q * q).sum(-1).astype(F32) / F32(n) * pow2(-2 * s)
    inverse = F32(1) / np.sqrt(mean + F32(eps))
    return np.asarray(x * inverse[..., None] * w, F32)


def layernorm(x: np.ndarray, w: np.ndarray, b: np.ndarray, eps: float) -> np.ndarray:
    """(x - mean) / standard deviation * w + b over the last axis."""
    n = x.shape[-1]
    s = np.clip(14 - ((magnitude(x).max(-1) >> np.uint32(23)).astype(np.int64) - 127), S_MIN, 60)
    q = np.rint(x * pow2(s)[..., None]).astype(np.int64)
    total = q.sum(-1)
    mean = total.astype(F32) / F32(n) * pow2(-s)
    spread = n * (q * q).sum(-1) - total * total
    variance = spread.astype(F32) / F32(n) / F32(n) * pow2(-2 * s)
    inverse = F32(1) / np.sqrt(variance + F32(eps))
    return np.asarray((x - mean[..., None]) * inverse[..., None] * w + b, F32)


def exp2n(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2^-(x/65536) = m * 2^-(16+e) for integers x: (m, e)."""
    f = x & 0xFFFF
    t = 3498 - ((f * 453) >> 16)
    t = 15699 - ((f * t) >> 16)
    t = 45422 - ((f * t) >> 16)
    return 65536 - ((f * t) >> 16), x >> 16


def sigmoid(x: np.ndarray) -> np.ndarray:
    t = np.minimum(np.abs(x) * F32(94548.46), F32(2031616))
    m, e = exp2n(t.astype(np.int64))
    inverse = 0xFFFFFFFF // (65536 + (m >> e))
    negative = (m * inverse).astype(F32) * pow2(-32 - e)
    return np.where(x < 0, negative, inverse.astype(F32) * F32(2.0**-16))


def activate(kind: Activation, x: np.ndarray) -> np.ndarray:
    if kind is Activation.SILU:
        return x * sigmoid(x)
    if kind is Activation.GELU_TANH:
        return x * sigmoid(x * (F32(0.07135481) * (x * x) + F32(1.5957691)))
    if kind is Activation.GELU:
        square = x * x
        z = np.where(square < 49, square, F32(49))
        p = (z * F32(-7.0304013e-4) + F32(7.4011322e-2)) * z + F32(1.5950158)
        return x * sigmoid(x * p)
    return np.where(x > 0, x, F32(0))


def rope_angles(inc: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, float32 (T, head_dim/2)."""
    phase = positions.astype(np.uint32)[:, None] * inc[None]
    quadrant = (phase + np.uint32(0x20000000)) >> np.uint32(30)
    r = (phase - (quadrant << np.uint32(30))).view(np.int32)
    x = r.astype(F32) * F32(1.4629180793e-9)
    z = x * x
    s = z * F32(-1.9515296e-4)
    s = (s + F32(8.332161e-3)) * z
    s = (s - F32(1.6666655e-1)) * z
    s = s * x + x
    c = z * F32(2.4433157e-5)
    c = (c - F32(1.3887316e-3)) * z
    c = (c + F32(4.1666646e-2)) * z
    c = (c - F32(0.5)) * z + F32(1)
    odd = (quadrant & np.uint32(1)).astype(bool)
    cos, sin = np.where(odd, s, c), np.where(odd, c, s)
    cos = np.where((quadrant == 1) | (quadrant == 2), -cos, cos)
    sin = np.where(quadrant >= 2, -sin, sin)
    return cos, sin


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotates heads (T, H, head_dim), half-split pairs."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


_V = np.rint(32766 * 2.0 ** (-np.arange(33) / 32)).astype(np.int64)
_SLOPE = -32 * (_V[:-1] - _V[1:])
_STEP = (_V[:-1] << 16) + (_SLOPE & 0xFFFF)
X_LIMIT = 2**17 - 1


def attend(
    q: np.ndarray,
    kq: np.ndarray,
    ks: np.ndarray,
    vq: np.ndarray,
    vs: np.ndarray,
    least: tuple[np.ndarray, np.ndarray],
    scale: np.float32,
) -> np.ndarray:
    """One position: q (H, hd) over n cached positions kq, vq (n, H, hd), ks, vs (n, H).

    least: exponents (H,) that none of ks, vs is below.
    """
    q16, sq = quantize_vector(q, 16)
    dot = np.einsum("hd,nhd->nh", q16, kq)
    bits = int(np.asarray(scale, F32).view(np.uint32))
    c = ((bits & 0x7FFFFF) | 0x800000) << 7
    right = sq + least[0] - ((bits >> 23) - 127) - 14
    factor = c >> np.minimum(ks - least[0] + np.maximum(right, 0), 31)
    score = (dot * factor) >> 32
    x = (score.max(0)[None] - score) << np.clip(-right, 0, 10)
    x = np.minimum(x, X_LIMIT)
    step = x >> 7 & 31
    n = len(score)
    headroom = 0
    while n > 2 << headroom:
        headroom += 1
    p = (_STEP[step] + 16 * (x & 127) * _SLOPE[step]) >> ((x >> 12) + headroom)
    shift = max(16 - headroom, 8)
    far = np.minimum(vs - least[1] + shift, 40)
    coefficient = (p + (1 << (far - 1))) >> far
    acc = np.einsum("nh,nhd->hd", coefficient, vq)
    unit = pow2(shift - least[1]) / p.sum(0).astype(F32)
    return np.asarray(acc.astype(F32) * unit[:, None], F32)


def routes(logits: np.ndarray, spec: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
    """Of each expert what it counts, float32 (T, experts), and whether it is chosen, bool."""
    chosen = np.zeros_like(logits, bool)
    np.put_along_axis(chosen, largest(logits, spec.experts_used), True, -1)
    below = np.minimum((logits.max(-1, keepdims=True) - logits) * F32(94548.46), F32(2031616))
    m, e = exp2n(below.astype(np.int64))
    p = (m << 8) >> e
    total = np.where(chosen | (not spec.experts_normed), p, 0).sum(-1, keepdims=True)
    return np.where(chosen, p.astype(F32) / total.astype(F32), F32(0)), chosen


def site_hash(x: np.ndarray) -> np.ndarray:
    """h = h * multiplier + word over the float bits of each row: uint32 (T,)."""
    words = np.ascontiguousarray(x, F32).view(np.uint32)
    n = words.shape[-1]
    powers = np.ones(n, np.uint32)
    powers[1:] = HASH_MULTIPLIER
    powers = np.multiply.accumulate(powers)[::-1]
    return (words * powers).sum(-1, dtype=np.uint32)


@dataclass
class Run:
    """What a run of T tokens gave."""

    logits: np.ndarray  # float32 (T, vocab)
    sites: list[dict[str, np.ndarray]] = field(default_factory=list)
    """By layer and site, float32 (T, n)."""
    neurons: int = 0
    """FFN neurons that contributed, over all tokens and layers."""

    def hashes(self) -> np.ndarray:
        """Trace as the device gives it: uint32 (T, layers, sites)."""
        return np.stack(
            [np.stack([site_hash(layer[s]) for s in SITES], axis=-1) for layer in self.sites],
            axis=1,
        )


class Reference:
    """Integer reference of one image."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.spec = image.spec
        self.vectors, self.last = image.vectors()

    def run(
        self,
        ids: np.ndarray,
        thresholds: np.ndarray | None = None,
        keep_sites: bool = True,
        logits_from: int = 0,
        head_rows: int = 0,
    ) -> Run:
        """Teacher-forced pass over ``ids`` (T,) from position 0.

        thresholds: float32 (layers, 12) in the order of THRESHOLDS; None is dense.
        head_rows: rows that a screened head computes exactly; 0 is the exact head.
        """
        spec = self.spec
        ids = np.asarray(ids)
        t = len(ids)
        x = self.image.embed().rows(ids).float32()
        if spec.embed_scale != 1.0:
            x = x * F32(spec.embed_scale)
        if spec.position is Position.LEARNED:
            x = x + self.image.blocks("positions").rows(np.arange(t)).float32()
        if thresholds is None:
            thresholds = np.zeros((spec.n_layers, len(THRESHOLDS)), F32)
        inc = self.image.rope()
        out = Run(np.empty(0, F32))
        scale = F32(spec.score_scale * 1.4426950408889634)
        for i in each("computing the reference, layers", range(spec.n_layers)):
            site: dict[str, np.ndarray] = {}
            x, alive = self._layer(i, x, thresholds[i], inc[i], scale, t, site)
            out.neurons += alive
            if keep_sites:
                out.sites.append(site)
        b = quantize_bfp(self.normed(x[logits_from:], self.last, "final_norm"))
        out.logits = linear(self.image.head())(b)
        if spec.head_bias:
            out.logits = out.logits + self.last["head_bias"]
        if head_rows:
            out.logits = screened(linear(self.image.head_proxy())(b), out.logits, head_rows)
        return out

    def predicted(self, i: int, site: dict[str, np.ndarray]) -> np.ndarray:
        """What t_predictor of layer ``i`` is compared with, float32 (T, ffn).

        The |h| that proxies or the low-rank predictor expect, or how many signs agree.
        """
        if self.image.predictor_grid == "signs":
            return agreeing_signs(self.image.signs(i), site["ffn_in"])
        spec, vec = self.spec, self.vectors[i]
        x = quantize_bfp(site["attn_in" if self.image.ahead else "ffn_in"])
        if self.image.rank:
            x = quantize_bfp(linear(self.image.blocks("predictor_b", i))(x))
        values = {}
        for m in ("gate", "up") if spec.gated else ("up",):
            values[m] = linear(self.image.blocks(f"predictor_{m}", i))(x)
            if spec.ffn_bias:
                values[m] = values[m] + vec[f"{m}_bias"]
        if not spec.gated:
            return np.abs(activate(spec.activation, values["up"]))
        return np.abs(activate(spec.activation, values["gate"]) * values["up"])

    def kept(self, i: int, site: str, x: np.ndarray, limit: np.float32) -> np.ndarray:
        """Which entries of an input or h (T, n) of layer ``i`` a threshold leaves, bool.

        The score of an entry is its magnitude, or that times the norm of the column it meets.
        """
        score = np.abs(x)
        if site in self.image.norms:
            score = score * self.vectors[i][f"{site}_column_norm"]
        if limit <= 0 or not self.image.top_k:
            return np.asarray(score >= limit)
        out = np.zeros(x.shape, bool)
        np.put_along_axis(out, largest(score, int(limit)), True, -1)
        return out

    def normed(self, x: np.ndarray, vec: dict[str, np.ndarray], name: str) -> np.ndarray:
        """x by the norm ``name``; x itself where the model has none."""
        if name not in vec:
            return x
        if self.spec.norm is Norm.LAYER:
            return layernorm(x, vec[name], vec[f"{name}_bias"], self.spec.norm_eps)
        return rmsnorm(x, vec[name], self.spec.norm_eps)

    def _layer(
        self,
        i: int,
        x: np.ndarray,
        limit: np.ndarray,
        inc: np.ndarray,
        scale: np.float32,
        t: int,
        site: dict[str, np.ndarray],
    ) -> tuple[np.ndarray, int]:
        spec, vec = self.spec, self.vectors[i]
        eps = spec.norm_eps
        wq, wk, wv, wo = self.image.attention(i)
        y = self.normed(x, vec, "attn_norm")
        site["attn_in"] = y
        dropped = dict(zip(INPUTS, limit[len(THRESHOLDS) - len(INPUTS) :]))

        def masked(site: str, x: np.ndarray) -> Bfp:
            """The input without the entries that its matrix's threshold drops."""
            return quantize_bfp(np.where(self.kept(i, site, x, dropped[site]), x, F32(0)))

        def product(name: str, site: str, w: Blocks, x: np.ndarray) -> np.ndarray:
            """W x, or A (B x) of a projection in factors."""
            pair, v = self.image.factors(i, name), masked(site, x)
            return linear(w)(v if pair is None else quantize_bfp(linear(pair[0])(v)))

        q, k, v = (product(n, n, w, y) for n, w in zip("qkv", (wq, wk, wv)))
        if spec.attn_bias:
            q, k, v = q + vec["q_bias"], k + vec["k_bias"], v + vec["v_bias"]
        if spec.qk_norm_whole:
            q, k = rmsnorm(q, vec["q_norm"], eps), rmsnorm(k, vec["k_norm"], eps)
        q = q.reshape(t, spec.n_heads, spec.head_dim)
        k = k.reshape(t, spec.n_kv_heads, spec.head_dim)
        v = v.reshape(t, spec.n_kv_heads, spec.head_dim)
        if spec.qk_norm and not spec.qk_norm_whole:
            q, k = rmsnorm(q, vec["q_norm"], eps), rmsnorm(k, vec["k_norm"], eps)
        cos, sin = rope_angles(inc, np.arange(t))
        q, k = rope(q, cos, sin), rope(k, cos, sin)
        site["q"] = q.reshape(t, -1)
        kq, ks = quantize_vector(k, 8)
        vq, vs = quantize_vector(v, 8)
        repeat = spec.n_heads // spec.n_kv_heads
        kq, ks = kq.repeat(repeat, 1), ks.repeat(repeat, 1)
        vq, vs = vq.repeat(repeat, 1), vs.repeat(repeat, 1)
        k_least, v_least = np.minimum.accumulate(ks), np.minimum.accumulate(vs)
        window = spec.layers[i].window
        heads = np.empty_like(q)
        for p in range(t):
            first = max(0, p + 1 - window) if window else 0
            s = slice(first, p + 1)
            least = k_least[p], v_least[p]
            heads[p] = attend(q[p], kq[s], ks[s], vq[s], vs[s], least, scale)
        y = heads.reshape(t, -1)
        site["attn"] = y
        y = product("o", "o", wo, y)
        if spec.out_bias:
            y = y + vec["o_bias"]
        if spec.sandwich_norms:
            y = rmsnorm(y, vec["post_attn_norm"], eps)
        branch = x + y
        y = self.normed(x if spec.parallel else branch, vec, "ffn_norm")
        site["ffn_in"] = y
        y, active = self._ffn(i, y, limit, product, site)
        x = branch + y
        site["residual"] = x
        return x, active

    def _ffn(
        self, i: int, x: np.ndarray, limit: np.ndarray, product: Product, site: Sites
    ) -> tuple[np.ndarray, int]:
        """What the FFN of layer ``i`` adds, from its normed input (T, dim); neurons that did."""
        spec, vec = self.spec, self.vectors[i]
        gate_proj, up_proj, down_proj = self.image.ffn(i)
        up = product("up", "xu", up_proj, x[:, spec.dim - spec.up_width :])
        if spec.ffn_bias:
            up = up + vec["up_bias"]
        if gate_proj is None:
            h = activate(spec.activation, up)
            active = np.ones_like(h, bool)
        else:
            to_gate = x[:, : spec.gate_width]
            if spec.own_thresholds:
                to_gate = np.where(np.abs(x) >= vec["x_threshold"], x, F32(0))
            gate = product("gate", "xg", gate_proj, to_gate)
            if spec.ffn_bias:
                gate = gate + vec["gate_bias"]
            act = activate(spec.activation, gate)
            active = np.abs(act) >= F32(spec.act_threshold)
            if spec.experts:
                logits = linear(self.image.blocks("router", i))(quantize_bfp(x))
                neurons = spec.ffn_dim // spec.experts
                weight, chosen = (v.repeat(neurons, -1) for v in routes(logits, spec))
                act, active = act * weight, active & chosen
            h = act * up
            if spec.own_thresholds:
                active &= np.abs(act) >= vec["act_threshold"]
                active &= np.abs(h) >= vec["h_threshold"]
            active &= (np.abs(gate) >= limit[0]) & (np.abs(act) >= limit[1])
            active &= np.abs(up) >= limit[2]
        if limit[5] > 0:
            active &= self.predicted(i, site) >= limit[5]
        if limit[3] > 0:
            active = self.kept(i, "h", np.where(active, h, F32(0)), limit[3])
        h = np.where(active, h, F32(0))
        site["h"] = h
        y = linear(down_proj)(quantize_bfp(h))
        if spec.ffn_bias:
            y = y + vec["down_bias"]
        y = np.where(np.abs(y) >= limit[4], y, F32(0))
        site["ffn_out"] = y
        if spec.sandwich_norms:
            y = rmsnorm(y, vec["post_ffn_norm"], spec.norm_eps)
        return y, int(active.sum())
