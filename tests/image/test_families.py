"""Families that the device runs: transformers' model, loaded, packed, and run by generated C."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_load import CONFIGS, peer, some_ids

from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.reference import Reference
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.load import load_model
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan


@pytest.mark.parametrize("name", CONFIGS)
def test_device_and_transformers(name: str, host: Board, tmp_path: Path) -> None:
    """The C has the reference's bits; both have transformers' logits up to the grid's rounding."""
    theirs = peer(CONFIGS[name]())
    theirs.save_pretrained(tmp_path / "m")
    pack(load_model(tmp_path / "m"), tmp_path / "model.sfm", Formats("q8", "q8", "q8"))
    image = Image(tmp_path / "model.sfm")
    ids = some_ids(160, 40, 1)[0]
    thresholds = dense_thresholds(image)
    want = Reference(image).run(ids.numpy(), thresholds).logits
    generate(make_plan(image, host, thresholds, 64), tmp_path / "gen")
    library = build_library(tmp_path / "gen", tmp_path / "lib.so", "cc", ["-O1"])
    engine = Engine(library, image)
    engine.set_thresholds(thresholds)
    got = np.array([engine.step(int(i)) for i in ids])
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
    with torch.no_grad():
        exact = theirs(ids[None]).logits[0].numpy()
    error = np.sqrt(np.mean((want - exact) ** 2)) / exact.std()
    assert error < 0.08  # int8 activations, seven layers of Gemma 3 the most
