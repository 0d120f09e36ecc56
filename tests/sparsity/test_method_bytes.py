"""The methods a device runs: bit-equal to the reference, and the bytes that the host predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import data_folder, random_factors, random_predictor
from sparseflash.base.errors import UsageError
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.bfp import Bfp, quantize_bfp
from sparseflash.image.grids import linear
from sparseflash.image.predictor import Predictor
from sparseflash.image.reference import THRESHOLDS, Reference, activate
from sparseflash.image.sfm import Formats, Image, pack
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.recipes import PredictorFile, file_sha256, load_recipe
from sparseflash.model.spec import Model
from sparseflash.pipeline import places
from sparseflash.pipeline import stages as pipeline
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan
from sparseflash.sparsity.bytes import bytes_a_token, columns_of
from sparseflash.sparsity.levels import levels_of
from sparseflash.sparsity.masks import Reads
from sparseflash.sparsity.prices import GRID
from sparseflash.sparsity.registry import method
from sparseflash.sparsity.setting import DEVICE_METHODS, check_method
from sparseflash.sparsity.study import Study

LEVELS = {
    "dense": 0.0,
    "h": 0.5,
    "cats": 0.5,
    "paper": 0.5,
    "paper-gate-up": 0.5,
    "marginal": 0.25,
    "marginal-ffn": 0.2,
    "marginal-h": 0.05,
    "prox-4": 0.6,
    "prox-3": 0.5,
    "prox-2": 0.5,
    "prox-1": 0.3,
    "prox-3-two": 0.6,
    "teal-x": 0.4,
    "teal-attn": 0.4,
    "teal": 0.3,
    "teal-greedy": 0.3,
    "asvd-inputs": 0.3,
    "asvd-h": 0.4,
    "svd-64": 0.5,
    "svd-128": 0.4,
}
MIXED = {
    **dict.fromkeys("qkv", np.array([0.3, 0.0, 0.2, 0.0, 0.4])),
    "o": np.array([0.2, 0.3, 0.0, 0.0, 0.1]),
    "xg": np.array([0.2, 0.3, 0.0, 0.1, 0.2]),
    "xu": np.array([0.2, 0.0, 0.0, 0.1, 0.0]),
    "act": np.array([0.0, 0.3, 0.2, 0.1, 0.2]),
    "h": np.array([0.3, 0.3, 0.0, 0.4, 0.5]),
}
"""As `marginal` finds them: other matrices by columns in each layer, up by rows where act drops."""
TRAINED = {"lowrank-32": 0.5, "lowrank-32-ahead": 0.5}  # fmt: skip


@pytest.fixture(scope="module")
def stories() -> Model:
    if not (data_folder() / "stories260K.bin").is_file():
        pytest.skip("stories260K.bin is not beside the checkout")
    return pipeline.open_model(load_recipe("stories260k"))


def guess_of(
    reference: Reference, i: int, site: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """g' and u' of SPEC.md, from the rows of the image."""
    image = reference.image
    x = quantize_bfp(site["attn_in" if image.formats.ahead else "ffn_in"])
    if not image.rank:
        gate, up = image.guess(i)
        return linear(gate)(x), linear(up)(x)
    b, gate, up = image.predictor(i)
    z = quantize_bfp(linear(b)(x))
    return linear(gate)(z), linear(up)(z)


def product(reference: Reference, i: int, name: str, x: Bfp) -> np.ndarray:
    """gate or up of SPEC.md, whole or A (B x)."""
    pair = reference.image.factors(i, name)
    if pair is not None:
        return linear(pair[1])(quantize_bfp(linear(pair[0])(x)))
    return linear(reference.image.ffn(i)[name == "up"])(x)


def reads_of(
    reference: Reference, thresholds: np.ndarray, ids: np.ndarray
) -> tuple[Reads, np.ndarray]:
    """What the integer reference leaves to read, from the vectors it passes; and its logits."""
    spec = reference.spec
    run = reference.run(ids, thresholds)
    reads = Reads.empty(spec.n_layers)
    reads.tokens = len(ids)
    for i, site in enumerate(run.sites):
        limit = dict(zip(THRESHOLDS, thresholds[i]))
        seen = {"q": "attn_in", "k": "attn_in", "v": "attn_in", "o": "attn"}
        for name in ("q", "k", "v", "o", "xg", "xu"):
            x = site[seen.get(name, "ffn_in")]
            for table in (reads.kept, reads.blocks):
                table.setdefault(name, np.zeros(spec.n_layers))
            for row in x:
                live = [n for n in range(len(row)) if abs(row[n]) >= limit[name]]
                reads.kept[name][i] += len(live)
                reads.blocks[name][i] += len({n // 32 for n in live})
        x = site["ffn_in"]
        kept = [np.where(np.abs(x) >= limit[n], x, np.float32(0)) for n in ("xg", "xu")]
        gate, up = (product(reference, i, n, quantize_bfp(k)) for n, k in zip(("gate", "up"), kept))
        act = activate(spec.activation, gate)
        t = thresholds[i]
        guessed = np.ones_like(act, bool)
        if t[5] > 0:
            g, u = guess_of(reference, i, site)
            guessed = np.abs(activate(spec.activation, g) * u) >= t[5]
        for token in range(len(ids)):
            blocks = set()
            for n in range(spec.ffn_dim):
                if not guessed[token, n]:
                    continue
                reads.gate_rows[i] += 1
                if abs(gate[token, n]) < t[0] or abs(act[token, n]) < t[1]:
                    continue
                reads.up_rows[i] += 1
                h = act[token, n] * up[token, n]
                if abs(up[token, n]) < t[2] or abs(h) < t[3]:
                    continue
                reads.columns[i] += 1
                blocks.add(n // 32)
            reads.column_blocks[i] += len(blocks)
    return reads, run.logits


@pytest.mark.parametrize(
    ("fmt", "factored", "names"),
    [
        ("q4", False, [*LEVELS, *TRAINED]),
        ("q8", False, ["dense", "h", "prox-3", "teal-x", "teal", "marginal"]),
        ("q4", True, ["dense", "h", "cats", "marginal-h", "svd-64", "lowrank-32-ahead"]),
    ],
)
def test_counters_are_the_byte_model(
    stories: Model, host: Board, tmp_path: Path, fmt: str, factored: bool, names: list[str]
) -> None:
    formats = Formats(fmt, fmt, "q8")
    factors = random_factors(stories.spec, fmt, fmt) if factored else None
    source = stories
    if factors:
        formats = factors.formats(formats, stories.spec.n_layers)
        stories = factors.multiplied_out(stories, formats)
    assert stories.tokenizer is not None
    text = "Once upon a time, a girl had a red ball. She liked to play with it. " * 8
    ids = np.array(stories.tokenizer.encode(text))
    calibration, windows = ids[:160].reshape(2, 80), ids[60:180].reshape(1, 120)
    study = Study(stories, formats, calibration, windows)
    for name in TRAINED:
        path = tmp_path / f"{name}.npz"
        random_predictor(stories.spec, 32, name.endswith("ahead")).save(
            path, {"model_sha256": stories.source["sha256"]}
        )
        study.trained[name] = PredictorFile(str(path), file_sha256(path))
    engines = {}

    def engine_of(formats: Formats, predictor: Predictor | None) -> Engine:
        key = formats, predictor and predictor.digest
        if key not in engines:
            folder = tmp_path / str(len(engines))
            pack(source, folder / "model.sfm", formats, None, predictor, factors)
            image = Image(folder / "model.sfm")
            generate(make_plan(image, host, dense_thresholds(image), kv_len=256), folder / "gen")
            library = build_library(folder / "gen", folder / "lib.so", "cc", ["-O1"])
            engines[key] = Engine(library, image)
        return engines[key]

    assert set(LEVELS) == set(DEVICE_METHODS) - {"signs"}  # of ReLU models
    for name in names:
        m, level = method(name), (LEVELS | TRAINED)[name]
        levels = MIXED if name == "marginal" else levels_of(study, m, level)
        stored = replace(formats, guess=m.proxy, rank=m.rank, columns=columns_of(levels))
        engine = engine_of(stored, study.predictor(m) if m.rank else None)
        reference = Reference(engine.image)
        thresholds = dense_thresholds(engine.image)
        for i, rules in enumerate(study.rules(m, levels)):
            if rules.proxy is not None:
                thresholds[i, THRESHOLDS.index("guess")] = rules.proxy.rule.threshold
            for site, rule in rules.sites.items():
                thresholds[i, THRESHOLDS.index(site)] = rule.threshold
        engine.set_thresholds(thresholds)
        engine.reset()
        engine.counters(clear=True)
        exact, logits = reads_of(reference, thresholds, windows[0])
        for token, want in zip(windows[0], logits):
            got = engine.step(int(token))
            assert got is not None
            assert np.array_equal(got.view(np.uint32), want.view(np.uint32)), name
        counters = engine.counters()
        found = bytes_a_token(stories.spec, stored, exact, study.extra(m))
        assert round(found.total * len(windows[0])) == counters["bytes"], name
        ffn = found.ffn + found.proxy
        assert round(ffn * len(windows[0])) == counters["bytes_ffn"], name
        predicted = study.measure(m, level, levels).bytes
        if name == "dense":
            assert predicted.total == found.total
        assert predicted.total == pytest.approx(found.total, rel=5e-3), name


def test_methods_of_the_host_are_refused_for_devices(stories: Model, tmp_path: Path) -> None:
    check_method("marginal-ffn", 20)
    with pytest.raises(UsageError, match="host only"):
        check_method("wina", 20)
    with pytest.raises(UsageError, match="there are"):
        check_method("nothing", 20)
    with pytest.raises(UsageError, match="below 100"):
        check_method("h", 100)


def test_thresholds_of_a_shared_budget(
    stories: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "work", lambda: tmp_path)
    recipe = load_recipe("stories260k")
    calibration = pipeline.calibrated(stories, recipe)
    got = pipeline.setting_for(stories, recipe, "marginal-ffn", 20).thresholds
    assert got.shape == (5, 12) and got.dtype == np.float32
    assert (got[:, [0, 2, 4]] == 0).all()
    assert len(np.unique(got[:, 3])) > 1
    dropped = [calibration.dropped(i, "h", float(got[i, 3])) for i in range(5)]
    grid = np.array(GRID)
    assert all(np.abs(grid - d).min() < 1e-3 for d in dropped)
