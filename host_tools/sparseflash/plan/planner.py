"""The stage behind ``METHOD=planned``: what a board pins, what it streams, and what each loses.

The model of the loss proposes a plan, text that calibration did not see says what it costs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sparseflash.base.errors import UsageError
from sparseflash.image.reference import THRESHOLDS
from sparseflash.model.recipes import Recipe
from sparseflash.model.spec import Model
from sparseflash.pipeline.stages import (
    Setting,
    calibration_settings,
    calibration_tokens,
    check_method,
    pack_model,
    study_of,
    thresholds_of,
    with_curve,
)
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan
from sparseflash.plan.reads import Reading
from sparseflash.sparsity import registry

if TYPE_CHECKING:
    from sparseflash.plan.options import Chosen
    from sparseflash.sparsity.masks import LayerRules
    from sparseflash.sparsity.study import Study

HELD_OUT = 16
"""Windows on which a plan is measured."""
SHARED = 16
"""Tokens in a row that no such window has in common with the calibration's."""


def held_out_windows(model: Model, recipe: Recipe, count: int = HELD_OUT) -> np.ndarray:
    """Windows (count or fewer, tokens) of the calibration's texts that share nothing with it."""
    from sparseflash.sparsity.evaluate import spread

    def runs(row: np.ndarray) -> set[bytes]:
        return {row[i : i + SHARED].tobytes() for i in range(len(row) - SHARED + 1)}

    ids, _ = calibration_tokens(model, recipe)
    seen = set().union(*(runs(row) for row in ids))
    others, _ = calibration_tokens(model, recipe, seed=calibration_settings(recipe)["seed"] + 1)
    rows = [row for row in others if not runs(row) & seen]
    if not rows:
        raise UsageError(
            f"the texts of {model.name} are too short to hold windows that calibration did not "
            "see; give the recipe a longer text or fewer calibration tokens"
        )
    return spread(np.stack(rows), count)


def planned_for(
    model: Model,
    recipe: Recipe,
    board: Board,
    percent: float,
    kv_len: int | None = None,
    ram: int | None = None,
    head_rows: int = 0,
) -> Setting:
    """Levels for what does not fit the RAM: ``percent`` fewer streamed bytes, pinned parts dense.

    Each FFN that streams drops inputs and neurons by their values, or has them picked by one of the
    predictors that the recipe names. head_rows: of a screened head.

    Raises:
        UsageError: the board does not stream, or no plan streams so little.
        TooSmallError: the RAM holds no plan.
    """
    from sparseflash.plan.options import Options
    from sparseflash.plan.solver import Problem, TooMuchError, solve
    from sparseflash.sparsity.budgets.marginal import model_of
    from sparseflash.sparsity.predict.guessed import KIND, guessed

    marginal = registry.method("marginal")
    check_method(marginal.name, percent)
    if "stream" not in board.raw:
        raise UsageError(f"board {board.id} maps its flash; planned is for boards that stream it")
    board = with_curve(board)
    none = np.zeros((model.spec.n_layers, len(THRESHOLDS)), np.float32)
    image = pack_model(model, recipe, "split", screened=head_rows > 0)
    positions = kv_len or min(recipe.kv_len, board.kv_len_default)
    dense = make_plan(image, board, none, positions, ram=ram, head_rows=head_rows)
    total = dense["placement"]["total"]
    if not total["streamed"] or not percent:
        return Setting("dense", 0.0, {}, none, expected={"ratio": 1.0})
    study = study_of(model, recipe)
    curves, drift, rises = model_of(study, marginal)
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

    candidates = [None, *(registry.method(name) for name in recipe.predictors)]
    found = []
    least = np.inf
    for m in candidates:
        if m is not None and study.ahead(m):
            continue
        guess = None if m is None else guessed(study, m)
        options = Options(study, reading, curves, drift.sure(), guess)
        fits = rises if guess is None else rises | {KIND: guess.rise}
        problem = Problem(options.units, fits, budget, goal - streams)
        try:
            found.append((solve(problem), options, problem))
        except TooMuchError as e:
            least = min(least, e.least)
    if not found:
        raise UsageError(
            f"board {board.id} reads {total['read']:,.0f} bytes a token of {model.name} when "
            f"nothing is dropped, in blocks of {reading.align:,} bytes and over gaps of "
            f"{reading.gap:,}; dropping can bring that down to {least + streams:,.0f} at the "
            f"least, not to {goal:,.0f}: ask for a lower sparsity, or give more RAM"
        )
    best, options, problem = min(found, key=lambda f: f[0].rise)
    more = solve(replace(problem, budget=problem.budget + 1e6))
    chosen = options.spell(best.pick)
    rules, predictor = study.rules(marginal, chosen.levels), ""
    if options.guessed is not None and "proxy" in chosen.levels:
        predictor = options.guessed.method.name
        guesses = study.rules(options.guessed.method, chosen.levels)
        for i, level in enumerate(chosen.levels["proxy"]):
            rules[i].proxy = guesses[i].proxy if level > 0 else None
    ratio, error = _measured(study, rules, held_out_windows(model, recipe))
    expected = {
        "ratio": ratio,
        "ratio_error": error,
        "ratio_predicted": float(np.exp(best.rise)),
        "ratio_predicted_with_a_megabyte": float(np.exp(more.rise)),
        "layers": float(model.spec.n_layers),
    }
    return Setting(
        marginal.name,
        percent,
        chosen.levels,
        thresholds_of(rules),
        use=chosen.use,
        expected=expected | _summary(chosen),
        predictor=predictor,
    )


def _summary(chosen: Chosen) -> dict[str, float]:
    """Numbers of layers by what stays whole in them, and of those where a predictor picks."""
    out = {f"whole_{k}": float(v.sum()) for k, v in chosen.whole.items()}
    if "proxy" in chosen.levels:
        out["guessed"] = float((chosen.levels["proxy"] > 0).sum())
    return out


def _measured(study: Study, rules: list[LayerRules], windows: np.ndarray) -> tuple[float, float]:
    """Perplexity under the rules over that without, on ``windows``, and its paired error."""
    from sparseflash.sparsity.evaluate import losses
    from sparseflash.sparsity.masks import Masked

    base = losses(study.runner, windows)
    hooks = Masked(study.runner, rules, count=False)
    return losses(study.runner, windows, hooks).ratio(base)
