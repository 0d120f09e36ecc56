"""Threads share rows, columns and heads of the Linux boards: any number gives the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import random_model
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.formats import THRESHOLDS, Formats
from sparseflash.image.needs import Needs
from sparseflash.image.pack import pack
from sparseflash.image.reference import Reference
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.plan import make_plan

WIDE = {"dim": 256, "ffn_dim": 1312, "vocab": 2100, "n_heads": 8, "n_kv_heads": 4, "head_dim": 32}
"""Neurons are more than a tile, and no whole number of blocks of columns for each thread."""
PROMPT = 17
"""Tokens that go through the layers together, before single ones."""


@pytest.mark.parametrize(
    ("attn", "ffn", "needs"),
    [
        ("q4", "q4", Needs()),
        ("q8", "q8", Needs()),
        ("r8", "r8", Needs()),
        ("s4", "s4", Needs()),
        ("q4", "q4", Needs(("qkv gate", "o up"))),
        ("q4", "s4", Needs(("qkv gate", "o up"))),
    ],
)
def test_any_number_of_threads(
    attn: str, ffn: str, needs: Needs, host: Board, tmp_path: Path
) -> None:
    """Blocks and single tokens, dense and with masks, as the reference has them."""
    pack(random_model(**WIDE), tmp_path / "model.sfm", Formats(attn, ffn, "q8"), needs)
    image = Image(tmp_path / "model.sfm")
    generate(make_plan(image, host, dense_thresholds(image), kv_len=96), tmp_path / "gen")
    library = build_library(tmp_path / "gen", tmp_path / "libmodel.so", flags=["-O1"])
    ids = np.random.default_rng(1).integers(0, image.spec.vocab, 26)
    few, most = dense_thresholds(image), dense_thresholds(image)
    few[0, :5] = (0.3, 0.1, 0.2, 0.05, 0.02)
    few[-1, THRESHOLDS.index("h")] = 0.2
    most[:, THRESHOLDS.index("h")] = 0.01
    for layer, sites in enumerate(needs.columns):
        for site in {"qkv gate": ("q", "xg"), "o up": ("o", "xu")}[sites]:
            few[layer, THRESHOLDS.index(site)] = 0.4
    runs = [(limits, Reference(image).run(ids, limits)) for limits in (0 * few, few, most)]
    lists = runs[-1][1].neurons / (image.spec.n_layers * len(ids))
    assert 1024 < lists < image.spec.ffn_dim  # indices, for more than a tile
    found = []
    for n in (1, 2, 3):
        engine = Engine(shutil.copy(library, tmp_path / f"lib{n}.so"), image)
        engine.threads(n)
        for limits, want in runs:
            engine.set_thresholds(limits)
            engine.reset()
            logits = engine.prefill(ids[:PROMPT])
            for p in range(PROMPT - 1, len(ids)):
                logits = logits if p < PROMPT else engine.step(int(ids[p]))
                assert np.array_equal(logits, want.logits[p]), f"{n} threads, position {p}"
        counters = engine.counters()
        found.append((counters["bytes"], counters["neurons"]))
    assert len(set(found)) == 1


def test_a_board_without_a_system_has_one_worker(tmp_path: Path) -> None:
    pack(random_model(), tmp_path / "model.sfm")
    image = Image(tmp_path / "model.sfm")
    plan = make_plan(image, load_board("mps2-an386"), dense_thresholds(image), kv_len=32)
    assert plan["workers"] == 1
    assert plan["block"] in (1, 2, 4)
