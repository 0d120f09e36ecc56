"""A method at a sparsity on one model: levels, thresholds, and how the image must store it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sparseflash.base.errors import UsageError
from sparseflash.image.formats import THRESHOLDS, Formats
from sparseflash.model.recipes import Recipe
from sparseflash.sparsity import registry
from sparseflash.sparsity.bytes import columns_of
from sparseflash.sparsity.masks import LayerRules
from sparseflash.sparsity.sites import Use

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
            f"method {method!r} is measured on the host only (make sparsity); a device runs "
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
    """Method whose guess only reads early what the mask may ask for."""
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
    def guess(self) -> registry.Method | None:
        """The method whose proxies or predictor the image needs."""
        m = registry.method(self.speculate or self.predictor or self.method)
        return m if self.levels and m.guess else None

    @property
    def guessed(self) -> tuple[bool, ...]:
        """``Formats.guessed``: not all layers use the predictor of a plan."""
        return tuple(bool(v > 0) for v in self.levels["proxy"]) if self.predictor else ()

    @property
    def drops_neurons(self) -> bool:
        return self.guess is not None or bool({*NEURONS} & {*self.levels})

    @property
    def columns(self) -> tuple[str, ...]:
        """What the image stores by columns: ``Formats.columns``."""
        return columns_of(self.levels)


def thresholds_of(layers: Sequence[LayerRules]) -> np.ndarray:
    """What the rules of every layer compare with, float32 (layers, 12)."""
    out = np.zeros((len(layers), len(THRESHOLDS)), np.float32)
    for i, rules in enumerate(layers):
        for site, rule in rules.sites.items():
            out[i, THRESHOLDS.index(site)] = rule.threshold
        if rules.proxy is not None:
            out[i, THRESHOLDS.index("guess")] = rules.proxy.rule.threshold
    return out


def formats_for(recipe: Recipe, settings: Sequence[Setting] = ()) -> Formats:
    """The grids of the recipe's weights, stored as the methods need them.

    Raises:
        UsageError: one image cannot serve all of them.
    """
    f = recipe.formats
    needs = {(s.guess, s.columns, s.guessed) for s in settings} - {(None, (), ())}
    if len({(m and (m.proxy or m.name), *rest) for m, *rest in needs}) > 1:
        raise UsageError(
            "one image has proxies of one width, one predictor or one set of matrices by columns; "
            "ask for one prox, one predictor, one teal or marginal at one sparsity at a time"
        )
    m, columns, guessed = needs.pop() if needs else (None, (), ())
    guess, rank, signs = (m.proxy, m.rank, m.signs) if m else (0, 0, False)
    # Its rows take fewer instructions than its columns where no neuron is dropped.
    rows = f["ffn"] == "r8" and settings and not any(s.drops_neurons for s in settings)
    return Formats(
        f["attn"],
        f["ffn"],
        f["embed"],
        guess=guess,
        signs=signs,
        rank=rank,
        guessed=guessed,
        down="rows" if rows else "columns",
        columns=columns,
    )
