"""What a board pins, what it streams, and what each drops: the choice behind ``METHOD=planned``.

The model of the loss (``sparsity.prices``) proposes a plan for what does not fit the RAM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparseflash.base.errors import UsageError
from sparseflash.image.formats import Formats
from sparseflash.model.spec import ModelSpec
from sparseflash.plan.boards import Board
from sparseflash.plan.options import Chosen, Options
from sparseflash.plan.reads import Reading
from sparseflash.plan.solver import Problem, TooMuchError, solve
from sparseflash.sparsity.prices import KIND, Prices
from sparseflash.sparsity.registry import Levels, Method
from sparseflash.sparsity.sites import Use


@dataclass(frozen=True)
class Proposal:
    """Levels, reads and predictor of a plan, and what the model of the loss expects of it."""

    levels: Levels
    use: Use
    predictor: Method | None
    """Picks the neurons of layers with a level ``proxy``."""
    expected: dict[str, float]


def check_streams(board: Board) -> None:
    """Refuses a board that maps its flash."""
    if "stream" not in board.raw:
        raise UsageError(f"board {board.id} maps its flash; planned is for boards that stream it")


def propose(
    spec: ModelSpec,
    formats: Formats,
    board: Board,
    dense: dict[str, Any],
    percent: float,
    prices: Prices,
) -> Proposal:
    """``percent`` fewer streamed bytes than the plan ``dense`` reads, its pinned parts dense.

    Each FFN that streams drops inputs and neurons by their values, or has them picked by one of
    the predictors that have prices.

    Raises:
        UsageError: no plan streams so little.
    """
    total, head_rows = dense["placement"]["total"], dense.get("head_rows", 0)
    reading = Reading.of(board.raw["stream"])
    size = {
        k: sum(p["rows"] * p["bytes"] for p in dense["parts"] if p["kind"] == k)
        for k in ("head_proxy", "head", "down_scales")
    }
    head = size["head_proxy" if head_rows else "head"]
    budget = total["pinned"] - size["down_scales"]
    # The head is pinned first, and what of it is not streams with what is picked of a screened one.
    streams = max(0.0, head - max(budget, 0.0))
    if head_rows:
        streams += sum(
            p["rows"] * p["bytes"] * p["fetched"] for p in dense["parts"] if p["kind"] == "head"
        )
    goal = (1 - percent / 100) * total["read"]
    budget = max(0.0, budget - head)

    found = []
    least = np.inf
    for guess in (None, *prices.guesses):
        options = Options(spec, formats, reading, prices.curves, prices.drift.sure(), guess)
        fits = prices.rises if guess is None else prices.rises | {KIND: guess.rise}
        problem = Problem(options.units, fits, budget, goal - streams)
        try:
            found.append((solve(problem), options, problem))
        except TooMuchError as e:
            least = min(least, e.least)
    if not found:
        raise UsageError(
            f"board {board.id} reads {total['read']:,.0f} bytes a token of {dense['name']} when "
            f"nothing is dropped, in blocks of {reading.align:,} bytes and over gaps of "
            f"{reading.gap:,}; dropping can bring that down to {least + streams:,.0f} at the "
            f"least, not to {goal:,.0f}: ask for a lower sparsity, or give more RAM"
        )
    best, options, problem = min(found, key=lambda f: f[0].rise)
    more = solve(replace(problem, budget=problem.budget + 1e6))
    chosen = options.spell(best.pick)
    predictor = None
    if options.guessed is not None and "proxy" in chosen.levels:
        predictor = options.guessed.method
    expected = {
        "ratio_predicted": float(np.exp(best.rise)),
        "ratio_predicted_with_a_megabyte": float(np.exp(more.rise)),
        "layers": float(spec.n_layers),
    }
    return Proposal(chosen.levels, chosen.use, predictor, expected | _summary(chosen))


def _summary(chosen: Chosen) -> dict[str, float]:
    """Numbers of layers by what stays whole in them, and of those where a predictor picks."""
    out = {f"whole_{k}": float(v.sum()) for k, v in chosen.whole.items()}
    if "proxy" in chosen.levels:
        out["guessed"] = float((chosen.levels["proxy"] > 0).sum())
    return out
