"""A Llama-like decoder in torch whose FFN reads less, with a dense twin as its teacher.

Shapes: L layers, V vocabulary, D width, F neurons of the FFN, B windows of T tokens. The FFN is
held by lines (see ``model.load.delta``): gate (L, D, F), up (L, F, D), down (L, F, D), so that
groups of 32 along the last axis are the groups of grid s4.

Masks, in order: gate reads the inputs with abs(x) >= t_x, up the neurons with
abs(silu(gate)) >= t_act, down those with abs(h) >= t_h. A threshold is
t = exp(log_t[budget, layer, site]) * vector[site][layer, j]; ``vector`` is fixed at the start
(one over the weight that an entry meets), log_t follows a density. Norms are trained for each
budget alone, (budgets, ...): what is dropped changes how large the rest should be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflash.base.errors import UnsupportedError
from sparseflash.model.load import delta as fmt
from sparseflash.model.spec import LayerSpec, Model, ModelSpec, as_float32

BAND = 0.5
"""Half width of the band around a threshold (as a ratio) in which the mask has a gradient."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like decoder."""

    vocab: int
    dim: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    theta: float
    eps: float


@dataclass
class Base:
    """Weights of the dense model, float32 arrays; the frozen part and the start of the rest."""

    shape: Shape
    embed: Any  # (V, D)
    attn_norm: Any  # (L, D)
    qkv: Any  # (L, q+k+v, D), RoPE half-split
    out: Any  # (L, D, q)
    ffn_norm: Any  # (L, D)
    gate: Any  # (L, D, F)
    up: Any  # (L, F, D)
    down: Any  # (L, F, D)
    final_norm: Any  # (D,)
    head: Any = None  # (V, D); None when tied

    def lines(self, layer: int) -> dict[str, np.ndarray]:
        return {m: np.asarray(getattr(self, m)[layer]) for m in fmt.MATRICES}


def base_of(model: Model) -> Base:
    """The weights of a loaded model.

    Raises:
        UnsupportedError: the model has what this student does not compute (biases, other norms,
            activations or positions), or widths that are no multiple of 32.
    """
    s = model.spec
    # Whatever a spec can say beyond a plain Llama is not computed here, now or later.
    plain = ModelSpec(
        s.family,
        s.vocab,
        s.dim,
        s.ffn_dim,
        s.n_layers,
        s.n_heads,
        s.n_kv_heads,
        s.head_dim,
        s.context,
        (LayerSpec(rope_theta=s.layers[0].rope_theta),) * s.n_layers,
        norm_eps=s.norm_eps,
        tied_head=s.tied_head,
        bos_id=s.bos_id,
        eos_ids=s.eos_ids,
        chat_template=s.chat_template,
    )
    if s != plain or s.dim % 32 or s.ffn_dim % 32:
        raise UnsupportedError(
            f"{model.name}: distill handles plain Llama-like models (SiLU, RMS norm, RoPE, no "
            "biases, widths in multiples of 32); this one has something else"
        )
    shape = Shape(
        s.vocab,
        s.dim,
        s.ffn_dim,
        s.n_layers,
        s.n_heads,
        s.n_kv_heads,
        s.head_dim,
        s.layers[0].rope_theta,
        s.norm_eps,
    )
    y = model.layers

    def stack(rows: list[Any]) -> np.ndarray:
        return np.stack(rows)

    qkv = [np.concatenate([as_float32(p) for p in (a.q_proj, a.k_proj, a.v_proj)]) for a in y]
    return Base(
        shape,
        as_float32(model.embed),
        stack([a.attn_norm for a in y]),
        stack(qkv),
        stack([as_float32(a.o_proj) for a in y]),
        stack([a.ffn_norm for a in y]),
        stack([fmt.lines_of(a, "gate") for a in y]),
        stack([fmt.lines_of(a, "up") for a in y]),
        stack([fmt.lines_of(a, "down") for a in y]),
        model.final_norm,
        None if model.head is None else as_float32(model.head),
    )


def random_base(shape: Shape, seed: int = 0) -> Base:
    """Random weights, for tests."""
    g = np.random.default_rng(seed)

    def r(*size: int, scale: float = 0.1) -> np.ndarray:
        return (g.standard_normal(size) * scale).astype(np.float32)

    n, d, f = shape.layers, shape.dim, shape.ffn
    q = shape.heads * shape.head_dim
    kv = shape.kv_heads * shape.head_dim
    one = np.ones((n, d), np.float32)
    return Base(
        shape,
        r(shape.vocab, d, scale=0.25),
        one,
        r(n, q + 2 * kv, d, scale=0.2),
        r(n, d, q),
        one.copy(),
        r(n, d, f, scale=0.3),
        r(n, f, d, scale=0.3),
        r(n, f, d, scale=0.3),
        np.ones(d, np.float32),
    )


def rms(x: Tensor, w: Tensor, eps: float) -> Tensor:
    f = x.float()
    return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + eps) * w.float()).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return x * cos + torch.cat((-b, a), -1) * sin


def drop(v: Tensor, inverse: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Entries below their threshold become 0; also the density of each window (B,).

    ``inverse`` (n,) is 1 / vector, ``scale`` (B,) is exp(-log_t). Kept entries pass their
    gradient; near the threshold a rectangle kernel gives the mask's gradient to the value.
    """
    ratio = v.float().abs() * inverse * scale[:, None, None]
    mask = ratio >= 1
    soft = ((ratio - 1) / (2 * BAND) + 0.5).clamp(0, 1)
    kept = v * mask.to(v.dtype)
    edge = v.detach() * (soft - soft.detach()).to(v.dtype)
    return kept + edge, mask.float().mean((1, 2))


def attention(
    s: Shape, x: Tensor, cos: Tensor, sin: Tensor, norm: Tensor, qkv: Tensor, out: Tensor
) -> Tensor:
    b, t, _ = x.shape
    y = F.linear(rms(x, norm, s.eps), qkv).view(b, t, s.heads + 2 * s.kv_heads, s.head_dim)
    q, k, v = y.transpose(1, 2).split((s.heads, s.kv_heads, s.kv_heads), 1)
    a = F.scaled_dot_product_attention(
        rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True
    )
    return x + F.linear(a.transpose(1, 2).reshape(b, t, s.heads * s.head_dim), out)


def dense_block(
    s: Shape,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    attn_norm: Tensor,
    qkv: Tensor,
    out: Tensor,
    ffn_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
) -> Tensor:
    x = attention(s, x, cos, sin, attn_norm, qkv, out)
    y = rms(x, ffn_norm, s.eps)
    return x + (F.silu(y @ gate) * F.linear(y, up)) @ down


def sparse_block(
    s: Shape,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    attn_norm: Tensor,
    qkv: Tensor,
    out: Tensor,
    ffn_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    inv_x: Tensor,
    inv_act: Tensor,
    inv_h: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """One layer; ``scale`` (3, B). Also the densities (3, B) of x, act and h."""
    x = attention(s, x, cos, sin, attn_norm, qkv, out)
    y = rms(x, ffn_norm, s.eps)
    yx, dx = drop(y, inv_x, scale[0])
    a, da = drop(F.silu(yx @ gate), inv_act, scale[1])
    h, dh = drop(a * F.linear(y, up), inv_h, scale[2])
    return x + h @ down, torch.stack((dx, da, dh))


class Quantise(torch.autograd.Function):
    """base + change, rounded to s4; the gradient passes straight to the change where it fits."""

    @staticmethod
    def forward(ctx: Any, change: Tensor, base: Tensor, d: Tensor, dtype: torch.dtype) -> Tensor:
        out, inside = _round(change, base, d, dtype)
        ctx.save_for_backward(inside)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return _pass(grads[0], inside), None, None, None


def _round_plain(
    change: Tensor, base: Tensor, d: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    step = d.float()[..., None]
    v = (base + change).view(*d.shape, fmt.GROUP) / step
    inside = (v >= -9) & (v <= 8)
    return (v.round().clamp(-8, 7) * step).view(base.shape).to(dtype), inside.view(base.shape)


def _pass_plain(grad: Tensor, inside: Tensor) -> Tensor:
    return torch.where(inside, grad.float(), 0.0)


_round: Callable[..., Any] = _round_plain
_pass: Callable[..., Any] = _pass_plain
_dense: Callable[..., Any] = dense_block
_sparse: Callable[..., Any] = sparse_block
_kl: Callable[..., Any]


def divergence(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) of logits (n, V) in nats, and its gradient to the student's."""
    ls = torch.log_softmax(student.float(), -1)
    lt = torch.log_softmax(teacher.float(), -1)
    p = lt.exp()
    return (p * (lt - ls)).sum(-1), (ls.exp() - p).to(student.dtype)


_kl = divergence


def compile_all() -> None:
    """Compiles the heavy functions; once a process, on a GPU."""
    global _round, _pass, _dense, _sparse, _kl
    import torch._dynamo

    torch._dynamo.config.cache_size_limit = 64
    _round, _pass, _dense, _sparse, _kl = (
        torch.compile(f, dynamic=False)
        for f in (_round_plain, _pass_plain, dense_block, sparse_block, divergence)
    )


class HeadKL(torch.autograd.Function):
    """Mean KL over a frozen head, in chunks: logits of all tokens never exist together."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, head: Tensor, chunk: int) -> Tensor:
        grad = torch.empty_like(student)
        losses = []
        for i in range(0, student.shape[0], chunk):
            s = slice(i, i + chunk)
            loss, g = _kl(student[s] @ head.T, teacher[s] @ head.T)
            losses.append(loss)
            grad[s] = g @ head
        ctx.save_for_backward(grad)
        return torch.cat(losses).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * (grads[0] / grad.shape[0]), None, None, None


FFN = fmt.MATRICES
NORMS = fmt.NORMS


class Student:
    """Base weights, the change that is trained, thresholds, and both forward passes."""

    def __init__(self, base: Base, budgets: int, device: str, dtype: torch.dtype) -> None:
        self.shape = s = base.shape
        self.device = device
        self.dtype = dtype
        self.base = {
            f.name: torch.from_numpy(np.ascontiguousarray(getattr(base, f.name))).to(device)
            for f in fields(base)
            if f.name not in ("shape", "head")
        }
        head = base.embed if base.head is None else base.head
        self.head32 = torch.from_numpy(np.ascontiguousarray(head)).to(device)
        self.frozen = {n: self.base[n].to(dtype) for n in ("embed", "qkv", "out", *FFN)}
        self.head = self.head32.to(dtype)
        self.d0 = {
            m: torch.from_numpy(fmt.base_scales(np.asarray(getattr(base, m)))).to(device)
            for m in FFN
        }
        self.e = {m: torch.zeros_like(self.d0[m], dtype=torch.int8) for m in FFN}
        self.d = dict(self.d0)
        self.change = {m: torch.zeros_like(self.base[m]).requires_grad_() for m in FFN}
        self.norms = {n: torch.stack([self.base[n]] * budgets).requires_grad_() for n in NORMS}
        n = s.layers
        self.vector = {
            site: torch.ones(n, s.dim if site == "x" else s.ffn, device=device)
            for site in fmt.SITES
        }
        self.log_t = torch.full((budgets, n, 3), -20.0, device=device)
        pos = torch.arange(8192, device=device).float()
        f = s.theta ** -(torch.arange(0, s.head_dim, 2, device=device).float() / s.head_dim)
        angles = torch.cat([pos[:, None] * f] * 2, -1)
        self.cos, self.sin = angles.cos(), angles.sin()

    def scales_of(self, e: dict[str, Tensor]) -> dict[str, Tensor]:
        """float16 d of each group from scale codes, as ``delta.scales``."""
        return {m: (self.d0[m].float() * ((16 + e[m].float()) / 16)).half() for m in FFN}

    @torch.no_grad()
    def refresh_scales(self) -> None:
        """Takes the scale code of least squared error for each group of the current weights."""
        for m in FFN:
            for i in range(self.shape.layers):
                d0 = self.d0[m][i]
                w = (self.base[m][i] + self.change[m][i]).view(*d0.shape, fmt.GROUP)
                best = torch.full(d0.shape, float("inf"), device=self.device)
                for k in sorted(range(-fmt.SCALE_CODES, fmt.SCALE_CODES + 1), key=abs):
                    step = (d0.float() * ((16 + k) / 16)).half().float()[..., None]
                    error = ((w / step).round().clamp(-8, 7) * step - w).pow(2).sum(-1)
                    better = error < best * 0.98
                    best = torch.where(better, error, best)
                    self.e[m][i][better] = k
        self.d = self.scales_of(self.e)

    def ffn_weights(self, quantised: bool, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The three stacks of the student's weights, rounded to s4 or not."""
        dtype = dtype or self.dtype
        if quantised:
            return {m: Quantise.apply(self.change[m], self.base[m], self.d[m], dtype) for m in FFN}
        return {m: (self.base[m] + self.change[m]).to(dtype) for m in FFN}

    def teacher(self, ids: Tensor) -> Tensor:
        """Last hidden state of the dense model, (B, T, D)."""
        s, w = self.shape, self.frozen
        x = F.embedding(ids, w["embed"])
        cos, sin = self._angles(ids.shape[1], x.dtype)
        for i in range(s.layers):
            x = _dense(
                s,
                x,
                cos,
                sin,
                self.base["attn_norm"][i],
                w["qkv"][i],
                w["out"][i],
                self.base["ffn_norm"][i],
                w["gate"][i],
                w["up"][i],
                w["down"][i],
            )
        return rms(x, self.base["final_norm"], s.eps)

    def forward(self, ids: Tensor, which: Tensor, quantised: bool) -> tuple[Tensor, Tensor]:
        """Last hidden state (B, T, D), densities (L, 3, B); ``which`` (B,) chooses the budget."""
        s = self.shape
        x = F.embedding(ids, self.frozen["embed"])
        cos, sin = self._angles(ids.shape[1], x.dtype)
        w = {m: t.unbind(0) for m, t in self.ffn_weights(quantised).items()}
        inverse = {k: v.reciprocal() for k, v in self.vector.items()}
        scale = torch.exp(-self.log_t)[which]  # (B, L, 3)
        norm1, norm2 = (self.norms[n][which].unbind(1) for n in NORMS[:2])  # L times (B, D)
        densities = []
        for i in range(s.layers):
            x, density = _sparse(
                s,
                x,
                cos,
                sin,
                norm1[i][:, None],
                self.frozen["qkv"][i],
                self.frozen["out"][i],
                norm2[i][:, None],
                w["gate"][i],
                w["up"][i],
                w["down"][i],
                inverse["x"][i],
                inverse["act"][i],
                inverse["h"][i],
                scale[:, i].T.contiguous(),
            )
            densities.append(density)
        last = self.norms["final_norm"][which][:, None]
        return rms(x, last, s.eps), torch.stack(densities)

    def _angles(self, t: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.cos[:t].to(dtype), self.sin[:t].to(dtype)

    @torch.no_grad()
    def calibrate(self, ids: Tensor, starts: tuple[float, float, float]) -> None:
        """Sets vectors from the dense model, and log_t so that densities are ``starts``."""
        s, w = self.shape, self.base
        x = F.embedding(ids, w["embed"])
        cos, sin = self._angles(ids.shape[1], x.dtype)
        for i in range(s.layers):
            x = attention(s, x, cos, sin, w["attn_norm"][i], w["qkv"][i], w["out"][i])
            y = rms(x, w["ffn_norm"][i], s.eps)
            a = F.silu(y @ w["gate"][i])
            u = F.linear(y, w["up"][i])
            h = a * u
            norm = w["down"][i].norm(dim=1)
            weight = (
                (w["gate"][i].pow(2).sum(1) + w["up"][i].pow(2).sum(0)).sqrt(),
                u.abs().mean((0, 1)) * norm,
                norm,
            )
            for k, (site, v) in enumerate(zip(fmt.SITES, (y, a, h))):
                c = weight[k] / weight[k].mean()
                # What a delta stores: float16, one over the weight.
                vector = c.clamp_min(1e-3).reciprocal().half().float()
                self.vector[site][i] = vector
                z = (v.abs() / vector).reshape(-1)
                step = max(1, z.numel() // 1_000_000)
                t = torch.quantile(z[::step], 1 - starts[k]).clamp_min(1e-8)
                self.log_t[:, i, k] = t.log()
            x = x + h @ w["down"][i]

    @torch.no_grad()
    def symbol_bits(self) -> dict[str, Tensor]:
        """Entropy of the codes given the base weights, bits a weight, (L,) for each matrix."""
        out = {}
        for m in FFN:
            bits = []
            for i in range(self.shape.layers):
                step = self.d[m][i].float()[..., None]
                v = self.base[m][i].view(step.shape[0], -1, fmt.GROUP) / step
                w = v + self.change[m][i].view_as(v) / step
                low = v.floor()
                part = ((v - low) * fmt.BINS).clamp_max(fmt.BINS - 1).long()
                symbol = (w.round().clamp(-8, 7) - low + fmt.OFFSET).clamp(0, fmt.SYMBOLS - 1)
                n = torch.bincount(
                    (part * fmt.SYMBOLS + symbol.long()).reshape(-1),
                    minlength=fmt.BINS * fmt.SYMBOLS,
                ).view(fmt.BINS, fmt.SYMBOLS)
                p = n.double() / n.sum(1, keepdim=True).clamp_min(1)
                bits.append(-(n * p.clamp_min(1e-30).log2()).sum() / n.sum())
            out[m] = torch.stack(bits)
        return out

    def mean_bits(self) -> float:
        """Entropy of a code given the base weight, bits a weight of all matrices."""
        bits = self.symbol_bits()
        return float(torch.stack([bits[m].mean() for m in FFN]).mean())

    @torch.no_grad()
    def pull(self, part: float) -> None:
        """Moves every change towards 0 by ``part`` of its grid step, at most to 0."""
        for m in FFN:
            for i in range(self.shape.layers):
                change = self.change[m][i]
                least = part * self.d[m][i].float().abs().repeat_interleave(fmt.GROUP, -1)
                change.copy_(change.sign() * (change.abs() - least).clamp_min(0))


def bytes_of(shape: Shape, densities: Tensor) -> Tensor:
    """FFN bytes a token as the device counts, over those of the dense base in affine 4 bit.

    ``densities`` (..., L, 3) of x, act and h. A read line costs 18 bytes for 32 weights; the
    thresholds (a byte each and a word a vector) are counted as read. The base has 20 bytes for 32.
    """
    d, f = shape.dim, shape.ffn
    line = torch.tensor([d * f, f * d, f * d], device=densities.device) * (18 / 32)
    read = (densities * line).sum(-1) + (d + 2 * f) + 12
    return read.mean(-1) / (3 * d * f * 20 / 32)
