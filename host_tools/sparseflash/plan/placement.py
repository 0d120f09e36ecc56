"""Where each part of the weights lies: mapped, pinned in RAM, or streamed from flash.

A part is a set of rows that are read together; its first rows can be pinned. Pinning a byte saves
as many flash bytes a token as are read for it, so parts that are always read whole come before
down columns, of which a mask skips a share; where flash is read in large blocks, a mask may skip
none (``expected_reads``). Parts of equal worth are pinned to the same
fraction: the stream is then needed at an even pace and has computing to hide behind everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparseflash.image.formats import FACTORED
from sparseflash.image.formats import INPUTS as INPUT_SITES
from sparseflash.image.sfm import Image
from sparseflash.image.weights import Weight, is_ffn
from sparseflash.plan.reads import Reading
from sparseflash.sparsity.sites import Use

PIN_ALIGN = 64
BY_TOKEN = ("embed", "positions")
"""Parts of which a token reads one row."""


@dataclass(frozen=True)
class Part:
    """Rows in flash; ``use`` is the expected share of them that a token reads."""

    kind: str
    layer: int
    at: int
    stride: int
    bytes: int
    rows: int
    ffn: bool
    use: float = 1.0
    fetched: float = 1.0
    """Bytes that are expected to be read from flash for each of its bytes."""
    grid: str = ""
    shift: int = 0
    """What the product by columns of the grid needs."""
    input: str = ""
    """Site of the inputs whose columns the rows are; empty for a matrix by rows."""
    pinned: int = 0
    """Rows from 0 on that stay in RAM."""
    pin: int = 0
    """Their offset in the pinned RAM."""

    @property
    def size(self) -> int:
        return (self.rows - 1) * self.stride + self.bytes


def kinds_of(image: Image) -> tuple[str, ...]:
    """Parts of a layer in order of use, the same for all; a layer leaves those without rows that it
    does not need. A matrix by columns has a part for its scales after it, down_proj before it; in
    an image with factors every projection that can have them has a part for B before it."""
    there = {w.role for w in image.weights.values()}
    factored = any(f"{m}_b" in there for m in FACTORED)
    rows = {w.role for w in image.weights.values() if not w.columns}
    ahead = image.ahead
    predictor = [k for k in ("predictor_b", "predictor_gate", "predictor_up") if k in there]
    out: list[str] = [*(predictor if ahead else [])]
    out += ["qkv"] * ("q" in rows and not factored)
    for m in FACTORED:
        if m == "gate":
            out += ["router"] * ("router" in there)
            out += [] if ahead else predictor
            if "gate" not in there:
                continue
        together = m in ("q", "k", "v") and not factored
        columns = any(w.role == m and w.columns for w in image.weights.values())
        out += [f"{m}_b"] * factored + [m] * (not together or columns)
        out += [f"{m}_scales"] * (f"{m}_scales" in there)
    return (*out, *(["down_scales"] * ("down_scales" in there)), "down")


def use_of(levels: dict[str, np.ndarray]) -> Use:
    """What is read when sites drop these shares of their entries, (layers,) each."""
    if not levels:
        return {}
    none = np.zeros(len(next(iter(levels.values()))))

    def kept(site: str) -> np.ndarray:
        return 1.0 - np.asarray(levels.get(site, none))

    rows = np.minimum(np.minimum(kept("gate"), kept("act")), kept("proxy"))
    use = {s: kept(s) for s in INPUT_SITES if s in levels}
    # Gate and up outputs are nearly independent; h is small where act is.
    return use | {
        "gate": kept("proxy"),
        "up": rows,
        "down": np.minimum(rows * kept("up"), kept("h")),
    }


SITES = {"gate": "xg", "up": "xu"}
"""Of the inputs of a matrix by columns, where it is not the matrix's own name."""


def _kernels(grid: str) -> str:
    """What the kernels of a grid are named by: proxies of all widths share them."""
    return "proxy" if grid.startswith("proxy") else grid


def _part(w: Weight, kind: str, layer: int, use: Use, count: int = 0, usual: float = 1.0) -> Part:
    """A part of one weight, or of several that lie one after the other.

    usual: the share of its rows that a token reads where ``use`` does not say.
    """
    site = SITES.get(w.role, w.role) if w.columns and w.role != "down" else ""
    name = site or kind
    share = float(use[name][layer]) if name in use else usual
    place = (w.at, w.stride, w.size, count or w.count)
    return Part(
        kind, layer, *place, w.is_ffn, share, input=site, grid=_kernels(w.grid), shift=w.shift
    )


def parts_of(image: Image, use: Use | None = None, head_rows: int = 0) -> list[Part]:
    """The parts in order of use, those that a layer does not need with no rows.

    use: what a token is expected to read; head_rows: what a screened head computes exactly.
    """
    s, use = image.spec, use or {}
    kinds = kinds_of(image)
    grids: dict[str, str] = {}
    for known in image.weights.values():
        grids.setdefault(known.role, _kernels(known.grid))
    out = []
    for i in range(s.n_layers):
        for kind in kinds:
            role = "q" if kind == "qkv" else kind
            w = image.weights.get((i, role))
            rows = w is not None and not w.columns
            apart = "qkv" in kinds and kind in ("q", "k", "v")
            if w is None or (kind == "qkv" and not rows) or (apart and rows):
                grid = grids.get(role) or grids[role.removesuffix("_b")]
                out.append(Part(kind, i, 0, 0, 0, 0, is_ffn(role), grid=grid))
            else:
                count = sum(image.weight(m, i).count for m in "qkv") if kind == "qkv" else 0
                neurons = ("gate", "up", "down") if s.experts else ("up", "down")
                usual = s.active_share if kind in neurons else 1.0
                out.append(_part(w, kind, i, use, count, usual))
    head = image.weight("embed" if s.tied_head else "head")
    if head_rows:
        out.append(_part(image.weight("head_proxy"), "head_proxy", s.n_layers, {}))
    share = head_rows / s.vocab if head_rows else 1.0
    out.append(replace(_part(head, "head", s.n_layers, {}), use=share))
    embed = _part(image.weight("embed"), "embed", s.n_layers, {})
    out.append(replace(embed, use=1 / s.vocab))
    if image.has("positions"):
        one = _part(image.weight("positions"), "positions", s.n_layers, {})
        out.append(replace(one, use=1 / s.context))
    return out


def _padded(size: int) -> int:
    return -(-size // PIN_ALIGN) * PIN_ALIGN


def place(parts: list[Part], budget: int, tied: bool, reading: Reading) -> list[Part]:
    """Pins rows into ``budget`` bytes of RAM; the others are streamed as ``reading`` says."""
    parts = [
        replace(p, fetched=float(reading.share(p.bytes, p.use))) if p.rows else p for p in parts
    ]
    groups = [
        [p for p in parts if p.rows and p.kind.endswith("_scales")],
        [p for p in parts if p.rows and not p.kind.endswith("_scales") and p.kind not in BY_TOKEN],
    ]
    need = sum(_padded(p.size) for p in groups[0])
    # Scales are all or nothing: those that are not pinned are read block by block.
    scales = groups[0] if need <= budget else []
    rows = {(p.kind, p.layer): p.rows for p in scales}
    left = budget - (need if scales else 0)
    for worth in sorted({p.fetched for p in groups[1]}, reverse=True):
        some = [p for p in groups[1] if p.fetched == worth]
        share = min(1.0, left / sum(_padded(p.size) for p in some))
        for p in some:
            n = p.rows if share >= 1.0 else max(0, int((p.size * share - PIN_ALIGN) // p.stride))
            rows[p.kind, p.layer] = n
            left -= _padded(n * p.stride)
    out, at = [], 0
    for p in parts:
        n = rows.get((p.kind, p.layer), 0)
        out.append(replace(p, pinned=n, pin=at if n else 0))
        at += _padded(n * p.stride)
    if tied:
        head = next(p for p in out if p.kind == "head")
        out = [
            replace(p, pinned=head.pinned, pin=head.pin) if p.kind == "embed" else p for p in out
        ]
    return out


def pinned_bytes(parts: list[Part]) -> int:
    """RAM that the pinned rows take."""
    return max((p.pin + _padded(p.pinned * p.stride) for p in parts), default=0)


def summary(parts: list[Part]) -> dict[str, Any]:
    """By kind and in total: bytes pinned, bytes streamed, and those a token reads for them."""
    kinds: dict[str, dict[str, float]] = {}
    for p in parts:
        if p.kind in BY_TOKEN:
            continue
        k = kinds.setdefault(p.kind, {"pinned": 0, "streamed": 0, "read": 0.0})
        k["pinned"] += p.pinned * p.bytes
        k["streamed"] += (p.rows - p.pinned) * p.bytes
        k["read"] += (p.rows - p.pinned) * p.bytes * p.fetched
    total = {n: sum(k[n] for k in kinds.values()) for n in ("pinned", "streamed", "read")}
    return {"kinds": kinds, "total": total}
