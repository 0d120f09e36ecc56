"""The planner: pinned parts stay dense, streamed ones become sparse, and its bytes are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import data_folder
from sparseflash import pipeline
from sparseflash.boards import Board
from sparseflash.build import build_library
from sparseflash.engine import Engine
from sparseflash.errors import TooSmallError, UsageError
from sparseflash.generate import generate
from sparseflash.plan import make_plan
from sparseflash.recipes import load_recipe
from sparseflash.reference import Reference

STREAM = {"align": 4, "gap": 0, "ring_buffers": 3, "ring_bytes": 4096}
STREAM |= {"pick_buffers": 2, "pick_bytes": 2048}


def test_planned(host: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (data_folder() / "stories260K.bin").is_file():
        pytest.skip("stories260K.bin is not beside the checkout")
    recipe = load_recipe("stories260k")
    recipe = replace(recipe, calibration={**recipe.calibration, "tokens": 2048})
    model = pipeline.open_model(recipe)
    monkeypatch.setattr(pipeline, "root", lambda: tmp_path)
    board = replace(host, raw={**host.raw, "layout": "split", "stream": STREAM})
    with pytest.raises(UsageError, match="maps its flash"):
        pipeline.planned_for(model, recipe, host, 20)
    full = pipeline.planned_for(model, recipe, board, 20, 64)
    assert not full.levels and not full.thresholds.any() and full.expected["ratio"] == 1.0
    with pytest.raises(TooSmallError, match="--ram"):
        pipeline.planned_for(model, recipe, board, 20, 64, 20_000)

    image = pipeline.pack_model(model, recipe, "split")
    memory = make_plan(image, board, full.thresholds, 64)["memory"]
    ram = memory["total"] - 2 * memory["pinned weights"] // 5
    dense = make_plan(image, board, full.thresholds, 64, ram=ram)["placement"]["total"]
    setting = pipeline.planned_for(model, recipe, board, 20, 64, ram)
    image = pipeline.pack_model(model, recipe, "split", settings=[setting])
    plan = make_plan(image, board, setting.thresholds, 64, ram=ram, use=setting.use)
    expected = plan["placement"]["total"]["read"]
    assert plan["memory"]["total"] <= ram
    assert 0.6 * dense["streamed"] < expected < 0.85 * dense["streamed"]
    parts = [p for p in plan["parts"] if p["rows"] and p["layer"] < image.spec.n_layers]
    parts = [p for p in parts if not p["kind"].endswith("scales")]
    pinned = [p["use"] for p in parts if p["pinned"] == p["rows"]]
    streamed = [p["use"] for p in parts if p["pinned"] == 0]
    assert pinned.count(1.0) >= 3 and min(pinned) >= max(streamed)
    assert max(streamed) < 1.0 and np.mean(streamed) < 0.9

    generate(plan, tmp_path / "gen")
    library = build_library(tmp_path / "gen", tmp_path / "lib.so", "cc", ["-O1"], faulty=True)
    engine = Engine(library, image)
    ids, _ = pipeline.calibration_tokens(model, recipe)
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
