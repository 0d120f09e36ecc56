"""Bit-exactness: the numpy reference and the C, on random models of every supported shape."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import random_factors, random_model, random_predictor
from sparseflash.base.errors import InputError, SparseflashError, UnsupportedError
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.predictor import Predictor
from sparseflash.image.reference import Reference
from sparseflash.image.sfm import Formats, Image, pack
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.spec import Activation, LayerSpec, Model
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan
from sparseflash.sparsity.bytes import bytes_a_token
from sparseflash.sparsity.masks import Reads

POSITIONS = 64


def engine_for(
    model: Model,
    board: Board,
    folder: Path,
    formats: Formats | None = None,
    cc: str = "cc",
    flags: list[str] | None = None,
    predictor: Predictor | None = None,
) -> Engine:
    pack(model, folder / "model.sfm", formats, None, predictor)
    return engine_of(Image(folder / "model.sfm"), board, folder, cc, flags)


def engine_of(
    image: Image, board: Board, folder: Path, cc: str = "cc", flags: list[str] | None = None
) -> Engine:
    plan = make_plan(image, board, dense_thresholds(image), kv_len=96)
    generate(plan, folder / "gen")
    return Engine(build_library(folder / "gen", folder / "libmodel.so", cc, flags), image)


def compare(engine: Engine, thresholds: np.ndarray, seed: int = 5) -> None:
    ids = np.random.default_rng(seed).integers(0, engine.image.spec.vocab, POSITIONS)
    want = Reference(engine.image).run(ids, thresholds)
    hashes = want.hashes()
    engine.set_thresholds(thresholds)
    engine.reset()
    engine.counters(clear=True)
    engine.trace(True)
    for p, token in enumerate(ids):
        logits = engine.step(int(token))
        assert np.array_equal(engine.hashes(), hashes[p]), f"sites differ at position {p}"
        assert logits is not None
        assert np.array_equal(logits.view(np.uint32), want.logits[p].view(np.uint32))
    assert engine.counters()["neurons"] == want.neurons


def mixed_thresholds(engine: Engine) -> np.ndarray:
    t = dense_thresholds(engine.image)
    t[0, :5] = (0.3, 0.1, 0.2, 0.05, 0.02)
    t[-1, 3] = 0.2
    return t


SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied": {"tied_head": False},
    "qwen2": {"attn_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 16},
    "gemma3": {
        "qk_norm": True,
        "sandwich_norms": True,
        "activation": Activation.GELU_TANH,
        "embed_scale": 8.0,
        "layers": (LayerSpec(window=16), LayerSpec(rope_theta=1e6, rope_scale=8.0)),
    },
    "relu": {"activation": Activation.RELU},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fmt", ["q4", "q8", "r8"])
def test_families(shape: str, fmt: str, host: Board, tmp_path: Path) -> None:
    engine = engine_for(
        random_model(**SHAPES[shape]),
        host,
        tmp_path,
        Formats(fmt, fmt, {"q4": "q8", "q8": "q4", "r8": "r8"}[fmt]),
    )
    compare(engine, dense_thresholds(engine.image))
    compare(engine, mixed_thresholds(engine))


def test_down_by_rows(host: Board, tmp_path: Path) -> None:
    """The same bits as by columns, whatever neurons a mask drops, and always all of down_proj."""
    for fmt, shape in (("r8", "llama"), ("q8", "gemma3"), ("q4", "relu")):
        model = random_model(**SHAPES[shape])
        columns = engine_for(model, host, tmp_path / fmt / "columns", Formats(fmt, fmt, "q8"))
        formats = Formats(fmt, fmt, "q8", down="rows")
        engine = engine_for(model, host, tmp_path / fmt / "rows", formats)
        spec = engine.image.spec
        compare(engine, dense_thresholds(engine.image))
        dense = Reads.dense(spec.n_layers, spec.ffn_dim)
        expected = bytes_a_token(spec, engine.image.formats, dense).total
        assert engine.counters()["bytes"] == POSITIONS * expected
        for e in (columns, engine):
            compare(e, mixed_thresholds(e))
        tokens = (3, 1, 4)
        logits = [[e.step(t) for t in tokens] for e in (columns, engine)]
        assert np.array_equal(np.array(logits[0]), np.array(logits[1]))
    with pytest.raises(UnsupportedError, match="down"):
        pack(model, tmp_path / "m.sfm", Formats(down="rows", guess=2))
    with pytest.raises(UnsupportedError, match="there are columns and rows"):
        pack(model, tmp_path / "m.sfm", Formats(down="neurons"))


def test_older_images_are_refused(tmp_path: Path) -> None:
    """Version 1, which had no table of weights, is refused and not misread."""
    path = tmp_path / "model.sfm"
    pack(random_model(), path)
    data = bytearray(path.read_bytes())
    data[4:6] = (1).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"image version 1.*pack it again"):
        Image(path)


def guesses_choose(engine: Engine) -> None:
    """Dense, then with a limit on the guess in each layer: the same bits, and fewer neurons."""
    t = dense_thresholds(engine.image)
    compare(engine, t)
    dense = engine.counters()
    t[0, 5] = 0.2
    t[1, :6] = (0.1, 0.05, 0, 0.02, 0, 0.05)
    compare(engine, t)
    sparse = engine.counters()
    assert 0 < sparse["neurons"] < dense["neurons"]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("level", ["-O0", "-O3 -march=native"])
def test_proxies_choose_neurons(bits: int, level: str, host: Board, tmp_path: Path) -> None:
    for shape in ("llama", "gemma3"):
        folder = tmp_path / shape
        model = random_model(**SHAPES[shape])
        engine = engine_for(model, host, folder, Formats(guess=bits), "cc", level.split())
        guesses_choose(engine)


@pytest.mark.parametrize("level", ["-O0", "-O3 -march=native"])
def test_signs_choose_neurons(level: str, host: Board, tmp_path: Path) -> None:
    model = random_model(**SHAPES["relu"])
    assert isinstance(model.layers[0].gate_proj, np.ndarray)
    model.layers[0].gate_proj[:9, ::3] = 0  # zero is not below zero
    engine = engine_for(model, host, tmp_path, Formats(signs=True), "cc", level.split())
    t = dense_thresholds(engine.image)
    compare(engine, t)
    dense = engine.counters()
    t[:, 5] = 1e-9  # every neuron agrees in one sign at least
    compare(engine, t)
    every = engine.counters()
    assert every["neurons"] == dense["neurons"]
    assert every["bytes"] - dense["bytes"] == POSITIONS * 2 * 172 * 64 // 8
    t[0, 5] = 33.0
    t[1, :6] = (0, 0.05, 0, 0.02, 0, 31.5)
    compare(engine, t)
    sparse = engine.counters()
    assert 0 < sparse["neurons"] < dense["neurons"]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("level", ["-O0", "-O3 -march=native"])
def test_predictors_choose_neurons(ahead: bool, level: str, host: Board, tmp_path: Path) -> None:
    """Ranks below, at and above the model's dim."""
    for shape, rank in (("llama", 32), ("gemma3", 64), ("untied", 192)):
        model = random_model(**SHAPES[shape])
        predictor = random_predictor(model.spec, rank, ahead)
        formats = Formats(rank=rank)
        engine = engine_for(model, host, tmp_path / shape, formats, "cc", level.split(), predictor)
        guesses_choose(engine)


@pytest.mark.parametrize("rank", [0, 32])
def test_guesses_in_some_layers(rank: int, host: Board, tmp_path: Path) -> None:
    """Only the last layer stores a guess: the others are exact, and refuse a limit on it."""
    model = random_model(**SHAPES["llama"])
    last = model.spec.n_layers - 1
    formats = Formats(rank=rank, guess=0 if rank else 2, guessed=(*[False] * last, True))
    predictor = random_predictor(model.spec, rank) if rank else None
    engine = engine_for(model, host, tmp_path, formats, "cc", ["-O1"], predictor)
    with pytest.raises(InputError, match="guess_gate of layer 0 is missing"):
        engine.image.weight("guess_gate", 0)
    t = dense_thresholds(engine.image)
    t[0, :4] = (0.1, 0.05, 0, 0.02)
    t[last, 5] = 0.2
    compare(engine, t)
    assert 0 < engine.counters()["neurons"] < POSITIONS * (last + 1) * model.spec.ffn_dim
    t[0, 5] = 0.1
    with pytest.raises(SparseflashError, match="layer 0: thresholds"):
        engine.set_thresholds(t)
    with pytest.raises(UnsupportedError, match="guesses neurons in a layer"):
        make_plan(engine.image, host, t)


@pytest.mark.parametrize(
    ("attn", "ffn", "level"), [("q4", "q4", "-O0"), ("q8", "q4", "-O3 -march=native")]
)
def test_factored_projections(attn: str, ffn: str, level: str, host: Board, tmp_path: Path) -> None:
    """Some projections of some layers in two factors, dense and under masks and a predictor."""
    for shape, rank in (("llama", 0), ("gemma3", 0), ("qwen2", 32)):
        model = random_model(**SHAPES[shape] | {"n_layers": 3, "layers": (LayerSpec(),) * 3})
        predictor = random_predictor(model.spec, rank, True) if rank else None
        factors = random_factors(model.spec, attn, ffn)
        formats = Formats(attn, ffn, "q8", layout="split", rank=rank)
        folder = tmp_path / shape
        pack(model, folder / "model.sfm", formats, None, predictor, factors)
        engine = engine_of(Image(folder / "model.sfm"), host, folder, "cc", level.split())
        t = dense_thresholds(engine.image)
        compare(engine, t)
        dense = engine.counters()
        read = Reads.dense(3, model.spec.ffn_dim)
        size = bytes_a_token(model.spec, engine.image.formats, read)
        assert dense["bytes"] == POSITIONS * size.total
        t[0, :6] = (0.1, 0.05, 0, 0.02, 0, 0.05 * (rank > 0))
        t[1, 3] = 0.2
        compare(engine, t)
        sparse = engine.counters()
        assert sparse["bytes"] < dense["bytes"] and sparse["neurons"] < dense["neurons"]


COLUMNS = {
    "attention": ("qkv o",) * 2,
    "ffn": ("gate up",) * 2,
    "all": ("qkv o gate up",) * 2,
    "by layer": ("qkv gate", "o up"),
}


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize(
    ("fmt", "level"), [("q4", "-O0"), ("q4", "-O3 -march=native"), ("q8", "-O3 -march=native")]
)
def test_inputs_drop_columns(
    columns: str, fmt: str, level: str, host: Board, tmp_path: Path
) -> None:
    for shape in ("llama", "qwen2", "gemma3"):
        model = random_model(**SHAPES[shape])
        rows = engine_for(model, host, tmp_path / shape / "rows", Formats(fmt, fmt, "q8"))
        formats = Formats(fmt, "q8" if shape == "qwen2" else fmt, "q8", columns=COLUMNS[columns])
        engine = engine_for(model, host, tmp_path / shape / "columns", formats, "cc", level.split())
        t = dense_thresholds(engine.image)
        compare(engine, t)
        dense = engine.counters()
        if formats.ffn == fmt:  # stored otherwise, computed alike
            for token in (3, 1, 4):
                a, b = rows.step(token), None
                assert a is not None
            engine.reset()
            for token in (3, 1, 4):
                b = engine.step(token)
            assert b is not None and np.array_equal(a.view(np.uint32), b.view(np.uint32))
        limits = {"qkv": (6, 7, 8), "o": (9,), "gate": (10,), "up": (11,)}
        for i, names in enumerate(COLUMNS[columns]):
            for name in names.split():
                t[i, limits[name]] = 0.05 if name == "o" else (0.3, 0.5, 0.2)[: len(limits[name])]
        if columns in ("attention", "all"):
            t[1, 6] = 1e9
        t[1, :5] = (0.1, 0.05, 0, 0.02, 0)
        compare(engine, t)
        assert engine.counters()["bytes"] < dense["bytes"]
        if columns == "by layer":
            for i, site in ((0, 9), (0, 11), (1, 6), (1, 10)):
                wrong = t.copy()
                wrong[i, site] = 0.1
                with pytest.raises(SparseflashError):
                    engine.set_thresholds(wrong)


def test_rows_of_one_scale_have_no_columns(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="r8 has no columns of o"):
        pack(random_model(), tmp_path / "m.sfm", Formats("r8", "r8", "q8", columns=("o", "")))


@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3", "-O3 -march=native"])
def test_compilers(cc: str, level: str, host: Board, tmp_path: Path) -> None:
    if shutil.which(cc) is None:
        pytest.skip(f"{cc} is not installed")
    engine = engine_for(random_model(), host, tmp_path, None, cc, level.split())
    compare(engine, mixed_thresholds(engine))


def test_threshold_zero_is_dense(host: Board, tmp_path: Path) -> None:
    """A mask that drops nothing leaves every bit, and one that drops leaves fewer bytes."""
    engine = engine_for(random_model(), host, tmp_path)
    t = dense_thresholds(engine.image)
    compare(engine, t)
    dense = engine.counters(clear=True)
    t[:, 3] = 1e-30
    compare(engine, t)
    assert engine.counters(clear=True)["neurons"] == dense["neurons"]
    t[:, 3] = 0.3
    compare(engine, t)
    sparse = engine.counters(clear=True)
    assert sparse["bytes_ffn"] < dense["bytes_ffn"]
    assert sparse["neurons"] < dense["neurons"]


def test_outliers(host: Board, tmp_path: Path) -> None:
    """Weights of very different sizes exercise the shared exponents."""
    model = random_model()
    for layer in model.layers:
        layer.attn_norm[:8] *= 500
        layer.ffn_norm[3] *= 3000
        assert layer.gate_proj is not None and isinstance(layer.up_proj, np.ndarray)
        layer.up_proj[:5] *= 30
        layer.up_proj[40:90] = 0
    engine = engine_for(model, host, tmp_path)
    compare(engine, dense_thresholds(engine.image))


def test_generation_is_deterministic(host: Board, tmp_path: Path, monkeypatch: Any) -> None:
    model = random_model()
    outputs = []
    for name, locale in (("a", "C"), ("b", "de_DE.UTF-8")):
        monkeypatch.setenv("LC_ALL", locale)
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / name
        pack(model, folder / "model.sfm")
        image = Image(folder / "model.sfm")
        files = generate(make_plan(image, host, dense_thresholds(image)), folder / "gen")
        outputs.append([p.read_bytes() for p in files] + [(folder / "model.sfm").read_bytes()])
    assert outputs[0] == outputs[1]
