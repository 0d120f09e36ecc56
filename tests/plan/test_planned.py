"""The planner: pinned parts stay dense, streamed ones become sparse, and its bytes are read.

Its choices are held against all choices of small problems and a bound of larger ones.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import half_ram, make_workspace
from small import add_small
from sparseflash.base.errors import TooSmallError, UsageError
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.reference import Reference
from sparseflash.measure.engine import Engine
from sparseflash.pipeline import stages as pipeline
from sparseflash.plan.boards import Board
from sparseflash.plan.fit import token_figures
from sparseflash.plan.plan import make_plan
from sparseflash.plan.solver import Problem, TooMuchError, Units, solve
from sparseflash.sparsity.texts import calibration_tokens

STREAM = {"align": 4, "gap": 0, "ring_buffers": 3, "ring_bytes": 4096}
STREAM |= {"pick_buffers": 2, "pick_bytes": 2048}


def test_planned(host: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_workspace(tmp_path)
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(base))
    recipe = add_small(base)
    recipe = replace(recipe, calibration={**recipe.calibration, "tokens": 2048})
    model = pipeline.open_model(recipe)
    board = replace(host, raw={**host.raw, "stream": STREAM})
    with pytest.raises(UsageError, match="maps its flash"):
        pipeline.planned_for(model, recipe, host, 20)
    full = pipeline.planned_for(model, recipe, board, 20, 64)
    assert not full.levels and not full.thresholds.any() and full.expected["ratio"] == 1.0
    with pytest.raises(TooSmallError, match="--ram"):
        pipeline.planned_for(model, recipe, board, 20, 64, 20_000)

    image = pipeline.pack_model(model, recipe)
    ram = half_ram(lambda ram: make_plan(image, board, full.thresholds, 64, ram=ram)["memory"])
    dense = make_plan(image, board, full.thresholds, 64, ram=ram)["placement"]["total"]
    setting = pipeline.planned_for(model, recipe, board, 20, 64, ram)
    assert 0.8 < setting.expected["ratio"] < 1.3 and setting.expected["ratio_error"] > 0
    more = setting.expected["ratio_predicted_with_a_megabyte"]
    assert more <= setting.expected["ratio_predicted"]
    blocks = replace(board, raw={**board.raw, "stream": {**STREAM, "align": 512, "gap": 4096}})
    with pytest.raises(UsageError, match=r"in blocks of 512 bytes .* ask for a lower sparsity"):
        pipeline.planned_for(model, recipe, blocks, 20, 64, ram)
    image = pipeline.pack_model(model, recipe, settings=[setting])
    plan = make_plan(image, board, setting.thresholds, 64, ram=ram, use=setting.use)
    expected = plan["placement"]["total"]["read"]
    assert plan["memory"]["total"] <= ram
    assert 0.6 * dense["streamed"] < expected < 0.85 * dense["streamed"]
    parts = [p for p in plan["parts"] if p["rows"] and p["layer"] < image.spec.n_layers]
    parts = [p for p in parts if not p["kind"].endswith("scales")]
    pinned = [p["pinned"] / p["rows"] for p in parts if p["use"] == 1.0]
    streamed = [p["use"] for p in parts if p["use"] < 1.0]
    assert len(pinned) >= 3 and min(pinned) > 0.5
    assert max(p["pinned"] / p["rows"] for p in parts if p["use"] < 1.0) <= min(pinned)
    assert max(streamed) < 1.0 and np.mean(streamed) < 0.9

    generate(plan, tmp_path / "gen")
    library = build_library(
        tmp_path / "gen",
        tmp_path / "lib.so",
        "cc",
        ["-O1"],
        flash=Path(__file__).parents[1] / "faults" / "fault_flash.c",
    )
    engine = Engine(library, image)
    ids, _ = calibration_tokens(model, recipe)
    text = ids[0][:64]
    want = Reference(image).run(text, setting.thresholds, keep_sites=False).logits
    read = 0
    for row in ids[::4]:
        engine.reset()
        engine.counters(clear=True)
        for p, token in enumerate(row[:64]):
            got = engine.step(int(token))
            assert got is not None
            assert (row is not ids[0] and p >= 0) or np.array_equal(got, want[p])
        read += engine.counters()["bytes_read"]
    assert read / (64 * len(ids[::4])) == pytest.approx(expected, rel=0.04)


def problem(seed: int, layers: int, rises: dict[str, tuple[float, float]]) -> Problem:
    """Random units of four options; 40 % of their bytes fit, half of them may stream."""
    rng, level = np.random.default_rng(seed), np.arange(3)
    units = {}
    for kind in rises:
        size, steep = rng.uniform(5e5, 1e6, (layers, 1)), rng.uniform(0.004, 0.04, (layers, 1))
        drift = rng.normal(0, 0.004, (layers, 1)) * level / layers
        pinned = np.zeros((layers, 1))
        units[kind] = Units(
            {kind: np.hstack([pinned, steep * level**2 / layers])},
            np.hstack([pinned, drift]),
            np.hstack([pinned, size * (1 - 0.25 * level)]),
            np.hstack([size, np.where(level > 0, 4e4, 0.0) + 0 * size]),
        )
    total = sum(float(u.streamed[:, 1].sum()) for u in units.values())
    return Problem(units, rises, 0.4 * total, 0.5 * total)


def test_against_all_choices() -> None:
    over = []
    for seed in range(12):
        p = problem(seed, 2, {"attn": (1.0, 1.0), "o": (1.4, 0.0), "ffn": (1.2, 2.0)})
        best = np.inf
        for combination in itertools.product(range(4), repeat=6):
            pick = {k: np.array(combination[2 * i : 2 * i + 2]) for i, k in enumerate(p.units)}
            if p.sum(pick, "ram") <= p.budget and p.sum(pick, "streamed") <= p.goal:
                best = min(best, p.rise(pick))
        found = solve(p)
        assert p.sum(found.pick, "ram") <= p.budget and found.streamed <= p.goal
        assert found.rise == pytest.approx(p.rise(found.pick)) and found.rise >= best - 1e-12
        over.append(found.rise - best)
    assert np.median(over) < 0.01 and max(over) < 0.05


def test_against_the_bound_of_prices() -> None:
    """No choice is below the least sum at any pair of prices, less what the limits are worth."""
    for seed in range(4):
        p = problem(seed, 30, {"attn": (1.0, 0.0), "o": (1.4, 0.0), "ffn": (1.2, 0.0)})
        bound = -np.inf
        for stream, ram in itertools.product(10.0 ** np.linspace(-10, -6, 41), repeat=2):
            least = sum(
                (p.rises[k][0] * u.cost[k] + u.drift + stream * u.streamed + ram * u.ram)
                .min(axis=1)
                .sum()
                for k, u in p.units.items()
            )
            bound = max(bound, least - stream * p.goal - ram * p.budget)
        found = solve(p)
        assert p.sum(found.pick, "ram") <= p.budget and found.streamed <= p.goal
        assert bound - 1e-9 <= found.rise <= bound + 0.002


def test_too_much_is_refused() -> None:
    p = problem(1, 4, {"attn": (1.0, 0.0), "ffn": (1.0, 0.0)})
    with pytest.raises(TooMuchError) as e:
        solve(replace(p, goal=0.05 * p.goal))
    assert 0.05 * p.goal < e.value.least <= 2 * p.goal


def test_time_of_a_token_names_its_source(host: Board) -> None:
    """Reading that computing does not hide: 30 ms beside (1 - 0.5) / 20 seconds."""
    total = {"pinned": 1, "streamed": 2, "read": 2.0}
    costs = {"read_seconds": 0.03, "seconds_saved_by_a_megabyte": 0.001}
    plan = {"method": "dense", "sparsity": 0, "parts": [], "placement": {"total": total, **costs}}
    bench = {"tokens_per_second": 20.0, "share_waiting": 0.5, "plan": "another"}

    def said(measured: dict[str, Any] | None) -> dict[str, tuple[float, str]]:
        found = token_figures(plan, host, measured, "this")
        return {f.name: (round(f.value, 6), f.source) for f in found if f.unit == "ms"}

    assert said(None) == {"reading": (30.0, "flash_curve.json, measured here")}
    earlier = said(bench)
    assert earlier["computing"] == (25.0, "bench.json of an earlier plan")
    assert earlier["waiting, at the least"][0] == 5.0
    own = said({**bench, "plan": "this", "bytes_per_token": 2.0})
    assert own["time"] == (50.0, "bench.json of this plan")
    assert own["of it waiting for flash"][0] == 25.0 and "reading" not in own
    assert said({"tokens_per_second": None, "plan": "another"}) == said(None)
