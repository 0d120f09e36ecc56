"""Order of neurons in flash: those that are active together lie side by side.

Neighbouring active records are one read, so what counts is how often a neuron is active and its
neighbour is not. Co-activation on calibration text gives that for every pair; the order is a short
path through them. Neurons move only within their group of 32: the group shares the scales of
down_proj and the exponent of h, so logits keep every bit (docs/SPEC.md), and Q4_1 stays lossless.
Placing co-activated neurons side by side: Ripple, arXiv 2410.19274.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from sparseflash.base.errors import InputError
from sparseflash.base.files import write_arrays
from sparseflash.base.progress import each
from sparseflash.image.bfp import GROUP
from sparseflash.model.spec import Model
from sparseflash.sparsity.calibrate import Calibration, activation

SITE, SHARE = "act", 0.6
"""A neuron counts as active above this percentile of act(gate), which picks up rows and columns."""
TOKENS = 4096


def apart(active: np.ndarray) -> np.ndarray:
    """How often one neuron of a group is active without the other.

    Args:
        active: bool (tokens, ffn).

    Returns:
        float32 (groups, 32, 32); pairs beyond the last neuron are 0.
    """
    t, ffn = active.shape
    padded = np.pad(active, ((0, 0), (0, -ffn % GROUP))).astype(np.float32)
    groups = padded.reshape(t, -1, GROUP).transpose(1, 0, 2)
    both = groups.transpose(0, 2, 1) @ groups
    alone = groups.sum(1)
    return np.asarray(alone[:, :, None] + alone[:, None, :] - 2 * both, np.float32)


def path_through(distance: np.ndarray) -> list[int]:
    """A short path through n points, (n, n) distances: the best greedy one, improved by 2-opt."""
    n = len(distance)
    d = distance.tolist()

    def greedy(first: int) -> list[int]:
        path, left = [first], set(range(n)) - {first}
        while left:
            path.append(min(left, key=lambda j: (d[path[-1]][j], j)))
            left.remove(path[-1])
        return path

    def length(path: list[int]) -> float:
        return sum(d[a][b] for a, b in pairwise(path))

    path = min((greedy(k) for k in range(n)), key=length)
    better = True
    while better:
        better = False
        for i in range(n - 1):
            for j in range(i + 1, n):
                old = new = 0.0
                if i > 0:
                    old, new = old + d[path[i - 1]][path[i]], new + d[path[i - 1]][path[j]]
                if j + 1 < n:
                    old, new = old + d[path[j]][path[j + 1]], new + d[path[i]][path[j + 1]]
                if new < old - 1e-6:
                    path[i : j + 1] = path[i : j + 1][::-1]
                    better = True
    return path


def order_of(distances: np.ndarray, ffn: int) -> np.ndarray:
    """Old numbers of the neurons in their new places, int64 (ffn,), from (groups, 32, 32)."""
    out = []
    for g, distance in enumerate(distances):
        n = min(GROUP, ffn - g * GROUP)
        out += [g * GROUP + k for k in path_through(distance[:n, :n])]
    return np.array(out, np.int64)


def measure_order(model: Model, ids: np.ndarray, calibration: Calibration) -> np.ndarray:
    """The order of every layer, int64 (layers, ffn), from the float model on ``ids`` (m, window).

    Raises:
        UsageError: the calibration is of another model, or has no site ``act``.
    """
    import torch

    from sparseflash.model.torch_model import Hooks, TorchModel

    spec = model.spec
    limits = [
        calibration.threshold(i, SITE if spec.gated else "h", SHARE) for i in range(spec.n_layers)
    ]
    total = np.zeros((spec.n_layers, -(-spec.ffn_dim // GROUP), GROUP, GROUP), np.float32)

    class Count(Hooks):
        """Adds what passes and changes nothing."""

        def ffn(
            self, layer: int, gate: torch.Tensor, up: torch.Tensor, h: torch.Tensor
        ) -> torch.Tensor:
            act = activation(spec.activation, gate.detach()) if spec.gated else h
            active = act.abs().reshape(-1, spec.ffn_dim) >= limits[layer]
            total[layer] += apart(active.numpy())
            return h

    runner, count = TorchModel(model), Count()
    with torch.no_grad():
        for row in each("co-activation in windows", ids[:: max(1, ids.size // TOKENS)]):
            runner.hidden(torch.from_numpy(row[None]), count)
    return np.stack([order_of(layer, spec.ffn_dim) for layer in total])


def save_order(path: Path, order: np.ndarray, model_sha256: str) -> None:
    """Writes the order beside the model it was measured on."""
    write_arrays(path, order=order.astype(np.uint16), model=np.array(model_sha256))


def load_order(path: Path, model_sha256: str) -> np.ndarray | None:
    """The order of :func:`save_order`, None when there is none for this model.

    Raises:
        InputError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as z:
            return z["order"].astype(np.int64) if str(z["model"]) == model_sha256 else None
    except (OSError, ValueError, KeyError) as e:
        raise InputError(f"{path} is damaged ({e}); remove it, and it is measured again") from e
