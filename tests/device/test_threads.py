"""Threads share rows, columns and heads of the Linux boards: any number gives the same bits."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import random_model
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.plan import make_plan

WIDE = {"dim": 256, "ffn_dim": 1056, "vocab": 2100, "n_heads": 8, "n_kv_heads": 4, "head_dim": 32}


@pytest.mark.parametrize("grid", ["q4", "r8", "s4"])
def test_any_number_of_threads(grid: str, host: Board, tmp_path: Path) -> None:
    """Blocks and single tokens, dense and with masks; matrices wider than a tile of kernels."""
    pack(random_model(**WIDE), tmp_path / "model.sfm", Formats(grid, grid, "q8"))
    image = Image(tmp_path / "model.sfm")
    generate(make_plan(image, host, dense_thresholds(image), kv_len=96), tmp_path / "gen")
    library = build_library(tmp_path / "gen", tmp_path / "libmodel.so", flags=["-O1"])
    ids = np.random.default_rng(1).integers(0, image.spec.vocab, 60)
    masks = dense_thresholds(image)
    masks[0, :5] = (0.3, 0.1, 0.2, 0.05, 0.02)
    masks[-1, 3] = 0.2
    found = []
    for n in (1, 2, 3):
        engine = Engine(shutil.copy(library, tmp_path / f"lib{n}.so"), image)
        engine.threads(n)
        digest = hashlib.sha256(engine.prefill(ids[:37]))
        for token in ids[37:]:
            digest.update(engine.step(int(token)))
        engine.set_thresholds(masks)
        engine.reset()
        digest.update(engine.prefill(ids[:20]))
        digest.update(engine.step(int(ids[20])))
        counters = engine.counters()
        found.append((digest.hexdigest(), counters["bytes"], counters["neurons"]))
    assert len(set(found)) == 1


def test_a_board_without_a_system_has_one_worker(tmp_path: Path) -> None:
    pack(random_model(), tmp_path / "model.sfm")
    image = Image(tmp_path / "model.sfm")
    plan = make_plan(image, load_board("mps2-an386"), dense_thresholds(image), kv_len=32)
    assert plan["workers"] == 1
    assert plan["block"] in (1, 2, 4)
