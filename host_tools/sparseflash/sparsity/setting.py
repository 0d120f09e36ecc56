"""A method at a sparsity on one model: levels, thresholds, and how the image must store it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sparseflash.base.errors import UsageError
from sparseflash.image.formats import THRESHOLDS, Formats
from sparseflash.image.needs import Needs
from sparseflash.image.proxy import Proxies, Signs
from sparseflash.model.recipes import Recipe
from sparseflash.sparsity import registry
from sparseflash.sparsity.bytes import columns_of
from sparseflash.sparsity.sites import Use

if TYPE_CHECKING:
    from sparseflash.sparsity.masks import LayerRules

DEVICE_METHODS = tuple(m.name for m in registry.METHODS.values() if m.device)
"""Methods that thresholds of a layer express."""
PEOPLE = ("auto", "dense", "h", "cats", "paper", "teal", "prox-3", "marginal")
"""Methods that the command line names; all that are measured are in docs/METHODS.md."""
PERCENT = 30.0
"""That a named method takes when none is asked for; ``auto`` chooses its own."""
NEURONS = ("gate", "act", "up", "h")
"""Sites of true values that drop neurons."""


def check_method(method: str, percent: float) -> None:
    """Refuses a method that does not exist or that no device runs, and a sparsity out of range."""
    if method not in registry.METHODS and not method.startswith("lowrank-"):
        raise UsageError(
            f"method {method!r} is unknown; there are {', '.join(PEOPLE)}, and all of "
            "docs/METHODS.md"
        )
    if not registry.method(method).device:
        raise UsageError(
            f"method {method!r} is measured on the host only (sparseflash sparsity); a device runs "
            f"{', '.join(DEVICE_METHODS)}"
        )
    if not 0 <= percent < 100:
        raise UsageError(f"sparsity {percent:g} is out of range; give 0 up to below 100 percent")


@dataclass(frozen=True)
class Setting:
    """A method at a sparsity on one model."""

    method: str
    percent: float
    levels: dict[str, np.ndarray]
    """Share dropped by site, and by ``proxy`` or predictor, (layers,) each; empty is dense."""
    thresholds: np.ndarray
    """float32 (layers, 12), in the order of THRESHOLDS."""
    speculate: str = ""
    """Method whose predictor only reads early what the mask may ask for."""
    use: Use | None = None
    """Shares of rows that a token reads, where they were measured."""
    expected: dict[str, float] = field(default_factory=dict)
    """Of the planner: ``ratio`` of perplexity to dense and its error, measured; what the model of
    the loss predicted, now and with a megabyte more; numbers of layers by what stays whole."""
    reason: str = ""
    """Of ``auto``: why it chose this, a sentence."""
    predictor: str = ""
    """Method whose predictor picks the neurons of layers with a level ``proxy``."""

    @property
    def predicting(self) -> registry.Method | None:
        """The method whose proxies or predictor the image needs."""
        m = registry.method(self.speculate or self.predictor or self.method)
        return m if self.levels and m.predicts else None

    @property
    def predicted(self) -> tuple[bool, ...]:
        """``Needs.predicted``: not all layers use the predictor of a plan."""
        return tuple(bool(v > 0) for v in self.levels["proxy"]) if self.predictor else ()

    @property
    def drops_neurons(self) -> bool:
        return self.predicting is not None or bool({*NEURONS} & {*self.levels})

    @property
    def scores(self) -> tuple[tuple[str, ...], bool]:
        """``Needs.norms`` and ``Needs.top_k``."""
        m = registry.method(self.method)
        return (m.norms, m.select == "top-k") if self.levels else ((), False)

    @property
    def columns(self) -> tuple[str, ...]:
        """What the image stores by columns: ``Needs.columns``."""
        return columns_of(self.levels)


def thresholds_of(layers: Sequence[LayerRules]) -> np.ndarray:
    """What the rules of every layer compare with, float32 (layers, 12)."""
    out = np.zeros((len(layers), len(THRESHOLDS)), np.float32)
    for i, rules in enumerate(layers):
        for site, rule in rules.sites.items():
            out[i, THRESHOLDS.index(site)] = rule.threshold if rule.keep is None else rule.keep
        if rules.proxy is not None:
            out[i, THRESHOLDS.index("predictor")] = rules.proxy.rule.threshold
    return out


def formats_for(recipe: Recipe, order: str = "file") -> Formats:
    """The grids of the recipe's weights, and the order of neurons."""
    f = recipe.formats
    return Formats(f["attn"], f["ffn"], f["embed"], order)


def needs_for(recipe: Recipe, settings: Sequence[Setting] = ()) -> Needs:
    """How the methods need the image stored, save for a low-rank predictor.

    Raises:
        UsageError: one image cannot serve all of them.
    """
    nothing = (None, (), (), (), False)
    asked = {(s.predicting, s.columns, s.predicted, *s.scores) for s in settings} - {nothing}
    if len({(m and (m.proxy or m.name), *rest) for m, *rest in asked}) > 1:
        raise UsageError(
            "one image has proxies of one width, one predictor, one set of matrices by columns and "
            "one kind of score; ask for one prox, one predictor, one teal, wina, acttail, cett or "
            "marginal at one sparsity at a time"
        )
    m, columns, predicted, norms, top_k = asked.pop() if asked else nothing
    # Its rows take fewer instructions than its columns where no neuron is dropped.
    r8 = recipe.formats["ffn"] == "r8"
    rows = r8 and settings and not any(s.drops_neurons for s in settings)
    return Needs(
        columns=columns,
        down="rows" if rows else "columns",
        predictor=Signs() if m and m.signs else Proxies(m.proxy) if m and m.proxy else None,
        predicted=predicted,
        norms=norms,
        top_k=top_k,
    )
