"""How well the active neurons of a token can be told before its FFN runs.

A neuron is active when |h| reaches the layer's threshold at a level. A prediction is a set of
neurons for each token; against the true set it has

* recall: share of the active neurons that the prediction holds;
* precision: share of the prediction that is active;
* lift: recall over the prediction's own size (as a share of all neurons). A random mask of the
  same size has lift 1, so recall without lift says nothing.

Predictions that need no training: the neurons active in any of the last w tokens; the same number
of neurons as are active, by mean |h| of the last w tokens; the model's own gate and up applied to
an earlier residual (before this layer's attention, or the input of an earlier layer); and the
neurons that are most active on average in another prompt.

``whole_prompt`` is the protocol of the founding paper's kind (arXiv 2412.12178): a neuron of a
prompt is active when its mean |h| over the prompt is among the largest share, and the sets of two
prompts are compared. It hides time: neurons that are large on average agree between prompts while
the set of a single token is hardly told by them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseflash.base.progress import each
from sparseflash.model.torch_model import Hooks
from sparseflash.sparsity.study import Study

WINDOWS = (1, 2, 4, 8)
DISTANCES = (0, 1, 2, 4)
"""Layers back of the residual; 0 is the input of this layer's own attention."""


@dataclass
class Score:
    """Counts of one prediction in one layer, summed over tokens."""

    hit: float = 0.0
    active: float = 0.0
    predicted: float = 0.0
    neurons: float = 0.0

    def add(self, prediction: Tensor, active: Tensor) -> None:
        """bool (T, ffn) each."""
        self.hit += float((prediction & active).sum())
        self.active += float(active.sum())
        self.predicted += float(prediction.sum())
        self.neurons += float(active.numel())

    def plain(self) -> dict[str, float]:
        recall = self.hit / max(self.active, 1.0)
        share = self.predicted / max(self.neurons, 1.0)
        return {
            "recall": recall,
            "precision": self.hit / max(self.predicted, 1.0),
            "predicted": share,
            "active": self.active / max(self.neurons, 1.0),
            "lift": recall / max(share, 1e-12),
        }


@dataclass
class _Watch(Hooks):
    """Scores every prediction while a window passes."""

    study: Study
    thresholds: list[float]
    level: float
    scores: dict[str, list[Score]] = field(default_factory=dict)
    means: list[Tensor] = field(default_factory=list)
    active: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)

    def start(self) -> None:
        """A new window."""
        self.means, self.active, self.inputs = [], [], []

    def _score(self, name: str, layer: int, prediction: Tensor, active: Tensor) -> None:
        n = self.study.model.spec.n_layers
        self.scores.setdefault(name, [Score() for _ in range(n)])[layer].add(prediction, active)

    def ffn(self, layer: int, gate: Tensor, up: Tensor, h: Tensor) -> Tensor:
        size = h[0].abs()
        active = size >= self.thresholds[layer]
        self.active.append(active)
        self.means.append(size.mean(0))
        first = max(WINDOWS)
        for w in WINDOWS:
            past = [active[first - k : len(active) - k] for k in range(1, w + 1)]
            union = torch.stack(past).any(0)
            self._score(f"any of the last {w}", layer, union, active[first:])
            mean = torch.stack([size[first - k : len(size) - k] for k in range(1, w + 1)]).mean(0)
            self._score(f"mean of the last {w}", layer, self._largest(mean), active[first:])
        runner = self.study.runner
        for d in DISTANCES:
            if layer - d < 0:
                continue
            prediction = runner.neurons(layer, self.inputs[layer - d])[0].abs()
            name = "input of this layer" if d == 0 else f"input of {d} layers before"
            self._score(name, layer, self._largest(prediction), active)
        return h

    def _largest(self, values: Tensor) -> Tensor:
        """The share 1 - level of neurons with the largest values, for each token."""
        n = values.shape[-1]
        keep = max(1, round((1 - self.level) * n))
        limit = values.kthvalue(n - keep + 1, dim=-1, keepdim=True).values
        return values >= limit


def predictability(study: Study, windows: np.ndarray, level: float) -> dict[str, Any]:
    """Scores by prediction: means over layers, and by layer. ``windows`` are the prompts."""
    study.need_scores(["h"])
    n = study.model.spec.n_layers
    limits = [study.scores.threshold(i, "h", level) for i in range(n)]
    watch = _Watch(study, limits, level)
    prompts: list[tuple[list[Tensor], list[Tensor]]] = []
    runner = study.runner
    with torch.no_grad():
        study.progress(f"predictability at {100 * level:g} %")
        for row in each(f"predictability at {100 * level:g} % in windows", windows):
            watch.start()
            x, run = runner.begin(torch.from_numpy(np.asarray(row, np.int64))[None], watch)
            for i in range(n):
                watch.inputs.append(x)
                x = x + runner.attention_branch(i, x, run)
                x = x + runner.ffn_branch(i, x, run)
            prompts.append((watch.means, watch.active))
    scores = watch.scores
    whole = [Score() for _ in range(n)]
    for a, (means, _) in enumerate(prompts):
        other, active = prompts[(a + 1) % len(prompts)]
        for i in range(n):
            mine = watch._largest(other[i])
            expected = watch._largest(means[i]).expand_as(active[i])
            watch._score("mean of another prompt", i, expected, active[i])
            whole[i].add(watch._largest(means[i]), mine)
    out: dict[str, Any] = {"level": level, "tokens": int(windows.size), "prompts": len(windows)}
    out["predictions"] = {}
    for name, layers in [*scores.items(), ("whole prompt against whole prompt", whole)]:
        rows = [s.plain() for s in layers]
        seen = [r for r, s in zip(rows, layers) if s.neurons]
        mean = {k: float(np.mean([r[k] for r in seen])) for k in rows[0]}
        out["predictions"][name] = {"mean": mean, "layers": rows}
    return out
