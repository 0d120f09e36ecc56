"""The byte model against the counters of the generated C, and the host's prediction of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conftest import data_folder
from sparseflash import pipeline
from sparseflash.boards import Board
from sparseflash.build import build_library
from sparseflash.engine import Engine, dense_thresholds
from sparseflash.generate import generate
from sparseflash.methods.bytes import bytes_a_token
from sparseflash.methods.masks import Reads
from sparseflash.methods.registry import method
from sparseflash.methods.study import Study
from sparseflash.plan import make_plan
from sparseflash.recipes import load_recipe
from sparseflash.reference import THRESHOLDS, Linear, Reference, activate, quantize_bfp
from sparseflash.sfm import Formats, Image, pack
from sparseflash.spec import Model

METHODS = ("dense", "h", "cats", "paper", "paper-gate-up")


@pytest.fixture(scope="module")
def stories() -> Model:
    if not (data_folder() / "stories260K.bin").is_file():
        pytest.skip("stories260K.bin is not beside the checkout")
    return pipeline.open_model(load_recipe("stories260k"))


def reads_of(reference: Reference, thresholds: np.ndarray, ids: np.ndarray) -> Reads:
    """What the integer reference leaves to read, from the vectors it passes."""
    spec = reference.spec
    run = reference.run(ids, thresholds)
    reads = Reads.empty(spec.n_layers)
    reads.tokens = len(ids)
    for i, site in enumerate(run.sites):
        gate_proj, up_proj, _ = reference.image.ffn(i)
        b = quantize_bfp(site["ffn_in"])
        gate, up = Linear(gate_proj)(b), Linear(up_proj)(b)
        act = activate(spec.activation, gate)
        t = thresholds[i]
        for token in range(len(ids)):
            blocks = set()
            for n in range(spec.ffn_dim):
                if abs(gate[token, n]) < t[0] or abs(act[token, n]) < t[1]:
                    continue
                reads.up_rows[i] += 1
                h = act[token, n] * up[token, n]
                if abs(up[token, n]) < t[2] or abs(h) < t[3]:
                    continue
                reads.columns[i] += 1
                blocks.add(n // 32)
            reads.gate_rows[i] += spec.ffn_dim
            reads.column_blocks[i] += len(blocks)
    return reads


@pytest.mark.parametrize("fmt", ["q4", "q8"])
def test_counters_are_the_byte_model(stories: Model, host: Board, tmp_path: Path, fmt: str) -> None:
    formats = Formats(fmt, fmt, "q8")
    pack(stories, tmp_path / "model.sfm", formats)
    image = Image(tmp_path / "model.sfm")
    generate(make_plan(image, host, dense_thresholds(image), kv_len=256), tmp_path / "gen")
    engine = Engine(build_library(tmp_path / "gen", tmp_path / "lib.so"), image)
    reference = Reference(image)
    assert stories.tokenizer is not None
    text = "Once upon a time, a girl had a red ball. She liked to play with it. " * 8
    ids = np.array(stories.tokenizer.encode(text))
    calibration, windows = ids[:160].reshape(2, 80), ids[60:180].reshape(1, 120)
    study = Study(stories, formats, calibration, windows)
    for name in METHODS:
        m = method(name)
        levels = study.levels(m, 0.0 if name == "dense" else 0.5)
        thresholds = dense_thresholds(image)
        for i, rules in enumerate(study.rules(m, levels)):
            for site, rule in rules.sites.items():
                thresholds[i, THRESHOLDS.index(site)] = rule.threshold
        engine.set_thresholds(thresholds)
        engine.reset()
        engine.counters(clear=True)
        for token in windows[0]:
            engine.step(int(token))
        counters = engine.counters()
        exact = reads_of(reference, thresholds, windows[0])
        found = bytes_a_token(stories.spec, formats, exact)
        assert round(found.total * len(windows[0])) == counters["bytes"], name
        assert round(found.ffn * len(windows[0])) == counters["bytes_ffn"], name
        predicted = study.measure(m, 0.0 if name == "dense" else 0.5).bytes
        if name == "dense":
            assert predicted.total == found.total
        assert predicted.total == pytest.approx(found.total, rel=5e-3), name
