"""Masks applied to the float model, and how much a device would read under them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sparseflash.image.grids import GROUP
from sparseflash.model.spec import Activation
from sparseflash.model.torch_model import Hooks, TorchModel, activate
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


def guess_of(kind: Activation, x: Tensor, gate: Tensor, up: Tensor | None) -> Tensor:
    """Guess of h (..., ffn) by copies (ffn, dim); without ``up``, how many signs of x agree."""
    y = x.to(gate.dtype)
    if up is None:
        signs = torch.where(y < 0, -1.0, 1.0).to(gate.dtype)
        return ((signs @ gate.T).float() + x.shape[-1]) / 2
    return activate(kind, (y @ gate.T).float()) * (y @ up.T).float()


@dataclass
class ProxyRule:
    """Neurons chosen by a cheap copy of gate and up before the exact rows are read."""

    gate: Tensor
    up: Tensor | None
    """Dequantised proxies (ffn, dim); signs of gate without up."""
    rule: Rule
    """On the proxy of h."""
    ahead: bool = False
    """They multiply the normed input of attention, not of the FFN."""


@dataclass
class LayerRules:
    """The rules of one layer: by site, and a proxy if neurons are chosen by one."""

    sites: dict[str, Rule] = field(default_factory=dict)
    proxy: ProxyRule | None = None


@dataclass
class Reads:
    """Sums over tokens of what is read, each (layers,); divided by ``tokens`` for a token.

    ``kept`` and ``blocks`` by input site: columns read, and groups of 32 columns with at least
    one of them. ``gate_rows``, ``up_rows``, ``columns`` count neurons; ``column_blocks`` groups of
    32 neurons with at least one live column.
    """

    tokens: int
    kept: dict[str, np.ndarray]
    blocks: dict[str, np.ndarray]
    gate_rows: np.ndarray
    up_rows: np.ndarray
    columns: np.ndarray
    column_blocks: np.ndarray

    @classmethod
    def empty(cls, layers: int) -> Reads:
        def zero() -> np.ndarray:
            return np.zeros(layers)

        return cls(0, {}, {}, zero(), zero(), zero(), zero())

    @classmethod
    def dense(cls, layers: int, ffn: int) -> Reads:
        """One token of the dense model."""
        full = np.full(layers, float(ffn))
        return cls(1, {}, {}, full, full.copy(), full.copy(), np.full(layers, float(-(-ffn // 32))))

    def plain(self) -> dict[str, object]:
        """As JSON."""
        out: dict[str, object] = {"tokens": self.tokens}
        for name in ("kept", "blocks"):
            out[name] = {k: v.tolist() for k, v in getattr(self, name).items()}
        for name in ("gate_rows", "up_rows", "columns", "column_blocks"):
            out[name] = getattr(self, name).tolist()
        return out

    @classmethod
    def of_plain(cls, d: dict[str, object]) -> Reads:
        def table(name: str) -> dict[str, np.ndarray]:
            value = d[name]
            assert isinstance(value, dict)
            return {k: np.array(v) for k, v in value.items()}

        return cls(
            int(str(d["tokens"])),
            table("kept"),
            table("blocks"),
            np.array(d["gate_rows"]),
            np.array(d["up_rows"]),
            np.array(d["columns"]),
            np.array(d["column_blocks"]),
        )


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
        site = MATRIX_SITES.get(matrix)
        if site not in self._inputs:
            return x
        rule = self.rules[layer].sites.get(site)
        mask = None if rule is None else rule.mask(x)
        self._count_input(layer, site, x, mask)
        return x if mask is None else x * mask

    def ffn(self, layer: int, gate: Tensor, up: Tensor, h: Tensor) -> Tensor:
        rules, spec = self.rules[layer], self.runner.spec
        tokens = h.shape[0] * h.shape[1]
        chosen: Tensor | None = None
        if rules.proxy is not None:
            assert self._x is not None
            p = rules.proxy
            chosen = p.rule.mask(guess_of(spec.activation, self._x, p.gate, p.up))
        rows = chosen
        if "gate" in rules.sites:
            rows = _both(rows, rules.sites["gate"].mask(gate))
        if "act" in rules.sites:
            rows = _both(rows, rules.sites["act"].mask(activate(spec.activation, gate)))
        alive = rows
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
