"""What a board pins, what it streams, and what each drops: the choice behind ``METHOD=auto``.

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
    read: float
    """Bytes a token from flash, by the options' model of reads."""


def check_streams(board: Board) -> None:
    """Refuses a board that maps its flash."""
    if not streams(board):
        raise UsageError(f"board {board.id} maps its flash; planned is for boards that stream it")


def propose(
    spec: ModelSpec,
    formats: Formats,
    board: Board,
    dense: dict[str, Any],
    percent: float,
    prices: Prices,
    more_ram: bool = True,
) -> Proposal:
    """``percent`` fewer streamed bytes than the plan ``dense`` reads, its pinned parts dense.

    Each FFN that streams drops inputs and neurons by their values, or has them picked by one of
    the predictors that have prices. more_ram: also what a megabyte more would bring.

    Raises:
        TooMuchError: no plan streams so little.
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
    head_streams = max(0.0, head - max(budget, 0.0))
    if head_rows:
        head_streams += sum(
            p["rows"] * p["bytes"] * p["fetched"] for p in dense["parts"] if p["kind"] == "head"
        )
    goal = (1 - percent / 100) * total["read"]
    budget = max(0.0, budget - head)

    found = []
    least = np.inf
    for prediction in (None, *prices.predictions):
        options = Options(spec, formats, reading, prices.curves, prices.drift.sure(), prediction)
        fits = prices.rises if prediction is None else prices.rises | {KIND: prediction.rise}
        problem = Problem(options.units, fits, budget, goal - head_streams)
        try:
            found.append((solve(problem), options, problem))
        except TooMuchError as e:
            least = min(least, e.least)
    if not found:
        raise TooMuchError(
            least + head_streams,
            f"board {board.id} reads {total['read']:,.0f} bytes a token of {dense['name']} when "
            f"nothing is dropped, in blocks of {reading.align:,} bytes and over gaps of "
            f"{reading.gap:,}; dropping can bring that down to {least + head_streams:,.0f} at the "
            f"least, not to {goal:,.0f}: ask for a lower sparsity, or give more RAM",
        )
    best, options, problem = min(found, key=lambda f: f[0].rise)
    chosen = options.spell(best.pick)
    predictor = None
    if options.predicted is not None and "proxy" in chosen.levels:
        predictor = options.predicted.method
    expected = {"ratio_predicted": float(np.exp(best.rise)), "layers": float(spec.n_layers)}
    if more_ram:
        more = solve(replace(problem, budget=problem.budget + 1e6))
        expected["ratio_predicted_with_a_megabyte"] = float(np.exp(more.rise))
    read = best.streamed + head_streams
    return Proposal(chosen.levels, chosen.use, predictor, expected | _summary(chosen), read)


AUTO_PERCENTS = (20.0, 10.0)
"""Fewer streamed bytes that ``auto`` tries when none are asked for."""
AUTO_RATIO = 1.02
"""Of perplexity to dense that such a plan may cost by prediction."""


def streams(board: Board) -> bool:
    """Whether the board reads weights from flash for each token, past a RAM budget."""
    return "stream" in board.raw


def choose(
    spec: ModelSpec,
    formats: Formats,
    board: Board,
    dense: dict[str, Any],
    percent: float | None,
    prices: Prices | None,
) -> tuple[Proposal | None, str]:
    """What ``auto`` drops, None for nothing, and the reason in a sentence.

    dense: the plan that drops nothing. percent: of fewer streamed bytes; None takes what costs
    little. prices: None where nobody measured them.

    Raises:
        TooMuchError: no plan streams ``percent`` fewer bytes.
    """
    if not streams(board):
        return None, f"{board.id} maps its flash and reads nothing ahead, so auto drops nothing"
    total = dense["placement"]["total"]
    if percent == 0:
        return None, "0 % is asked for, so nothing is dropped"
    if not total["streamed"]:
        return None, "all weights stay in RAM, so dropping gains nothing and auto stays dense"
    if spec.experts:
        return None, (
            f"the router of {dense['name']} chooses {spec.experts_used} of {spec.experts} experts "
            "a token, and auto drops nothing more"
        )
    if prices is None and (spec.own_thresholds or spec.active_share < 1):
        return None, f"{dense['name']} was trained to leave weights unread, and auto drops no more"
    if prices is None:
        return None, (
            f"what drops of {dense['name']} cost is not measured, so auto stays dense; "
            f"sparseflash prices --model {dense['name']} measures it, --method h drops without it"
        )
    for tried in AUTO_PERCENTS if percent is None else (percent,):
        try:
            found = propose(spec, formats, board, dense, tried, prices, more_ram=False)
        except TooMuchError as e:
            if percent is not None:
                raise
            saved = max(0.0, 100 * (1 - e.least / total["read"]))
            reason = f"dropping saves at most {saved:.0f} % of what {board.id} reads a token"
            if e.least > (1 - min(AUTO_PERCENTS) / 100) * total["read"]:
                break
            continue
        ratio = found.expected["ratio_predicted"]
        if percent is not None or ratio <= AUTO_RATIO:
            return found, f"auto reads {tried:g} % fewer bytes a token than dense on {board.id}"
        reason = f"{tried:g} % fewer bytes would cost {100 * (ratio - 1):.0f} % of perplexity"
    return None, f"{reason}, so auto stays dense"


def _summary(chosen: Chosen) -> dict[str, float]:
    """Numbers of layers by what stays whole in them, and of those where a predictor picks."""
    out = {f"whole_{k}": float(v.sum()) for k, v in chosen.whole.items()}
    if "proxy" in chosen.levels:
        out["predicted"] = float((chosen.levels["proxy"] > 0).sum())
    return out
