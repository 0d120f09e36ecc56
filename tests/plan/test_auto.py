"""METHOD=auto: what it chooses, why it says so, and the prices that are kept with a recipe."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import half_ram, random_model
from sparseflash.base.errors import InputError, UsageError
from sparseflash.base.files import root
from sparseflash.image.formats import Formats
from sparseflash.model.recipes import Recipe, load_recipe
from sparseflash.model.spec import Model
from sparseflash.pipeline import places, stages
from sparseflash.plan import planner
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.plan import make_plan
from sparseflash.plan.solver import TooMuchError
from sparseflash.sparsity import registry
from sparseflash.sparsity.prices import GRID, KINDS, Curves, Drift, Prices
from sparseflash.sparsity.setting import PEOPLE, thresholds_of

SITES = registry.method("marginal").sites
STREAM = {"align": 4, "gap": 0, "ring_buffers": 3, "ring_bytes": 4096}
STREAM |= {"pick_buffers": 2, "pick_bytes": 2048}


def some_prices(layers: int = 3) -> Prices:
    rng, g = np.random.default_rng(4), len(GRID)
    falling = np.sort(rng.random((layers, g)))[:, ::-1]
    square = falling[:, :, None] * falling[:, None, :]
    line = {k: np.sort(rng.random((layers, g)) * 1e-4) for k in ("attn", "o", "x")}
    pair = np.sort(rng.random((layers, g, g)) * 1e-3)
    shares = {k: falling for k in line}
    curves = Curves(line | {"ffn": pair}, shares, shares, falling, square, square)
    drift = Drift(line | {"ffn": -pair}, line | {"ffn": pair})
    thresholds = {s: np.sort(rng.random((layers, g)).astype(np.float32)) for s in SITES}
    return Prices(curves, drift, {k: (1.0, 0.5) for k in KINDS}, thresholds)


def test_kept_prices(tmp_path: Path) -> None:
    """Thresholds come back to the bit, the rest within a thousandth of its greatest."""
    path, made = tmp_path / "p.npz", some_prices()
    made.save(path, "of this")
    assert Prices.load(path, "of another") is None
    got = Prices.load(path, "of this")
    assert got is not None and got.rises == made.rises
    for site, table in made.thresholds.items():
        assert got.thresholds[site].tobytes() == table.tobytes()
    for part in ("curves", "drift"):
        for name, value in vars(getattr(made, part)).items():
            other = getattr(getattr(got, part), name)
            for k in value if isinstance(value, dict) else ():
                assert np.abs(value[k] - other[k]).max() <= 1e-3 * np.abs(value[k]).max()
    assert np.abs(made.curves.columns - got.curves.columns).max() < 1e-3
    levels = np.array([0.0, 0.25, 0.9])
    want = [0.0, made.thresholds["h"][1, 3], made.thresholds["h"][2, 16]]
    assert np.array_equal(made.threshold("h", levels), np.float32(want))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="damaged"):
        Prices.load(path, "of this")


def test_prices_that_ship() -> None:
    """They belong to the recipe's source and calibration, and are small."""
    found = sorted((root() / "models").glob("*.prices.npz"))
    assert [p.name for p in found] == ["smollm2-135m.prices.npz"]
    for path in found:
        recipe = load_recipe(path.name.removesuffix(".prices.npz"))
        model: Any = Model.__new__(Model)
        model.source = {"sha256": recipe.source.sha256}
        prices = Prices.load(path, stages.prices_digest(model, recipe))
        assert prices is not None, f"{path.name} was measured for another source or calibration"
        assert path.stat().st_size < 200_000
        assert {*prices.rises} == {*KINDS} and {*prices.thresholds} == {*SITES}
        for table in prices.thresholds.values():
            assert (np.diff(table, axis=1) >= 0).all() and not table[:, 0].any()
        recipe = replace(recipe, calibration={**recipe.calibration, "seed": 2})
        assert Prices.load(path, stages.prices_digest(model, recipe)) is None


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, Recipe, Board]:
    """A random model, its recipe and a board that streams it."""
    monkeypatch.setattr(places, "work", lambda: tmp_path)
    model = random_model(seed=3, n_layers=3, dim=64, ffn_dim=96, vocab=96)
    model.name, model.source = "tiny", {"sha256": "ab" * 32}
    calibration = {"texts": ["random"], "tokens": 512, "window": 64, "seed": 1}
    formats = {"attn": "q8", "ffn": "q8", "embed": "q8"}
    recipe = replace(load_recipe("random-8m"), name="tiny", calibration=calibration)
    board = load_board("host")
    board = replace(board, raw={**board.raw, "stream": STREAM})
    return model, replace(recipe, formats=formats, kv_len=16), board


def test_auto(tiny: tuple[Model, Recipe, Board], monkeypatch: pytest.MonkeyPatch) -> None:
    model, recipe, board = tiny
    mapped = stages.auto_for(model, recipe, load_board("host"))
    assert not mapped.levels and not mapped.thresholds.any()
    assert mapped.method == "dense" and "host maps its flash" in mapped.reason
    assert not places.Places("tiny").folder.exists(), "a mapped board costs nothing"
    roomy = stages.auto_for(model, recipe, board)
    assert roomy.method == "dense" and "all weights stay in RAM" in roomy.reason

    image = stages.pack_model(model, recipe)
    ram = half_ram(lambda ram: make_plan(image, board, roomy.thresholds, 16, ram=ram)["memory"])
    unknown = stages.auto_for(model, recipe, board, ram=ram)
    assert unknown.method == "dense" and "sparseflash prices --model tiny" in unknown.reason

    stages.measure_prices(model, recipe)
    monkeypatch.setattr(stages, "study_of", None)  # no model runs from here on
    setting = stages.auto_for(model, recipe, board, 15, ram=ram)
    assert setting.method == "marginal" and setting.levels and "15 % fewer" in setting.reason
    assert 14.9 <= setting.percent < 40
    monkeypatch.undo()
    monkeypatch.setattr(places, "work", lambda: places.Path(image.path).parents[3])
    rules = stages.study_of(model, recipe).rules(registry.method("marginal"), setting.levels)
    assert np.array_equal(setting.thresholds, thresholds_of(rules))

    dense = stages.dense_plan(model, recipe, board, ram=ram)["placement"]["total"]
    image = stages.pack_model(model, recipe, settings=[setting])
    plan = make_plan(image, board, setting.thresholds, 16, ram=ram, use=setting.use)
    assert plan["memory"]["total"] <= ram
    assert plan["placement"]["total"]["read"] < 0.9 * dense["read"]

    other = replace(recipe, calibration={**recipe.calibration, "seed": 7})
    assert stages.prices_of(model, other) is None
    with pytest.raises(UsageError, match="ask for a lower sparsity"):
        stages.auto_for(model, recipe, board, 99, ram=ram)


class Found:
    """A proposal with a predicted ratio."""

    def __init__(self, ratio: float) -> None:
        self.expected = {"ratio_predicted": ratio}


def test_choice_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the most bytes that cost little; what is asked for is taken or refused."""
    spec, board = random_model().spec, load_board("host-flash")
    dense = {"name": "m", "placement": {"total": {"streamed": 100, "read": 100.0}}}
    ratios: dict[float, float] = {}
    tried: list[float] = []

    def propose(*arguments: Any, **_: Any) -> Found:
        tried.append(arguments[4])
        if arguments[4] not in ratios:
            raise TooMuchError(97.0)
        return Found(ratios[arguments[4]])

    monkeypatch.setattr(planner, "propose", propose)

    def choose(percent: float | None) -> tuple[Any, str]:
        tried.clear()
        return planner.choose(spec, Formats(), board, dense, percent, some_prices())

    found, reason = choose(None)
    assert found is None and "saves at most 3 %" in reason and tried == [20.0]
    with pytest.raises(TooMuchError):
        choose(5)
    ratios |= {20.0: 1.2, 10.0: 1.01, 50.0: 3.0}
    found, reason = choose(None)
    assert found.expected == {"ratio_predicted": 1.01} and tried == [20.0, 10.0]
    assert "10 % fewer" in reason
    assert choose(50)[0].expected == {"ratio_predicted": 3.0}
    ratios[10.0] = 1.021
    found, reason = choose(None)
    assert found is None and "would cost 2 % of perplexity" in reason
    assert choose(0) == (None, "0 % is asked for, so nothing is dropped") and not tried


def test_the_short_list() -> None:
    """Help and Makefile name the methods for people; those that a device cannot run are not."""
    from sparseflash.cli import options

    text = str(options.MethodOption.__metadata__[0].help)
    assert tuple(text.partition(";")[0].split(", ")) == PEOPLE
    for name in PEOPLE:
        stages.check_asked(name, None)
    with pytest.raises(UsageError, match="unknown; there are auto, dense, h, "):
        stages.check_asked("planed", None)
    with pytest.raises(UsageError, match="takes neither"):
        stages.check_asked("auto", None, asvd=85)
    assert re.search(r"^METHOD \?= auto$", (root() / "Makefile").read_text(), re.M)


def test_a_model_sparse_by_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story model on pico: auto adds nothing and says why; no line of memory is negative."""
    monkeypatch.setattr(places, "work", lambda: tmp_path)
    recipe, board = load_recipe("story"), load_board("pico")
    model = stages.open_model(recipe)
    setting = stages.auto_for(model, recipe, board)
    assert setting.method == "dense" and "was trained to leave weights unread" in setting.reason
    memory = stages.dense_plan(model, recipe, board)["memory"]
    assert min(memory.values()) >= 0
    assert memory["total"] == sum(v for k, v in memory.items() if k != "total")
