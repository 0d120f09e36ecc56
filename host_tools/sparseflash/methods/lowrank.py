"""Low-rank factors: ASVD as compression with its rank search, and as a predictor of h.

ASVD (arXiv 2312.05821): with s = mean |x| of each input on calibration text, W diag(s)^alpha is
cut to its largest singular values and diag(s)^-alpha is put back: W ~ A B with A (out, r) and
B (r, in). The rank search measures how the loss rises when one projection alone is cut to a share
of its weights, then cuts every projection as far as one common limit on that rise allows.

Whitened factors use the second moment C = E[x x^T] in place of diag(s)^2 and minimise the error of
W x itself; those of [W_gate; W_up] guess h from A (B x), with one B for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflash.files import write_bytes
from sparseflash.methods.budgets import SENSITIVITY_TOKENS, _bisect, loss_from, residuals
from sparseflash.methods.bytes import Extra
from sparseflash.methods.evaluate import spread
from sparseflash.predictor import Predictor
from sparseflash.quantize import pack_rows, row_bytes, to_q4
from sparseflash.spec import ModelSpec
from sparseflash.torch_model import Hooks, TorchModel

if TYPE_CHECKING:
    from sparseflash.methods.study import Study

ALPHA = 0.5
PREDICTOR_TOKENS = 4096
RATIOS = (0.9, 0.75, 0.6, 0.4)
"""Shares of a projection's weights that the rank search tries, alone."""
MATRICES = {
    "q": "attn_in",
    "k": "attn_in",
    "v": "attn_in",
    "o": "heads",
    "gate": "ffn_in",
    "up": "ffn_in",
    "down": "h",
}
"""Projections and the tensor that each multiplies."""


def asvd_factors(
    w: Tensor, scale: Tensor, rank: int, alpha: float = ALPHA
) -> tuple[Tensor, Tensor]:
    """A (out, rank) and B (rank, in) of W (out, in) for input scales (in,)."""
    s = scale.float().clamp_min(1e-8) ** alpha
    u, sigma, vt = torch.linalg.svd(w.float() * s, full_matrices=False)
    root = sigma[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank] / s


def whitened_factors(w: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A and B that minimise E |W x - A B x|^2 for E[x x^T] = ``moment`` (in, in)."""
    n = moment.shape[0]
    c = moment.double()
    c = c + 1e-6 * c.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    root = torch.linalg.cholesky(c)
    u, sigma, vt = torch.linalg.svd(w.double() @ root, full_matrices=False)
    b = torch.linalg.solve_triangular(root.T, vt[:rank].T, upper=True).T
    return (u[:, :rank] * sigma[:rank]).float(), b.float()


def rank_for(ratio: float, rows: int, cols: int) -> int:
    """The rank whose factors hold a share ``ratio`` of the weights of (rows, cols)."""
    return max(1, int(ratio * rows * cols / (rows + cols)))


def factor_bytes(rows: int, cols: int, rank: int, fmt: str) -> float:
    """Bytes of both factors on the grid of the weights."""
    return rank * row_bytes(cols, fmt) + rows * row_bytes(-(-rank // 32) * 32, fmt)


class _Moments(Hooks):
    """Sums of |x| and, if asked, x x^T of the tensors that projections multiply."""

    def __init__(self, runner: TorchModel, second: tuple[str, ...] = ()) -> None:
        n = runner.spec.n_layers
        self.first: list[dict[str, Tensor]] = [{} for _ in range(n)]
        self.second: list[dict[str, Tensor]] = [{} for _ in range(n)]
        self.asked, self.tokens = second, 0

    def _add(self, layer: int, name: str, x: Tensor) -> None:
        flat = x.reshape(-1, x.shape[-1]).float()
        if layer == 0 and name == "ffn_in":
            self.tokens += len(flat)
        total = flat.abs().sum(0)
        self.first[layer][name] = self.first[layer].get(name, 0) + total
        if name in self.asked:
            self.second[layer][name] = self.second[layer].get(name, 0) + flat.T @ flat

    def attn_in(self, layer: int, x: Tensor) -> Tensor:
        self._add(layer, "attn_in", x)
        return x

    def attn_out(self, layer: int, heads: Tensor) -> Tensor:
        self._add(layer, "heads", heads)
        return heads

    def ffn_in(self, layer: int, x: Tensor) -> Tensor:
        self._add(layer, "ffn_in", x)
        return x

    def ffn(self, layer: int, gate: Tensor, up: Tensor, h: Tensor) -> Tensor:
        self._add(layer, "h", h)
        return h


def moments(
    runner: TorchModel, ids: np.ndarray, second: tuple[str, ...] = ()
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """By layer and tensor: mean |x| (n,), and E[x x^T] (n, n) of those in ``second``."""
    hooks = _Moments(runner, second)
    for row in ids:
        runner.hidden(torch.from_numpy(row)[None], hooks)
    n = max(hooks.tokens, 1)
    return (
        [{k: v / n for k, v in one.items()} for one in hooks.first],
        [{k: v / n for k, v in one.items()} for one in hooks.second],
    )


@dataclass
class _Full:
    """The singular vectors of one projection, so that any rank is a cut of them."""

    a: Tensor
    b: Tensor

    def cut(self, rank: int) -> Tensor:
        """The projection at a rank, (out, in)."""
        return self.a[:, :rank] @ self.b[:rank]


def decompose(study: Study, alpha: float = ALPHA) -> list[dict[str, _Full]]:
    """Full factors of every projection; memory is that of the model twice over."""
    rows = max(1, SENSITIVITY_TOKENS // study.calibration_ids.shape[1])
    first, _ = moments(study.runner, spread(study.calibration_ids, 2 * rows))
    out = []
    for i, layer in enumerate(study.runner.layers):
        study.progress(f"singular values, layer {i}")
        one = {}
        for name, tensor in MATRICES.items():
            w = getattr(layer, f"{name}_proj")
            one[name] = _Full(*asvd_factors(w, first[i][tensor], min(w.shape), alpha))
        out.append(one)
    return out


class _Replaced:
    """Projections replaced for a while."""

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


def rank_table(study: Study, full: list[dict[str, _Full]]) -> list[list[list[float]]]:
    """Rise of the loss (layers, projections, RATIOS) with one projection cut, alone."""
    runner = study.runner
    rows = max(1, SENSITIVITY_TOKENS // study.calibration_ids.shape[1])
    picked = spread(study.calibration_ids, rows)
    inputs, ids = residuals(runner, picked), torch.from_numpy(picked)
    base = loss_from(runner, runner.spec.n_layers, inputs[-1], ids)
    out = []
    for i in range(runner.spec.n_layers):
        study.progress(f"rank search, layer {i}")
        layer = []
        for name in MATRICES:
            w = getattr(runner.layers[i], f"{name}_proj")
            row = []
            for ratio in RATIOS:
                cut = full[i][name].cut(rank_for(ratio, *w.shape))
                with _Replaced(runner, {(i, name): cut}):
                    row.append(loss_from(runner, i, inputs[i], ids) - base)
            layer.append(row)
        out.append(layer)
    return out


def choose_ratios(table: np.ndarray, sizes: np.ndarray, kept: float) -> np.ndarray:
    """Shares kept (layers, projections) from rises (layers, projections, RATIOS).

    One limit on the rise for all; at it the mean share, weighted by ``sizes`` (projections,), is
    ``kept``. A projection that no ratio leaves under the limit stays whole.
    """
    shares = np.array((1.0, *RATIOS))
    rises = np.concatenate([np.zeros((*table.shape[:2], 1)), table], axis=-1)
    rises = np.maximum.accumulate(rises, axis=-1)
    weight = np.broadcast_to(sizes / sizes.sum() / table.shape[0], table.shape[:2])

    def at(limit: float) -> np.ndarray:
        under = (rises <= limit).sum(-1) - 1
        return np.asarray(shares[under])

    return at(
        _bisect(lambda t: -float((at(t) * weight).sum()), -kept, 0.0, float(rises.max()) + 1e-6)
    )


@dataclass
class LowRank:
    """Ranks and factors of the projections that were cut, by (layer, name)."""

    ranks: dict[tuple[int, str], int]
    factors: dict[tuple[int, str], tuple[Tensor, Tensor]]

    def replaced(self, runner: TorchModel) -> _Replaced:
        """A context in which the runner multiplies with the factors."""
        return _Replaced(runner, {k: a @ b for k, (a, b) in self.factors.items()})

    def extra(self, spec: ModelSpec, study: Study) -> Extra:
        """Bytes of the factors in place of the projections they replace."""
        f, out = study.formats, Extra()
        for name in MATRICES:
            layers = [i for i, n in self.ranks if n == name]
            if not layers:
                continue
            fmt = f.attn if name in "qkvo" else f.ffn
            rows, cols = getattr(study.runner.layers[0], f"{name}_proj").shape
            sizes = np.full(spec.n_layers, np.nan)
            for i in layers:
                sizes[i] = factor_bytes(rows, cols, self.ranks[i, name], fmt)
            out.low_rank[name] = sizes
        return out

    def save(self, path: Path) -> None:
        """An .npz with ``<layer>.<name>.a`` and ``.b`` in binary16."""
        import io

        arrays = {}
        for (i, name), (a, b) in self.factors.items():
            arrays[f"{i}.{name}.a"] = a.numpy().astype(np.float16)
            arrays[f"{i}.{name}.b"] = b.numpy().astype(np.float16)
        data = io.BytesIO()
        np.savez(data, **arrays)  # type: ignore[arg-type]
        write_bytes(path, data.getvalue())


def asvd(study: Study, kept: float, progress: Callable[[str], None] | None = None) -> LowRank:
    """Factors that hold a share ``kept`` of the projections' weights, ranks by the search."""
    del progress
    full = decompose(study)
    table = np.array(study.table("asvd-ranks", lambda: rank_table(study, full)))
    shapes = {n: getattr(study.runner.layers[0], f"{n}_proj").shape for n in MATRICES}
    sizes = np.array([float(r * c) for r, c in shapes.values()])
    ratios = choose_ratios(table, sizes, kept)
    out = LowRank({}, {})
    for i in range(study.model.spec.n_layers):
        for k, name in enumerate(MATRICES):
            if ratios[i, k] < 1.0:
                rank = rank_for(float(ratios[i, k]), *shapes[name])
                f = full[i][name]
                out.ranks[i, name] = rank
                out.factors[i, name] = (f.a[:, :rank].clone(), f.b[:rank].clone())
    return out


def shared_factors(
    gate: Tensor, up: Tensor, moment: Tensor, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """B (rank, in), A_gate and A_up (out, rank) that minimise E |[W_gate; W_up] x - A B x|^2.

    Ranks that the matrices do not have are zeros. The sizes of A and B are those of their roots,
    so that both use the grid alike.
    """
    a, b = whitened_factors(torch.cat([gate, up]), moment, rank)
    root = (a.norm() / b.norm()).sqrt()
    more = rank - b.shape[0]
    a, b = F.pad(a / root, (0, more)), F.pad(b * root, (0, 0, 0, more))
    return b, a[: len(gate)], a[len(gate) :]


def svd_predictor(study: Study, rank: int) -> Predictor:
    """The untrained predictor: whitened singular vectors of gate and up on the q4 grid."""
    rows = max(1, PREDICTOR_TOKENS // study.calibration_ids.shape[1])
    _, second = moments(study.runner, spread(study.calibration_ids, rows), ("ffn_in",))
    packed: list[list[np.ndarray]] = [[], [], []]
    for i, w in enumerate(study.runner.layers):
        study.progress(f"singular vectors of gate and up, layer {i}")
        assert w.gate_proj is not None
        factors = shared_factors(w.gate_proj.float(), w.up_proj.float(), second[i]["ffn_in"], rank)
        for out, m in zip(packed, factors):
            out.append(pack_rows(to_q4(m.numpy())))
    b, gate, up = (np.stack(p) for p in packed)
    return Predictor(b, gate, up)


def copies_of(predictor: Predictor, dim: int) -> list[tuple[Tensor, Tensor]]:
    """A_gate B and A_up B of every layer, (ffn, dim) each."""
    out = []
    for i in range(len(predictor.b)):
        b, gate, up = (torch.from_numpy(m.float32()) for m in predictor.blocks(i, dim))
        out.append((gate @ b, up @ b))
    return out
