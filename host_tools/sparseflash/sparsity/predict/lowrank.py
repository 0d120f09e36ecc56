"""Whitened low-rank factors, the untrained predictor of h.

With C = E[x x^T] of the input, A B is the cut of W C^(1/2) with C^(1/2) put back: the least error
of W x at a rank. Factors of [W_gate; W_up] predict h from A (B x), with one B for both.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflash.base.progress import each
from sparseflash.image.grids import pack_rows, quantize, row_bytes
from sparseflash.image.predictor import Predictor
from sparseflash.model.torch_model import Hooks, TorchModel
from sparseflash.sparsity.windows import spread

PREDICTOR_TOKENS = 4096
"""Of calibration text."""


def whitened_factors(w: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A and B that minimise E |W x - A B x|^2 for E[x x^T] = ``moment`` (in, in).

    Singular vectors are eigenvectors of the Gram matrix, found in a fraction of the time.
    """
    n = moment.shape[0]
    c = moment.double()
    c = c + 1e-6 * c.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    root = torch.linalg.cholesky(c)
    white = w.double() @ root
    v = torch.linalg.eigh(white.T @ white).eigenvectors.flip(1)[:, :rank]
    b = torch.linalg.solve_triangular(root.mT, v, upper=True).T
    return (white @ v).float(), b.float()


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
            flat = flat.double()  # so that few tokens leave it positive
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


def svd_predictor(
    runner: TorchModel, calibration_ids: np.ndarray, rank: int, progress: Callable[[str], None]
) -> Predictor:
    """The untrained predictor: whitened singular vectors of gate and up on the q4 grid."""
    rows = max(1, PREDICTOR_TOKENS // calibration_ids.shape[1])
    _, second = moments(runner, spread(calibration_ids, rows), ("ffn_in",))
    packed: list[list[np.ndarray]] = [[], [], []]
    progress("singular vectors of gate and up")
    for i, w in enumerate(each("singular vectors of layers", runner.layers)):
        gate = w.up_proj[:0] if w.gate_proj is None else w.gate_proj
        moment = second[i]["ffn_in"]
        factors = shared_factors(gate.float(), w.up_proj.float(), moment, rank)
        for out, m in zip(packed, factors):
            none = np.zeros((0, row_bytes(rank, "q4")), np.uint8)  # of a gate that there is not
            out.append(pack_rows(quantize(m.cpu().numpy(), "q4")) if len(m) else none)
    rows = [np.stack(p) for p in packed]
    return Predictor(rows[0], rows[1], rows[2])


def copies_of(predictor: Predictor, dim: int) -> list[tuple[Tensor | None, Tensor | None]]:
    """A_gate B and A_up B of every layer, (ffn, dim) each; no A_gate B without a gate."""
    out: list[tuple[Tensor | None, Tensor | None]] = []
    for i in range(len(predictor.b)):
        b, gate, up = (
            None if m is None else torch.tensor(m.float32()) for m in predictor.blocks(i, dim)
        )
        assert b is not None and up is not None
        out.append((None if gate is None else gate @ b, up @ b))
    return out
