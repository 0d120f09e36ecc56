"""ASVD (arXiv 2312.05821): projections as two activation-aware factors, ranks by a search.

With s = mean |x| of each input on calibration text, W diag(s)^alpha is cut to its largest singular
values and diag(s)^-alpha is put back: W ~ A B with A (out, r) and B (r, in). The rank search
measures how the loss rises when one projection alone is cut to a share of its weights, then cuts
every projection as far as one common limit on that rise allows. Ranks are whole groups of 32, a
projection stays whole where its factors would not save bytes, and factors are measured on the grid
that they are stored on. down_proj stays whole: it is read by columns of live neurons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sparseflash.factors import FACTORED, Factors, factor_bytes, shape_of
from sparseflash.methods.budgets import SENSITIVITY_TOKENS, _bisect, loss_from, residuals
from sparseflash.methods.bytes import Extra
from sparseflash.methods.evaluate import spread
from sparseflash.methods.lowrank import moments
from sparseflash.quantize import GROUP, Blocks, pack_rows, quantize, row_bytes
from sparseflash.torch_model import TorchModel

if TYPE_CHECKING:
    from sparseflash.methods.study import Study

ALPHA = 0.5
RATIOS = (0.9, 0.75, 0.6, 0.4)
"""Shares of a projection's weights that the rank search tries, alone."""
INPUT_OF = {"o": "heads", "gate": "ffn_in", "up": "ffn_in"}
"""Tensor that a projection multiplies, where it is not attn_in."""


def asvd_factors(
    w: Tensor, scale: Tensor, rank: int, alpha: float = ALPHA
) -> tuple[Tensor, Tensor]:
    """A (out, rank) and B (rank, in) of W (out, in) for input scales (in,)."""
    s = scale.float().clamp_min(1e-8) ** alpha
    u, sigma, vt = torch.linalg.svd(w.float() * s, full_matrices=False)
    root = sigma[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank] / s


def rank_for(ratio: float, rows: int, cols: int, fmt: str) -> int:
    """The rank whose factors hold about a share ``ratio`` of the weights of (rows, cols).

    Whole groups of 32; 0, for the whole matrix, where the factors would not take fewer bytes.
    """
    rank = GROUP * max(1, round(ratio * rows * cols / (rows + cols) / GROUP))
    return rank if factor_bytes(rows, cols, rank, fmt) < rows * row_bytes(cols, fmt) else 0


@dataclass
class Cuts:
    """The singular vectors of one projection, so that any rank is a cut of them."""

    a: Tensor
    b: Tensor
    fmt: str
    """Grid of the projection."""

    def factors(self, rank: int) -> tuple[Blocks, Blocks]:
        """B (rank, in) and A (out, rank) on the grid."""
        return (
            quantize(self.b[:rank].numpy(), self.fmt, "factor B"),
            quantize(np.ascontiguousarray(self.a[:, :rank].numpy()), self.fmt, "factor A"),
        )

    def cut(self, rank: int) -> Tensor:
        """The projection at a rank, (out, in)."""
        b, a = self.factors(rank)
        return torch.from_numpy(a.float32() @ b.float32())


def decompose(study: Study, alpha: float = ALPHA) -> list[dict[str, Cuts]]:
    """Full factors of every projection; memory is that of the model twice over."""
    rows = max(1, SENSITIVITY_TOKENS // study.calibration_ids.shape[1])
    first, _ = moments(study.runner, spread(study.calibration_ids, 2 * rows))
    out = []
    for i, layer in enumerate(study.runner.layers):
        study.progress(f"singular values, layer {i}")
        one = {}
        for name in FACTORED:
            w, scale = getattr(layer, f"{name}_proj"), first[i][INPUT_OF.get(name, "attn_in")]
            a, b = asvd_factors(w, scale, min(w.shape), alpha)
            one[name] = Cuts(a, b, study.formats.grid_of(name))
        out.append(one)
    return out


class Replaced:
    """A context in which the runner has other projections."""

    def __init__(self, runner: TorchModel, changes: dict[tuple[int, str], Tensor]) -> None:
        self.runner, self.changes = runner, changes
        self.kept: dict[tuple[int, str], Tensor] = {}

    def __enter__(self) -> None:
        for (i, name), w in self.changes.items():
            layer = self.runner.layers[i]
            old = getattr(layer, f"{name}_proj")
            self.kept[i, name] = old
            setattr(layer, f"{name}_proj", w.to(old.dtype))

    def __exit__(self, *_: object) -> None:
        for (i, name), w in self.kept.items():
            setattr(self.runner.layers[i], f"{name}_proj", w)


def rank_table(study: Study, full: list[dict[str, Cuts]]) -> list[list[list[float]]]:
    """Rise of the loss (layers, projections, RATIOS) with one projection cut, alone."""
    runner, spec = study.runner, study.model.spec
    rows = max(1, SENSITIVITY_TOKENS // study.calibration_ids.shape[1])
    picked = spread(study.calibration_ids, rows)
    inputs, ids = residuals(runner, picked), torch.from_numpy(picked)
    base = loss_from(runner, runner.spec.n_layers, inputs[-1], ids)
    out = []
    for i in range(runner.spec.n_layers):
        study.progress(f"rank search, layer {i}")
        layer = []
        for name, one in full[i].items():
            row = []
            for ratio in RATIOS:
                rank = rank_for(ratio, *shape_of(spec, name), one.fmt)
                rise = 0.0
                if rank:
                    with Replaced(runner, {(i, name): one.cut(rank)}):
                        rise = loss_from(runner, i, inputs[i], ids) - base
                row.append(rise)
            layer.append(row)
        out.append(layer)
    return out


def choose_ranks(
    table: np.ndarray, ranks: np.ndarray, sizes: np.ndarray, kept: float
) -> np.ndarray:
    """Ranks (layers, projections), 0 for whole, from rises (layers, projections, RATIOS).

    One limit on the rise for all; at it the factors and whole matrices hold a share ``kept`` of all
    weights. A projection that no ratio leaves under the limit stays whole.

    Args:
        ranks: those of the ratios, (projections, RATIOS).
        sizes: outputs and inputs of the projections, (projections, 2).
    """
    whole = sizes.prod(-1)
    held = np.where(ranks > 0, ranks * sizes.sum(-1)[:, None], whole[:, None])
    held = np.concatenate([whole[:, None], held], axis=-1) / whole.sum() / table.shape[0]
    rises = np.concatenate([np.zeros((*table.shape[:2], 1)), table], axis=-1)
    rises = np.maximum.accumulate(rises, axis=-1)

    def under(limit: float) -> np.ndarray:
        return np.asarray((rises <= limit).sum(-1) - 1)  # (layers, projections)

    def share(limit: float) -> float:
        return float(np.take_along_axis(held[None], under(limit)[..., None], -1).sum())

    limit = _bisect(lambda t: -share(t), -kept, 0.0, float(rises.max()) + 1e-6)
    choices = np.concatenate([np.zeros((len(ranks), 1), np.int64), ranks], axis=-1)
    return np.take_along_axis(choices[None], under(limit)[..., None], -1)[..., 0]


def asvd(study: Study, kept: float) -> Factors:
    """Factors that hold a share ``kept`` of the weights of FACTORED, ranks by the search."""
    spec = study.model.spec
    found = f"{study.scores.digest[:32]} {kept:g} {study.formats.attn} {study.formats.ffn}"
    path = study.file(f"asvd-{100 * kept:g}.npz")
    if path is not None and path.is_file():
        old = Factors.load(path)
        if old.found == found:
            return old
    full = decompose(study)
    table = np.array(study.table("asvd-grid", lambda: rank_table(study, full)))
    sizes = np.array([shape_of(spec, n) for n in FACTORED])
    tried = [
        [rank_for(r, *shape_of(spec, n), study.formats.grid_of(n)) for r in RATIOS]
        for n in FACTORED
    ]
    ranks = choose_ranks(table, np.array(tried), sizes, kept)
    rows = {}
    for i in range(spec.n_layers):
        for k, name in enumerate(FACTORED):
            if ranks[i, k]:
                b, a = full[i][name].factors(int(ranks[i, k]))
                rows[i, name] = pack_rows(b), pack_rows(a)
    out = Factors(rows, study.model.source.get("sha256", ""), found)
    if path is not None:
        out.save(path)
    return out


def replaced(study: Study, factors: Factors) -> Replaced:
    """A context in which the study's runner multiplies with the factors."""
    changes = {}
    for i, name in factors.rows:
        b, a = factors.blocks(study.model.spec, i, name, study.formats.grid_of(name))
        changes[i, name] = torch.from_numpy(a.float32() @ b.float32())
    return Replaced(study.runner, changes)


def factored_extra(study: Study, factors: Factors) -> Extra:
    """Bytes of the factors in place of the projections they replace."""
    spec, out = study.model.spec, Extra()
    for name in FACTORED:
        ranks = [factors.rank(i, name) for i in range(spec.n_layers)]
        if any(ranks):
            size, fmt = shape_of(spec, name), study.formats.grid_of(name)
            out.low_rank[name] = np.array(
                [factor_bytes(*size, r, fmt) if r else np.nan for r in ranks]
            )
    return out
