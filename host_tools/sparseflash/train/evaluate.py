"""Perplexity, KL and bytes of a distilled model as the device will hold it, in float32.

Weights are the codes times their scales and thresholds the stored ones, so only the device's
rounding of activations is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflash.model.load import delta as fmt
from sparseflash.train.student import Base, Shape, Student, attention, bytes_of, rms


@dataclass
class Plain:
    """Float32 weights of one model on a device, thresholds (L, n) a site or None."""

    shape: Shape
    weights: dict[str, Tensor]
    head: Tensor
    thresholds: dict[str, Tensor] | None = None


def dense_of(student: Student) -> Plain:
    return Plain(student.shape, student.base, student.head32)


def sparse_of(student: Student, delta: fmt.Delta, base: Base, budget: int | None) -> Plain:
    """The distilled model under a budget; None keeps everything, with the largest one's norms."""
    w = dict(student.base)
    for m in fmt.MATRICES:
        rows = []
        for i, layer in enumerate(delta.codes):
            c = layer[m]
            d = fmt.scales(fmt.base_scales(base.lines(i)[m]), c.e).astype(np.float32)
            rows.append(c.q.astype(np.float32) * np.repeat(d, fmt.GROUP, axis=-1))
        w[m] = torch.from_numpy(np.stack(rows)).to(student.device)
    plain = Plain(student.shape, w, student.head32)
    largest = max(delta.scale) if budget is None else budget
    plain = with_budget(plain, delta, largest)
    return replace(plain, thresholds=None) if budget is None else plain


def with_budget(plain: Plain, delta: fmt.Delta, budget: int) -> Plain:
    t = [delta.thresholds(i, budget) for i in range(plain.shape.layers)]
    stacked = {
        s: torch.from_numpy(np.stack([getattr(y, s) for y in t])).to(plain.head.device)
        for s in fmt.SITES
    }
    norms = {n: torch.from_numpy(v).to(plain.head.device) for n, v in delta.norms[budget].items()}
    return Plain(plain.shape, plain.weights | norms, plain.head, stacked)


@torch.no_grad()
def hidden(p: Plain, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Last hidden state (B, T, D) and densities (L, 3)."""
    s, w = p.shape, p.weights
    x = F.embedding(ids, w["embed"])
    pos = torch.arange(ids.shape[1], device=ids.device).float()
    f = s.theta ** -(torch.arange(0, s.head_dim, 2, device=ids.device).float() / s.head_dim)
    angles = torch.cat([pos[:, None] * f] * 2, -1)
    cos, sin = angles.cos(), angles.sin()
    densities = []

    def keep(v: Tensor, site: str, i: int) -> Tensor:
        if p.thresholds is None:
            return v
        mask = v.abs() >= p.thresholds[site][i]
        densities.append(mask.float().mean())
        return torch.where(mask, v, 0.0)

    for i in range(s.layers):
        x = attention(s, x, cos, sin, w["attn_norm"][i], w["qkv"][i], w["out"][i])
        y = rms(x, w["ffn_norm"][i], s.eps)
        a = keep(F.silu(keep(y, "x", i) @ w["gate"][i]), "act", i)
        h = keep(a * F.linear(y, w["up"][i]), "h", i)
        x = x + h @ w["down"][i]
    d = torch.stack(densities).view(s.layers, 3) if densities else torch.ones(s.layers, 3)
    return rms(x, w["final_norm"], s.eps), d


@torch.no_grad()
def measure(dense: Plain, sparse: Plain | None, windows: Tensor) -> dict[str, float]:
    """Figures on windows (N, T): perplexity of both, KL(dense || sparse), same top token, bytes.

    Every token but a window's first is predicted. Bytes are a share of the dense base's FFN.
    """
    loss_d = loss_s = kl = top = 0.0
    n = 0
    density = []
    for ids in windows.split(4):
        hd, _ = hidden(dense, ids)
        hs, d = hidden(sparse, ids) if sparse else (hd, torch.ones(1))
        density.append(d * len(ids))
        for a, b, row in zip(hd, hs, ids):
            la = torch.log_softmax(a[:-1] @ dense.head.T, -1)
            loss_d -= float(la.gather(1, row[1:, None]).double().sum())
            n += len(row) - 1
            if sparse:
                lb = torch.log_softmax(b[:-1] @ dense.head.T, -1)
                loss_s -= float(lb.gather(1, row[1:, None]).double().sum())
                kl += float((la.exp() * (la - lb)).sum(-1).double().sum())
                top += float((la.argmax(-1) == lb.argmax(-1)).sum())
    out = {"dense": math.exp(loss_d / n), "tokens": n}
    if sparse:
        mean = torch.stack(density).sum(0) / len(windows)
        out |= {
            "perplexity": math.exp(loss_s / n),
            "ratio": math.exp((loss_s - loss_d) / n),
            "kl": kl / n,
            "same_top": top / n,
        }
        if sparse.thresholds is not None:
            out["bytes"] = float(bytes_of(dense.shape, mean))
            for k, site in enumerate(fmt.SITES):
                out[f"density_{site}"] = float(mean[:, k].mean())
    return out


@torch.no_grad()
def settle(
    plain: Plain,
    delta: fmt.Delta,
    budget: int,
    target: Tensor,
    windows: Tensor,
    rounds: int = 30,
) -> None:
    """Moves ``delta.scale[budget]`` until densities on ``windows`` are ``target`` (L, 3).

    The rounded weights see other activations than the trained ones did; a few rounds of the
    controller put the thresholds where the byte budget is met, thirty at most.
    """
    for _ in range(rounds):
        p = with_budget(plain, delta, budget)
        d = torch.stack([hidden(p, ids)[1] * len(ids) for ids in windows.split(4)]).sum(0)
        gap = (d / len(windows) - target).cpu().numpy()
        if np.abs(gap.mean(0)).max() < 0.002 and np.abs(gap).max() < 0.02:
            return
        step = np.clip(1.5 * gap, -0.2, 0.2)
        delta.scale[budget] = (delta.scale[budget] * np.exp(step)).astype(np.float32)
