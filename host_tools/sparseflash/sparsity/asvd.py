"""ASVD (arXiv 2312.05821): projections as two activation-aware factors, ranks by a search.

W ~ A B with A (out, r) and B (r, in) is the cut with the least error of W x on calibration text
(``lowrank.whitened_factors``). The paper scales inputs by their mean magnitudes instead; with the
whole E[x x^T] 42 random cuts of SmolLM2-135M raised the loss half as much. Ranks
are whole groups of 32, a projection stays whole where its factors would not save bytes, and factors
are priced on the grid that they are stored on. down_proj stays whole: it is read by columns of live
neurons.

The paper measures how the loss rises when one projection alone is cut, for every projection and
share, and cuts all as far as one limit allows. That runs the rest of the model hundreds of times,
and the limit says nothing of what a cut saves. Here a cut costs the Fisher information along the
change it makes to the projection's output: with g the gradient there of the log-likelihood of next
tokens that the model drew, E[(g . (W - A B) x)^2] / 2 nats a token. Groups of 32 along a row are
quantised alone, so factors of a lower rank are the first rows of B and columns of A: one product
with the longest factors prices every rank. Ranks then cost the same for each byte saved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparseflash.base.errors import UsageError
from sparseflash.base.progress import each
from sparseflash.image.bfp import GROUP
from sparseflash.image.factors import Factors, factor_bytes
from sparseflash.image.formats import FACTORED, shape_of
from sparseflash.image.grids import Blocks, pack_rows, quantize, row_bytes
from sparseflash.sparsity.gradients import OUTPUTS, SEED, walk
from sparseflash.sparsity.predict.lowrank import PREDICTOR_TOKENS, moments, whitened_factors
from sparseflash.sparsity.study import Study
from sparseflash.sparsity.windows import spread

TOKENS = 1024
"""Of calibration text, for prices."""
INPUT_OF = {"o": "heads", "gate": "ffn_in", "up": "ffn_in"}
"""Tensor that a projection multiplies, where it is not attn_in."""


def asvd_factors(w: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (out, rank) and B (rank, in) of W (out, in) for E[x x^T] = ``moment`` (in, in).

    Column k of A is as long as row k of B, so that both use the grid alike.
    """
    a, b = whitened_factors(w, moment, rank)
    root = (a.norm(dim=0) / b.norm(dim=1)).sqrt().clamp_min(1e-12)
    return a / root, b * root[:, None]


def most_rank(rows: int, cols: int, fmt: str) -> int:
    """The largest rank, in whole groups of 32, whose factors take fewer bytes; 0 if none does."""
    whole = rows * row_bytes(cols, fmt)
    ranks = range(GROUP, min(rows, cols) + 1, GROUP)
    return max([r for r in ranks if factor_bytes(rows, cols, r, fmt) < whole], default=0)


@dataclass
class Cuts:
    """The singular vectors of one projection, so that any rank is a cut of them."""

    a: Tensor
    """(out, most)"""
    b: Tensor
    """(most, in)"""
    fmt: str
    """Grid of the projection."""

    def factors(self, rank: int) -> tuple[Blocks, Blocks]:
        """B (rank, in) and A (out, rank) on the grid."""
        return (
            quantize(self.b[:rank].numpy(), self.fmt, "factor B"),
            quantize(np.ascontiguousarray(self.a[:, :rank].numpy()), self.fmt, "factor A"),
        )


def _windows(study: Study, tokens: int) -> np.ndarray:
    return spread(study.calibration_ids, -(-tokens // study.calibration_ids.shape[1]))


def decompose(study: Study) -> list[dict[str, Cuts]]:
    """By layer, the factors of the projections where any rank saves bytes."""
    ids, inputs = _windows(study, PREDICTOR_TOKENS), ("attn_in", "heads", "ffn_in")
    _, second = moments(study.runner, ids, inputs)
    out = []
    study.progress("singular values")
    for i, layer in enumerate(each("singular values of layers", study.runner.layers)):
        one = {}
        for name in FACTORED:
            w, moment = getattr(layer, f"{name}_proj"), second[i][INPUT_OF.get(name, "attn_in")]
            fmt = study.formats.grid_of(name)
            if most := most_rank(*shape_of(study.model.spec, name), fmt):
                one[name] = Cuts(*asvd_factors(w.float(), moment, most), fmt)
        out.append(one)
    return out


def prices(study: Study, full: list[dict[str, Cuts]]) -> list[dict[str, list[float]]]:
    """Cost in nats a token of ranks 32, 64, ..., by layer and projection."""
    runner = study.runner
    rows: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
    for i, layer in enumerate(full):
        for name, cuts in layer.items():
            b, a = cuts.factors(len(cuts.b))
            rows[i, name] = torch.from_numpy(b.float32()), torch.from_numpy(a.float32())
    cost = {k: np.zeros(len(b) // GROUP) for k, (b, _) in rows.items()}
    ids, draw = _windows(study, TOKENS), torch.Generator().manual_seed(SEED)
    study.progress("prices of ranks")
    for row in each("prices of ranks in windows", ids):
        for branch in walk(runner, row, draw, OUTPUTS):
            for name, grad in branch.grad.items():
                if (branch.layer, name) not in rows:
                    continue
                first, then = rows[branch.layer, name]
                w = getattr(runner.layers[branch.layer], f"{name}_proj")
                x, g = branch.at[INPUT_OF.get(name, "attn_in")][0].float(), grad[0].float()
                whole = (g * (x @ w.float().T)).sum(-1, keepdim=True)  # (T, 1)
                upto = ((g @ then) * (x @ first.T)).cumsum(1)[:, GROUP - 1 :: GROUP]  # (T, ranks)
                cost[branch.layer, name] += ((whole - upto) ** 2).sum(0).double().numpy() / 2
    return [{n: (cost[i, n] / ids.size).tolist() for n in layer} for i, layer in enumerate(full)]


def choose_ranks(
    study: Study, costs: list[dict[str, list[float]]], kept: float
) -> dict[tuple[int, str], int]:
    """Ranks by layer and projection, without those that stay whole, at one price a byte.

    Factors and whole matrices together take at most a share ``kept`` of the bytes of FACTORED.

    Raises:
        UsageError: no ranks are that small.
    """
    spec, f = study.model.spec, study.formats
    dense, choices = 0, []
    for i, layer in enumerate(costs):
        for name in FACTORED:
            shape, fmt = shape_of(spec, name), f.grid_of(name)
            whole = shape[0] * row_bytes(shape[1], fmt)
            dense += whole
            cost = np.array([0.0, *layer.get(name, [])])
            sizes = [factor_bytes(*shape, GROUP * k, fmt) for k in range(1, len(cost))]
            choices.append(((i, name), cost, np.array([whole, *sizes], float)))

    def at(price: float) -> tuple[dict[tuple[int, str], int], float]:
        found, total = {}, 0.0
        for key, cost, sizes in choices:
            k = int(np.argmin(cost + price * sizes))
            total += sizes[k]
            if k:
                found[key] = GROUP * k
        return found, total

    low, high = -20.0, 20.0
    found, total = at(10.0**high)
    if total > kept * dense:
        least = math.ceil(100 * total / dense)
        raise UsageError(f"factors leave at least {least} % of the projections' bytes; ask for it")
    for _ in range(60):
        middle = (low + high) / 2
        tried, size = at(10.0**middle)
        if size <= kept * dense:
            found, high = tried, middle
        else:
            low = middle
    return found


def asvd(study: Study, kept: float) -> Factors:
    """Factors that leave a share ``kept`` of the bytes of FACTORED, ranks by the search."""
    grids = f"{study.formats.attn} {study.formats.ffn}"
    found = f"{study.scores.digest[:32]} {kept:g} {grids} by the byte"
    path = study.file(f"asvd-{100 * kept:g}.npz")
    if path is not None and path.is_file():
        old = Factors.load(path)
        if old.found == found:
            return old
    full = decompose(study)
    costs = study.table(f"asvd-{grids.replace(' ', '-')}", lambda: prices(study, full))
    rows = {}
    for (i, name), rank in choose_ranks(study, costs, kept).items():
        b, a = full[i][name].factors(rank)
        rows[i, name] = pack_rows(b), pack_rows(a)
    out = Factors(rows, study.model.source.get("sha256", ""), found)
    if path is not None:
        out.save(path)
    return out
