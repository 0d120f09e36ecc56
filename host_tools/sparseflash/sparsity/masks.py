"""Masks applied to the float model, and how much a device would read under them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sparseflash.image.bfp import GROUP
from sparseflash.model.torch_model import Hooks, TorchModel, activate
from sparseflash.sparsity.reads import Reads
from sparseflash.sparsity.sites import MATRIX_SITES


@dataclass
class Rule:
    """Which entries of a vector live: score >= threshold, or the ``keep`` largest scores.

    The score is |x|, times ``weight`` (n,) if given.
    """

    threshold: float = 0.0
    keep: int | None = None
    weight: Tensor | None = None

    def mask(self, x: Tensor) -> Tensor:
        """bool, the shape of ``x`` (..., n)."""
        score = x.abs()
        if self.weight is not None:
            score = score * self.weight
        if self.keep is None:
            return score >= self.threshold
        n = x.shape[-1]
        if self.keep >= n:
            return torch.ones_like(x, dtype=torch.bool)
        if self.keep <= 0:
            return torch.zeros_like(x, dtype=torch.bool)
        # The keep-th largest is the (n - keep + 1)-th smallest; ties at it live too.
        limit = score.float().kthvalue(n - self.keep + 1, dim=-1, keepdim=True).values
        return score >= limit


def prediction_of(
    runner: TorchModel, layer: int, x: Tensor, gate: Tensor | None, up: Tensor | None
) -> Tensor:
    """h (..., ffn) of a layer as copies (ffn, dim) of its gate and up predict it.

    An FFN without a gate has no copy of it. Without ``up``, how many signs of x agree with gate's.
    """
    if up is None:
        assert gate is not None
        signs = torch.where(x < 0, -1.0, 1.0).to(gate.dtype)
        return ((signs @ gate.T).float() + x.shape[-1]) / 2

    def values(copy: Tensor, bias: Tensor | None) -> Tensor:
        y = (x.to(copy.dtype) @ copy.T).float()
        return y if bias is None else y + bias.float()

    w, kind = runner.layers[layer], runner.spec.activation
    u = values(up, w.up_bias)
    return activate(kind, u) if gate is None else activate(kind, values(gate, w.gate_bias)) * u


@dataclass
class ProxyRule:
    """Neurons chosen by a cheap copy of gate and up before the exact rows are read."""

    gate: Tensor | None
    up: Tensor | None
    """Dequantised proxies (ffn, dim), gate's where there is one; signs without up."""
    rule: Rule
    """On the proxy of h."""
    ahead: bool = False
    """They multiply the normed input of attention, not of the FFN."""


@dataclass
class LayerRules:
    """The rules of one layer: by site, and a proxy if neurons are chosen by one."""

    sites: dict[str, Rule] = field(default_factory=dict)
    proxy: ProxyRule | None = None


def live_blocks(mask: Tensor) -> int:
    """Groups of 32 along the last axis with a live entry, over all rows."""
    n = mask.shape[-1]
    full = n // GROUP * GROUP
    out = mask[..., :full].unflatten(-1, (-1, GROUP)).any(-1).sum() if full else torch.tensor(0)
    if full < n:
        out = out + mask[..., full:].any(-1).sum()
    return int(out)


class Masked(Hooks):
    """Applies the rules of every layer and counts what they leave to read.

    A layer or site without a rule is dense. Under a proxy, rows of gate and up are read for the
    neurons it chooses; the rules of gate, act, up and h then apply to the exact values.
    """

    def __init__(self, runner: TorchModel, rules: list[LayerRules], count: bool = True) -> None:
        self.runner, self.rules, self.count = runner, rules, count
        self.reads = Reads.empty(runner.spec.n_layers)
        self._inputs = {s for r in rules for s in r.sites if s in MATRIX_SITES.values()}
        self._x: Tensor | None = None

    def _count_input(self, layer: int, site: str, x: Tensor, mask: Tensor | None) -> None:
        """Counts what ``mask`` leaves, everything without one."""
        if not self.count:
            return
        n = x.shape[-1]
        rows = x.numel() // n
        kept = rows * n if mask is None else int(mask.sum())
        blocks = rows * -(-n // GROUP) if mask is None else live_blocks(mask)
        for table, value in ((self.reads.kept, kept), (self.reads.blocks, blocks)):
            table.setdefault(site, np.zeros(len(self.rules)))[layer] += value

    def attn_in(self, layer: int, x: Tensor) -> Tensor:
        proxy = self.rules[layer].proxy
        self._x = x if proxy is not None and proxy.ahead else None
        return x

    def ffn_in(self, layer: int, x: Tensor) -> Tensor:
        proxy = self.rules[layer].proxy
        self._x = x if proxy is not None and not proxy.ahead else self._x
        return x

    def matrix_in(self, layer: int, matrix: str, x: Tensor) -> Tensor:
        site, own = MATRIX_SITES.get(matrix), self.runner.layers[layer].thresholds
        trained = own is not None and matrix == "gate"
        if site is None or not (trained or site in self._inputs):
            return x
        rule = self.rules[layer].sites.get(site)
        mask = None if rule is None else rule.mask(x)
        if own is not None and trained:
            mask = _both(mask, x.abs() >= own[0])
        self._count_input(layer, site, x, mask)
        return x if mask is None else x * mask

    def ffn(self, layer: int, gate: Tensor, up: Tensor, h: Tensor) -> Tensor:
        rules, spec = self.rules[layer], self.runner.spec
        tokens = h.shape[0] * h.shape[1]
        chosen: Tensor | None = None
        if rules.proxy is not None:
            assert self._x is not None
            p = rules.proxy
            chosen = p.rule.mask(prediction_of(self.runner, layer, self._x, p.gate, p.up))
        rows = chosen
        if "gate" in rules.sites:
            rows = _both(rows, rules.sites["gate"].mask(gate))
        if "act" in rules.sites:
            rows = _both(rows, rules.sites["act"].mask(activate(spec.activation, gate)))
        trained = self.runner.trained_mask(layer, gate, h)
        if trained is not None:
            rows = _both(rows, trained[0])
        alive = rows if trained is None else _both(rows, trained[1])
        if "up" in rules.sites:
            alive = _both(alive, rules.sites["up"].mask(up))
        if "h" in rules.sites:
            alive = _both(alive, rules.sites["h"].mask(h))
        if self.count:
            full = tokens * spec.ffn_dim
            r = self.reads
            if layer == 0:
                r.tokens += tokens
            r.gate_rows[layer] += full if chosen is None else int(chosen.sum())
            up_rows = chosen if chosen is not None else rows
            r.up_rows[layer] += full if up_rows is None else int(up_rows.sum())
            if alive is None:
                r.columns[layer] += full
                r.column_blocks[layer] += tokens * -(-spec.ffn_dim // GROUP)
            else:
                r.columns[layer] += int(alive.sum())
                r.column_blocks[layer] += live_blocks(alive)
        return h if alive is None else h * alive

    def ffn_out(self, layer: int, o: Tensor) -> Tensor:
        rule = self.rules[layer].sites.get("down")
        return o if rule is None else o * rule.mask(o)


def _both(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a & b
