"""The methods a device runs: bit-equal to the reference, and the bytes that the host predicted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import make_workspace, random_factors, random_model, random_predictor
from small import add_small
from sparseflash.base.errors import UsageError
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.bfp import Bfp, quantize_bfp
from sparseflash.image.formats import Formats
from sparseflash.image.grids import linear
from sparseflash.image.needs import Needs
from sparseflash.image.pack import pack
from sparseflash.image.proxy import Proxies
from sparseflash.image.reference import THRESHOLDS, Reference, activate
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.recipes import PredictorFile, Recipe, file_sha256, load_recipe
from sparseflash.model.spec import Model, Thresholds
from sparseflash.pipeline import stages as pipeline
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan
from sparseflash.sparsity.bytes import bytes_a_token, columns_of
from sparseflash.sparsity.levels import levels_of
from sparseflash.sparsity.prices import GRID
from sparseflash.sparsity.reads import Reads
from sparseflash.sparsity.registry import method
from sparseflash.sparsity.setting import DEVICE_METHODS, check_method, thresholds_of
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
    "h-norm": 0.5,
    "cett": 0.5,
    "wina": 0.4,
    "acttail": 0.4,
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
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Recipe]]:
    base = make_workspace(tmp_path_factory.mktemp("small"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEFLASH_ROOT", str(base))
        recipe = add_small(base)
        yield pipeline.open_model(recipe), recipe


def prediction_of(
    reference: Reference, i: int, site: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """g' and u' of SPEC.md, from the rows of the image."""
    image = reference.image
    x = quantize_bfp(site["attn_in" if image.ahead else "ffn_in"])
    if not image.rank:
        gate, up = image.proxies(i)
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


def kept(reference: Reference, i: int, site: str, x: np.ndarray, limit: float) -> np.ndarray:
    """Which entries of x (n,) a threshold leaves, bool: of equal scores top-k takes the first."""
    score = np.abs(x) * reference.vectors[i].get(f"{site}_column_norm", np.float32(1))
    if not (reference.image.top_k and limit > 0):
        return np.asarray(score >= limit)
    best = sorted(range(len(x)), key=lambda n: (-score[n], n))[: int(limit)]
    return np.isin(np.arange(len(x)), best)


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
        vec = reference.vectors[i]
        own_x = vec.get("x_threshold", np.zeros(spec.dim, np.float32))
        own_act, own_h = (
            vec.get(f"{n}_threshold", np.zeros(spec.ffn_dim, np.float32)) for n in ("act", "h")
        )
        seen = {"q": "attn_in", "k": "attn_in", "v": "attn_in", "o": "attn"}
        for name in ("q", "k", "v", "o", "xg", "xu"):
            x = site[seen.get(name, "ffn_in")]
            for table in (reads.kept, reads.blocks):
                table.setdefault(name, np.zeros(spec.n_layers))
            for row in x:
                own = own_x if name == "xg" else np.zeros(len(row), np.float32)
                keep = kept(reference, i, name, row, limit[name])
                live = [n for n in range(len(row)) if keep[n] and abs(row[n]) >= own[n]]
                reads.kept[name][i] += len(live)
                reads.blocks[name][i] += len({n // 32 for n in live})
        x = site["ffn_in"]
        seen_by = {"xg": np.where(np.abs(x) >= own_x, x, np.float32(0))[:, : spec.gate_width]}
        seen_by["xu"] = x[:, spec.dim - spec.up_width :]
        inputs = [
            np.stack(
                [np.where(kept(reference, i, n, row, limit[n]), row, np.float32(0)) for row in v]
            )
            for n, v in seen_by.items()
        ]
        gate, up = (
            product(reference, i, n, quantize_bfp(v)) for n, v in zip(("gate", "up"), inputs)
        )
        act = activate(spec.activation, gate)
        t = thresholds[i]
        predicted = np.ones_like(act, bool)
        if t[5] > 0:
            g, u = prediction_of(reference, i, site)
            predicted = np.abs(activate(spec.activation, g) * u) >= t[5]
        for token in range(len(ids)):
            blocks = set()
            keep = kept(reference, i, "h", act[token] * up[token], t[3])
            for n in range(spec.ffn_dim):
                if not predicted[token, n]:
                    continue
                reads.gate_rows[i] += 1
                if abs(gate[token, n]) < t[0] or abs(act[token, n]) < t[1]:
                    continue
                if abs(act[token, n]) < max(spec.act_threshold, own_act[n]):
                    continue
                reads.up_rows[i] += 1
                h = act[token, n] * up[token, n]
                if abs(up[token, n]) < t[2] or not keep[n] or abs(h) < own_h[n]:
                    continue
                reads.columns[i] += 1
                blocks.add(n // 32)
            reads.column_blocks[i] += len(blocks)
    return reads, run.logits


@pytest.mark.parametrize(
    ("fmt", "factored", "names"),
    [
        ("q4", False, [*LEVELS, *TRAINED]),
        ("q8", False, ["dense", "h", "prox-3", "teal-x", "teal", "marginal", "wina", "acttail"]),
        ("q4", True, ["dense", "h", "cats", "marginal-h", "svd-64", "lowrank-32-ahead"]),
    ],
)
def test_counters_are_the_byte_model(
    small: tuple[Model, Recipe],
    host: Board,
    tmp_path: Path,
    fmt: str,
    factored: bool,
    names: list[str],
) -> None:
    formats = Formats(fmt, fmt, "q8")
    model, _ = small
    factors = random_factors(model.spec, fmt, fmt) if factored else None
    source = model
    if factors:
        model = factors.multiplied_out(model, formats)
    assert model.tokenizer is not None
    text = "Once upon a time, a girl had a red ball. She liked to play with it. " * 8
    ids = np.array(model.tokenizer.encode(text))
    calibration, windows = ids[:160].reshape(2, 80), ids[60:180].reshape(1, 120)
    study = Study(model, formats, calibration, windows, factors=factors)
    for name in TRAINED:
        path = tmp_path / f"{name}.npz"
        random_predictor(model.spec, 32, name.endswith("ahead")).save(
            path, {"model_sha256": model.source["sha256"]}
        )
        study.trained[name] = PredictorFile(str(path), file_sha256(path))
    engines = {}

    def engine_of(needs: Needs) -> Engine:
        key = json.dumps(needs.plain())
        if key not in engines:
            folder = tmp_path / str(len(engines))
            pack(source, folder / "model.sfm", formats, needs)
            image = Image(folder / "model.sfm")
            generate(make_plan(image, host, dense_thresholds(image), kv_len=256), folder / "gen")
            library = build_library(folder / "gen", folder / "lib.so", "cc", ["-O1"])
            engines[key] = Engine(library, image)
        return engines[key]

    assert set(LEVELS) == set(DEVICE_METHODS) - {"signs"}  # of ReLU models
    for name in names:
        m, level = method(name), (LEVELS | TRAINED)[name]
        levels = MIXED if name == "marginal" else levels_of(study, m, level)
        predictor = study.predictor(m) if m.rank else Proxies(m.proxy) if m.proxy else None
        needs = Needs(
            columns_of(levels),
            predictor=predictor,
            factors=factors,
            norms=m.norms,
            top_k=m.select == "top-k",
        )
        engine = engine_of(needs)
        reference = Reference(engine.image)
        thresholds = thresholds_of(study.rules(m, levels))
        engine.set_thresholds(thresholds)
        engine.reset()
        engine.counters(clear=True)
        exact, logits = reads_of(reference, thresholds, windows[0])
        for token, want in zip(windows[0], logits):
            got = engine.step(int(token))
            assert got is not None
            assert np.array_equal(got.view(np.uint32), want.view(np.uint32)), name
        counters = engine.counters()
        found = bytes_a_token(model.spec, formats, needs, exact, study.extra(m))
        # Vectors lie in RAM or are read with the start; counters see what streams.
        streamed = found.total - found.metadata
        assert round(streamed * len(windows[0])) == counters["bytes"], name
        ffn = found.ffn + found.proxy
        assert round(ffn * len(windows[0])) == counters["bytes_ffn"], name
        predicted = study.measure(m, level, levels).bytes
        if name == "dense":
            assert predicted.total == found.total
        assert predicted.total == pytest.approx(found.total, rel=5e-3), name


def with_own_thresholds(fraction: float) -> Model:
    """A random model whose layers drop about that share at each of their thresholds."""
    model = random_model(vocab=512)
    rng = np.random.default_rng(8)
    for layer in model.layers:
        sizes = (model.spec.dim, model.spec.ffn_dim, model.spec.ffn_dim)
        x, act, h = (
            rng.uniform(0, s, n).astype(np.float32) for s, n in zip((1.3, 0.1, 0.1), sizes)
        )
        layer.thresholds = Thresholds(x * fraction * 2, act * fraction * 2, h * fraction * 2)
    return replace(model, spec=replace(model.spec, own_thresholds=True))


@pytest.mark.parametrize("name", ["story", "own thresholds"])
def test_masks_of_training_are_in_the_byte_model(name: str, host: Board, tmp_path: Path) -> None:
    """What a model drops by itself is no byte of a token: model, report and counters agree."""
    if name == "story":
        recipe = load_recipe("story")
        model, f = pipeline.open_model(recipe), recipe.formats
        assert model.tokenizer is not None
        text = "Once upon a time, a girl had a red ball. She liked to play with it. " * 3
        ids = np.array(model.tokenizer.encode(text)[:40])
    else:
        model, f = with_own_thresholds(0.5), {"attn": "s4", "ffn": "s4", "embed": "q8"}
        ids = np.random.default_rng(2).integers(0, model.spec.vocab, 40)
    formats, needs = Formats(f["attn"], f["ffn"], f["embed"]), Needs()
    if model.spec.own_thresholds:
        needs = needs.with_gate_by_columns(model.spec.n_layers)
    pack(model, tmp_path / "model.sfm", formats, needs)
    image = Image(tmp_path / "model.sfm")
    thresholds = dense_thresholds(image)
    generate(make_plan(image, host, thresholds, kv_len=64), tmp_path / "gen")
    engine = Engine(build_library(tmp_path / "gen", tmp_path / "lib.so", "cc", ["-O1"]), image)
    exact, logits = reads_of(Reference(image), thresholds, ids)
    for token, want in zip(ids, logits):
        got = engine.step(int(token))
        assert got is not None and np.array_equal(got.view(np.uint32), want.view(np.uint32))
    counters = engine.counters()
    found = bytes_a_token(model.spec, formats, needs, exact)
    assert round(found.total * len(ids)) == counters["bytes"]
    assert round(found.ffn * len(ids)) == counters["bytes_ffn"]
    whole = sum(w.size * w.count for w in image.weights.values() if w.is_ffn)
    assert found.ffn < (0.25 if name == "story" else 0.8) * whole
    predicted = Study(model, formats, ids[None], ids[None]).measure(method("dense"), 0.0, {}).bytes
    assert predicted.ffn == pytest.approx(found.ffn, rel=1e-2) and predicted.head == found.head


def test_methods_of_the_host_are_refused_for_devices() -> None:
    check_method("marginal-ffn", 20)
    with pytest.raises(UsageError, match="host only"):
        check_method("h-fisher", 20)
    with pytest.raises(UsageError, match="there are"):
        check_method("nothing", 20)
    with pytest.raises(UsageError, match="below 100"):
        check_method("h", 100)


def test_thresholds_of_a_shared_budget(small: tuple[Model, Recipe]) -> None:
    model, recipe = small
    calibration = pipeline.calibrated(model, recipe)
    got = pipeline.setting_for(model, recipe, "marginal-ffn", 20).thresholds
    assert got.shape == (5, 12) and got.dtype == np.float32
    assert (got[:, [0, 2, 4]] == 0).all()
    assert len(np.unique(got[:, 3])) > 1
    dropped = [calibration.dropped(i, "h", float(got[i, 3])) for i in range(5)]
    grid = np.array(GRID)
    assert all(np.abs(grid - d).min() < 1e-3 for d in dropped)
