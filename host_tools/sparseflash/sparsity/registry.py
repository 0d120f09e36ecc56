"""Methods by name: where they drop, what they compare, how they select and how they share a budget.

A method turns a level into levels for each site and layer (its budget), and those into rules.
Adding one is an entry of METHODS, a budget one file of ``budgets``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from sparseflash.base.errors import UsageError
from sparseflash.model.spec import Activation, ModelSpec

Levels = dict[str, np.ndarray]
"""Share of entries that each site drops, 0 to below 1, (layers,)."""


@dataclass(frozen=True)
class Method:
    """One system. ``level`` means what its budget says: usually the share dropped at each site."""

    name: str
    title: str
    sites: tuple[str, ...]
    score: str = "magnitude"
    """magnitude; norm: times the norm of the column that the entry meets; fisher: times the root
    mean square of the gradient there."""
    select: str = "threshold"
    """threshold (calibrated for each layer) or top-k (for each token)."""
    budget: str = "uniform"
    proxy: int = 0
    """Bits of the copies of gate and up that choose the neurons; 0 has none."""
    rank: int = 0
    """Rank of the predictor that chooses the neurons instead."""
    signs: bool = False
    """Neurons whose gate row agrees in enough signs with the input, for ReLU models."""
    trained: bool = False
    """The predictor is a file that the model's recipe names, not whitened singular vectors."""
    second: float = 0.0
    """With a proxy or a rank: the exact h is thresholded too, at this share of the level."""
    source: str = ""
    device: bool = False
    """The generated C applies it: thresholds of each layer (``reference.THRESHOLDS``)."""

    @property
    def norms(self) -> tuple[str, ...]:
        """Sites whose scores the norms of columns weigh: ``Needs.norms``."""
        return self.sites if self.score == "norm" else ()

    @property
    def predicts(self) -> bool:
        """Neurons are chosen before they are read."""
        return self.proxy > 0 or self.rank > 0 or self.signs

    def suits(self, spec: ModelSpec) -> bool:
        """Whether the model has what the method looks at."""
        return not self.lacks(spec)

    def lacks(self, spec: ModelSpec) -> str:
        """What the method looks at and the model does not have; empty where it suits."""
        if self.signs and spec.activation is not Activation.RELU:
            return (
                f"it is for ReLU gates and this one has {spec.activation.value}; take a prox, svd "
                "or lowrank method"
            )
        ffn = {*self.sites} - {"q", "k", "v", "o"}
        if spec.experts and (ffn or self.predicts):
            return (
                "its router already chooses which experts are read, and dropping inside an expert "
                "is not measured; take dense or teal-attn"
            )
        if not spec.gated and ({"gate", "act", "up", "xg"} & ffn or self.budget == "marginal"):
            return "its FFN has no gate; take h, teal-attn, or a prox, svd, lowrank or signs method"
        return ""

    def check(self, spec: ModelSpec, model: str) -> None:
        """Raises UsageError where the model does not have what the method looks at."""
        if reason := self.lacks(spec):
            raise UsageError(f"method {self.name} does not suit {model}: {reason}")


_TEAL = ("q", "k", "v", "o", "xg", "xu", "h")
_LIST = (
    Method("dense", "nothing dropped", (), device=True),
    Method(
        "paper",
        "gate, up and down outputs, one percentile each",
        ("gate", "up", "down"),
        source="arXiv 2412.12178",
        device=True,
    ),
    Method(
        "paper-gate-up",
        "gate and up outputs, one percentile each",
        ("gate", "up"),
        source="arXiv 2412.12178",
        device=True,
    ),
    Method("cats", "act(gate)", ("act",), source="arXiv 2404.08763", device=True),
    Method("h", "act(gate)*up", ("h",), device=True),
    Method(
        "h-norm",
        "h times its column's norm",
        ("h",),
        score="norm",
        source="arXiv 2411.02335",
        device=True,
    ),
    Method("teal-x", "FFN inputs", ("xg", "xu"), source="arXiv 2408.14690", device=True),
    Method(
        "teal-attn",
        "inputs of q, k, v and o",
        ("q", "k", "v", "o"),
        source="arXiv 2408.14690",
        device=True,
    ),
    Method("teal", "inputs of all seven matrices", _TEAL, source="arXiv 2408.14690", device=True),
    Method(
        "teal-greedy",
        "all inputs, greedy split in each block",
        _TEAL,
        budget="greedy",
        source="arXiv 2408.14690",
        device=True,
    ),
    Method(
        "wina",
        "all inputs by |x| times column norm, top-k",
        _TEAL,
        score="norm",
        select="top-k",
        source="arXiv 2505.19427",
        device=True,
    ),
    Method(
        "acttail",
        "all inputs, top-k, levels from the weight spectra",
        _TEAL,
        select="top-k",
        budget="tail",
        source="arXiv 2603.12272",
        device=True,
    ),
    Method(
        "cett",
        "h times column norm, one CETT for all layers",
        ("h",),
        score="norm",
        budget="cett",
        source="arXiv 2411.02335",
        device=True,
    ),
    Method(
        "asvd-inputs",
        "all inputs, levels by sensitivity",
        _TEAL,
        budget="sensitivity",
        source="arXiv 2312.05821",
        device=True,
    ),
    Method("asvd-h", "h, levels by sensitivity", ("h",), budget="sensitivity", device=True),
    *(
        Method(
            f"prox-{k}",
            f"neurons by a {k}-bit proxy",
            (),
            proxy=k,
            source="arXiv 2607.27591",
            device=True,
        )
        for k in (4, 3, 2, 1)
    ),
    Method(
        "prox-3-two",
        "3-bit proxy, and a threshold on the exact h at half the level",
        ("h",),
        proxy=3,
        second=0.5,
        source="arXiv 2607.27591",
        device=True,
    ),
    *(
        Method(f"svd-{r}", f"neurons by whitened factors of rank {r}", (), rank=r, device=True)
        for r in (64, 128)
    ),
    Method(
        "signs",
        "neurons of a ReLU model by agreeing signs of gate row and input",
        (),
        signs=True,
        source="idea of SparseInfer",
        device=True,
    ),
    Method(
        "marginal",
        "inputs, act and h: equal loss for each byte saved",
        ("q", "k", "v", "o", "xg", "xu", "act", "h"),
        budget="marginal",
        device=True,
    ),
    Method(
        "marginal-fisher",
        "the same sites, magnitudes weighed by gradients",
        ("q", "k", "v", "o", "xg", "xu", "act", "h"),
        score="fisher",
        budget="marginal",
    ),
    Method("h-fisher", "h weighed by its gradient", ("h",), score="fisher"),
    Method("cats-fisher", "act(gate) weighed by its gradient", ("act",), score="fisher"),
    Method(
        "marginal-ffn",
        "act and h: equal loss for each byte saved",
        ("act", "h"),
        budget="marginal",
        device=True,
    ),
    Method(
        "marginal-ffn-fisher",
        "act and h, magnitudes weighed by gradients",
        ("act", "h"),
        score="fisher",
        budget="marginal",
    ),
    Method(
        "marginal-h", "h: equal loss for each byte saved", ("h",), budget="marginal", device=True
    ),
)
METHODS: dict[str, Method] = {m.name: m for m in _LIST}
_TRAINED = re.compile(r"lowrank-([0-9]+)(-[a-z0-9]+)*")


def method(name: str) -> Method:
    """The method of a name; ``lowrank-<rank>`` and names that go on so are trained predictors.

    Raises:
        UsageError: there is none.
    """
    trained = _TRAINED.fullmatch(name)
    if trained:
        rank = int(trained[1])
        what = f"neurons by trained factors of rank {rank}"
        return Method(name, what, (), rank=rank, trained=True, device=True)
    if name not in METHODS:
        names = ", ".join([*METHODS, "lowrank-<rank>"])
        raise UsageError(f"method {name!r} is unknown; there are {names}")
    return METHODS[name]
