"""The page of methods: search, comparison at equal bytes, files."""

from __future__ import annotations

import csv
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import make_workspace, random_model
from small import NAME, add_small
from sparseflash.base.errors import UsageError
from sparseflash.cli.measure import sparsity
from sparseflash.image.formats import Formats
from sparseflash.model.recipes import load_recipe
from sparseflash.pipeline import places
from sparseflash.pipeline import stages as pipeline
from sparseflash.sparsity import texts
from sparseflash.sparsity.levels import STEPS, measured, ppl_level
from sparseflash.sparsity.page import bench
from sparseflash.sparsity.page.report import at_bytes, compare
from sparseflash.sparsity.registry import METHODS, method
from sparseflash.sparsity.study import Study


def page(
    text: str | None, names: list[str], ppl: float, kept: list[float], predict: bool, say: Any
) -> str:
    """The page of the small model on two windows at 20 percent."""
    opened = partial(pipeline.open_study, NAME, text, 2, say, "cpu")
    folder, recipe = places.Places(NAME).folder, load_recipe(NAME)
    return bench.run(opened, folder, recipe, text, names, [20.0], ppl, kept, predict)


def test_every_method_has_levels_and_a_source_or_is_ours() -> None:
    assert set(bench.PERCENTS) == set(METHODS) - {"dense"}
    for m in METHODS.values():
        assert m.source or m.name.startswith(("h", "cats-", "marginal", "asvd", "svd", "dense"))


def row(name: str, share: float, ratio: float) -> dict[str, object]:
    return {"method": name, "share_layers": share, "ratio": ratio}


def test_at_bytes_is_straight_in_the_logarithm() -> None:
    rows = [row("a", 0.8, 1.1), row("a", 0.6, 1.5)]
    assert at_bytes(rows, "a", 0.8) == pytest.approx(1.1)
    assert at_bytes(rows, "a", 0.7) == pytest.approx(math.sqrt(1.1 * 1.5))
    assert at_bytes(rows, "a", 0.9) == pytest.approx(math.sqrt(1.1))
    assert math.isnan(at_bytes(rows, "a", 0.5))
    assert math.isnan(at_bytes(rows, "b", 0.9))
    reads_more = [row("c", 1.2, 1.3)]
    assert math.isnan(at_bytes(reads_more, "c", 0.9))


def test_compare_says_where_ours_is_least() -> None:
    rows = [row("a", 0.7, 1.3), row("marginal", 0.7, 1.2), row("b", 0.89, 1.001)]
    lines = {round(line["share_layers"], 2): line for line in compare(rows)}
    assert lines[0.7]["ours_is_least"] is True
    assert lines[0.9]["ours_is_least"] is False
    assert math.isnan(lines[0.7]["b"])


def test_ppl_level_is_the_highest_that_holds() -> None:
    model = random_model(seed=5, dim=32, ffn_dim=48, n_heads=4, n_kv_heads=2, vocab=60)
    rng = np.random.default_rng(2)
    windows = rng.integers(0, 60, (2, 24))
    study = Study(model, Formats("q8", "q8", "q8"), rng.integers(0, 60, (4, 40)), windows)
    for name in ("h", "cett"):
        m = method(name)
        base = measured(study, "dense", 0.0).losses.perplexity
        level = ppl_level(study, m, 2.0, windows)
        assert level == 0.0 or measured(study, m, level).losses.perplexity <= 1.02 * base
        low, high = 0.0, 0.9
        for _ in range(STEPS):
            middle = (low + high) / 2
            ok = measured(study, m, middle).losses.perplexity <= 1.02 * base
            low, high = (middle, high) if ok else (low, middle)
        assert level == low


def test_page_of_a_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_workspace(tmp_path)
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(base))
    add_small(base)
    monkeypatch.setattr(bench, "SEARCHED", ("h",))
    monkeypatch.setattr(texts, "VALIDATION_TOKENS", 512)
    said: list[str] = []
    names = ["h", "cats", "teal", "prox-2", "marginal", "marginal-ffn"]
    text = page(None, names, 1.0, [85.0], True, said.append)
    folder = places.Places(NAME).folder
    assert "| cats | 20 |" in text and "| asvd | 15 |" in text
    assert "lift" in text and "whole prompt" in text
    for name in ("md", "csv", "json", "png"):
        assert (folder / f"sparsity.{name}").stat().st_size > 200
    for name in ("layers", "histograms", "predictability"):
        assert (folder / f"sparsity_{name}.png").stat().st_size > 1000
    assert (folder / "study" / "asvd-85.npz").is_file()
    made = json.loads((folder / "sparsity.json").read_text())
    with (folder / "sparsity.csv").open() as f:
        lines = list(csv.DictReader(f))
    assert [r["method"] for r in lines] == [r["method"] for r in made["rows"]]
    by_name = {(r["method"], r["percent"]): r for r in made["rows"]}
    dense = by_name["dense", 0.0]
    assert dense["ratio"] == 1.0 and dense["share"] == 1.0
    assert by_name["prox-2", 20.0]["bytes_predictor"] == 5 * 2 * 172 * (64 * 2 / 8 + 2 * 2)
    assert by_name["cats", 20.0]["bytes"] < dense["bytes"]
    said.clear()
    again = page(None, names, 1.0, [], True, said.append)
    assert not said, "nothing is measured twice"
    sparsity(NAME, None, 2, "h,cats", "20", 0.0, "", False)
    assert "| cats | 20 |" in capsys.readouterr().out
    assert "| cats | 20 |" in again
    with pytest.raises(UsageError, match="there are"):
        page(None, ["nothing"], 0.0, [], False, said.append)
    with pytest.raises(UsageError, match="evaluate on another text"):
        page("tiny", ["h"], 0.0, [], False, said.append)
