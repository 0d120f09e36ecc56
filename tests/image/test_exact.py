"""Bit-exactness: the numpy reference and the C, on random models of every supported shape."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import random_factors, random_model, random_predictor
from sparseflash.base.errors import InputError, SparseflashError, UnsupportedError
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.formats import Formats
from sparseflash.image.needs import Needs
from sparseflash.image.pack import pack
from sparseflash.image.proxy import Proxies, Signs
from sparseflash.image.reference import THRESHOLDS, Reference
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.spec import Activation, LayerSpec, Model, Norm, Position
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan
from sparseflash.sparsity.bytes import bytes_a_token
from sparseflash.sparsity.reads import Reads

POSITIONS = 64
LEVELS = ("-O0", "-O3 -march=native")
"""Of the optimiser. Where none is named, -O1: compiling is what takes the time here."""


def engine_for(
    model: Model,
    board: Board,
    folder: Path,
    formats: Formats | None = None,
    cc: str = "cc",
    flags: list[str] | None = None,
    needs: Needs | None = None,
) -> Engine:
    pack(model, folder / "model.sfm", formats, needs)
    return engine_of(Image(folder / "model.sfm"), board, folder, cc, flags)


def engine_of(
    image: Image, board: Board, folder: Path, cc: str = "cc", flags: list[str] | None = None
) -> Engine:
    plan = make_plan(image, board, dense_thresholds(image), kv_len=96)
    generate(plan, folder / "gen")
    library = build_library(folder / "gen", folder / "libmodel.so", cc, flags or ["-O1"])
    return Engine(library, image)


def compare(engine: Engine, thresholds: np.ndarray, seed: int = 5) -> None:
    """In plain C, and with the kernels that this CPU has."""
    ids = np.random.default_rng(seed).integers(0, engine.image.spec.vocab, POSITIONS)
    want = Reference(engine.image).run(ids, thresholds)
    hashes = want.hashes()
    engine.set_thresholds(thresholds)
    for use_tier in (lambda: engine._lib.sf_use_tier(b"plain"), engine._lib.sf_choose_tier):
        use_tier()
        blocks = in_blocks(engine, ids, want.logits, hashes)
        engine.reset()
        engine.counters(clear=True)
        for p, token in enumerate(ids):
            logits = engine.step(int(token))
            assert np.array_equal(engine.hashes(), hashes[p]), f"sites differ at position {p}"
            assert logits is not None
            assert np.array_equal(logits.view(np.uint32), want.logits[p].view(np.uint32))
        assert engine.counters()["neurons"] == want.neurons
        for name in ("tokens", "neurons"):
            assert blocks[name] == engine.counters()[name]
        assert blocks["bytes"] < engine.counters()["bytes"] / 2


def in_blocks(
    engine: Engine, ids: np.ndarray, logits: np.ndarray, hashes: np.ndarray
) -> dict[str, int]:
    """Tokens go through the layers together, to the bits of one by one; returns the counters."""
    at = 0
    engine.reset()
    engine.counters(clear=True)
    engine.trace(True)
    of_each = engine.block(ids[:4])
    assert np.array_equal(of_each.view(np.uint32), logits[:4].view(np.uint32))
    engine.reset()
    engine.counters(clear=True)
    for n in (5, 1, 33, len(ids) - 39):
        got = engine.prefill(ids[at : at + n])
        at += n
        assert got is not None
        assert np.array_equal(engine.hashes(), hashes[at - 1]), f"sites differ after {at} tokens"
        assert np.array_equal(got.view(np.uint32), logits[at - 1].view(np.uint32))
    return engine.counters()


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
    "biases": {"attn_bias": True, "out_bias": True, "ffn_bias": True},
    "layernorm": {"norm": Norm.LAYER, "activation": Activation.GELU},
    "parallel": {"norm": Norm.LAYER, "parallel": True, "qk_norm": True, "qk_norm_whole": True},
    "olmo2": {"pre_norms": False, "sandwich_norms": True, "qk_norm": True, "qk_norm_whole": True},
}
UNGATED: dict[str, dict[str, Any]] = {
    "phi": {
        "norm": Norm.LAYER,
        "gated": False,
        "activation": Activation.GELU_TANH,
        "parallel": True,
        "attn_bias": True,
        "out_bias": True,
        "ffn_bias": True,
        "tied_head": False,
        "head_bias": True,
        "layers": (LayerSpec(rope_dims=4), LayerSpec(rope_dims=4)),
    },
    "gpt2": {
        "norm": Norm.LAYER,
        "gated": False,
        "activation": Activation.GELU,
        "attn_bias": True,
        "out_bias": True,
        "ffn_bias": True,
        "position": Position.LEARNED,
    },
    "opt": {
        "norm": Norm.LAYER,
        "gated": False,
        "activation": Activation.RELU,
        "ffn_bias": True,
        "position": Position.LEARNED,
        "position_offset": 2,
    },
}
EXPERTS: dict[str, dict[str, Any]] = {
    "of the chosen": {"experts": 8, "experts_used": 2, "active_share": 0.25},
    "of all": {"experts": 4, "experts_used": 3, "experts_normed": False, "active_share": 0.75},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fmt", ["q4", "q8", "r8"])
def test_families(shape: str, fmt: str, host: Board, tmp_path: Path) -> None:
    engine = engine_for(
        random_model(**SHAPES[shape]),
        host,
        tmp_path,
        Formats(fmt, fmt, {"q4": "q8", "q8": "q4", "r8": "r8"}[fmt]),
        flags=["-O3"] if fmt == "q4" else None,
    )
    compare(engine, dense_thresholds(engine.image))
    compare(engine, mixed_thresholds(engine))


@pytest.mark.parametrize("shape", UNGATED)
@pytest.mark.parametrize("fmt", ["q4", "q8", "r8"])
def test_ffns_without_a_gate(shape: str, fmt: str, host: Board, tmp_path: Path) -> None:
    """Dense, with a mask of h, and with inputs and outputs dropped."""
    model = random_model(**UNGATED[shape])
    formats = Formats(fmt, fmt, {"q4": "q8", "q8": "q4", "r8": "r8"}[fmt])
    needs = Needs(("qkv up", "o")) if fmt != "r8" else Needs()
    engine = engine_for(model, host, tmp_path, formats, needs=needs)
    t = dense_thresholds(engine.image)
    compare(engine, t)
    t[:, THRESHOLDS.index("h")] = 0.2
    t[0, THRESHOLDS.index("down")] = 0.05
    if fmt != "r8":
        t[0, THRESHOLDS.index("xu")] = 0.3
        t[1, THRESHOLDS.index("o")] = 0.1
    compare(engine, t)
    assert 0.05 < engine.counters()["neurons"] / (POSITIONS * 2 * model.spec.ffn_dim) < 0.95


@pytest.mark.parametrize("kind", ["proxies", "signs", "low rank"])
def test_predictors_without_a_gate(kind: str, host: Board, tmp_path: Path) -> None:
    model = random_model(**UNGATED["opt"])
    predictor: Any = Proxies(3) if kind == "proxies" else Signs()
    if kind == "low rank":
        predictor = random_predictor(model.spec, 32, ahead=True)
    engine = engine_for(model, host, tmp_path, needs=Needs(predictor=predictor))
    t = dense_thresholds(engine.image)
    compare(engine, t)
    t[:, THRESHOLDS.index("predictor")] = 33.0 if kind == "signs" else 0.2
    compare(engine, t)
    assert 0.05 < engine.counters()["neurons"] / (POSITIONS * 2 * model.spec.ffn_dim) < 0.95


def test_what_needs_a_gate_is_refused(host: Board, tmp_path: Path) -> None:
    pack(random_model(**UNGATED["opt"]), tmp_path / "model.sfm")
    image = Image(tmp_path / "model.sfm")
    for site in ("gate", "act", "up"):
        t = dense_thresholds(image)
        t[1, THRESHOLDS.index(site)] = 0.1
        with pytest.raises(UnsupportedError, match="its FFN has no gate"):
            make_plan(image, host, t, 32, "paper")


@pytest.mark.parametrize("shape", EXPERTS)
@pytest.mark.parametrize("fmt", ["q4", "q8", "r8", "s4"])
def test_experts(shape: str, fmt: str, host: Board, tmp_path: Path) -> None:
    """Only the rows and columns of the chosen experts are read, as the model of bytes says."""
    model = random_model(ffn_dim=256, **EXPERTS[shape])
    spec, formats = model.spec, Formats(fmt, fmt, "q8")
    engine = engine_for(model, host, tmp_path, formats)
    compare(engine, dense_thresholds(engine.image))
    counted = engine.counters()
    used = spec.experts_used * spec.ffn_dim // spec.experts
    assert counted["neurons"] == POSITIONS * spec.n_layers * used
    expected = bytes_a_token(spec, formats, Needs(), Reads.dense_of(spec)).total
    assert counted["bytes"] == POSITIONS * expected
    compare(engine, mixed_thresholds(engine))


def test_equal_experts_are_chosen_by_number(host: Board, tmp_path: Path) -> None:
    """Ties of the router go to the least number, -0 below 0."""
    model = random_model(ffn_dim=256, **EXPERTS["of the chosen"])
    for layer in model.layers:
        layer.router = np.zeros((8, 64), np.float32)
    engine = engine_for(model, host, tmp_path)
    compare(engine, dense_thresholds(engine.image))
    h = Reference(engine.image).run(np.array([3, 4])).sites[0]["h"]
    assert np.array_equal(np.unique(np.nonzero(h)[1] // 32), [0, 1])


def test_down_by_rows(host: Board, tmp_path: Path) -> None:
    """The same bits as by columns, whatever neurons a mask drops, and always all of down_proj."""
    for fmt, shape in (("r8", "llama"), ("q8", "gemma3"), ("q4", "relu")):
        model = random_model(**SHAPES[shape])
        columns = engine_for(model, host, tmp_path / fmt / "columns", Formats(fmt, fmt, "q8"))
        formats, needs = Formats(fmt, fmt, "q8"), Needs(down="rows")
        engine = engine_for(model, host, tmp_path / fmt / "rows", formats, needs=needs)
        spec = engine.image.spec
        compare(engine, dense_thresholds(engine.image))
        dense = Reads.dense(spec.n_layers, spec.ffn_dim)
        expected = bytes_a_token(spec, formats, needs, dense).total
        assert engine.counters()["bytes"] == POSITIONS * expected
        for e in (columns, engine):
            compare(e, mixed_thresholds(e))
        tokens = (3, 1, 4)
        logits = [[e.step(t) for t in tokens] for e in (columns, engine)]
        assert np.array_equal(np.array(logits[0]), np.array(logits[1]))
    with pytest.raises(UnsupportedError, match="down"):
        pack(model, tmp_path / "m.sfm", needs=Needs(down="rows", predictor=Proxies(2)))
    with pytest.raises(UnsupportedError, match="there are columns and rows"):
        pack(model, tmp_path / "m.sfm", needs=Needs(down="neurons"))


def test_heads_of_unwhole_words_are_refused(tmp_path: Path) -> None:
    """What the generated C asserts is said before anything is packed."""
    model = random_model(dim=96, n_heads=16, n_kv_heads=8, head_dim=6)
    with pytest.raises(UnsupportedError, match="head_dim = 6, not a multiple of 4"):
        pack(model, tmp_path / "m.sfm")
    assert not (tmp_path / "m.sfm").exists()


def test_older_images_are_refused(tmp_path: Path) -> None:
    """Version 1, which had no table of weights, is refused and not misread."""
    path = tmp_path / "model.sfm"
    pack(random_model(), path)
    data = bytearray(path.read_bytes())
    data[4:6] = (1).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"image version 1.*pack it again"):
        Image(path)


def predictions_choose(engine: Engine) -> None:
    """Dense, then with a limit on the prediction in each layer: equal bits, fewer neurons."""
    t = dense_thresholds(engine.image)
    compare(engine, t)
    dense = engine.counters()
    t[0, 5] = 0.2
    t[1, :6] = (0.1, 0.05, 0, 0.02, 0, 0.05)
    compare(engine, t)
    sparse = engine.counters()
    assert 0 < sparse["neurons"] < dense["neurons"]


@pytest.mark.parametrize(
    ("bits", "level"), [(1, "-O1"), (3, "-O1"), (4, "-O1"), *((2, level) for level in LEVELS)]
)
def test_proxies_choose_neurons(bits: int, level: str, host: Board, tmp_path: Path) -> None:
    for shape in ("llama", "gemma3"):
        folder = tmp_path / shape
        model = random_model(**SHAPES[shape])
        engine = engine_for(
            model, host, folder, None, "cc", level.split(), Needs(predictor=Proxies(bits))
        )
        predictions_choose(engine)


@pytest.mark.parametrize("level", LEVELS)
def test_signs_choose_neurons(level: str, host: Board, tmp_path: Path) -> None:
    model = random_model(**SHAPES["relu"])
    assert isinstance(model.layers[0].gate_proj, np.ndarray)
    model.layers[0].gate_proj[:9, ::3] = 0  # zero is not below zero
    engine = engine_for(model, host, tmp_path, None, "cc", level.split(), Needs(predictor=Signs()))
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


@pytest.mark.parametrize(("ahead", "level"), [(False, LEVELS[0]), (True, LEVELS[1])])
def test_predictors_choose_neurons(ahead: bool, level: str, host: Board, tmp_path: Path) -> None:
    """Ranks below, at and above the model's dim."""
    for shape, rank in (("llama", 32), ("gemma3", 64), ("untied", 192)):
        model = random_model(**SHAPES[shape])
        needs = Needs(predictor=random_predictor(model.spec, rank, ahead))
        engine = engine_for(model, host, tmp_path / shape, None, "cc", level.split(), needs)
        predictions_choose(engine)


@pytest.mark.parametrize("rank", [0, 32])
def test_predictors_in_some_layers(rank: int, host: Board, tmp_path: Path) -> None:
    """Only the last layer has a predictor: the others are exact, and refuse a limit on it."""
    model = random_model(**SHAPES["llama"])
    last = model.spec.n_layers - 1
    predictor = random_predictor(model.spec, rank) if rank else Proxies(2)
    needs = Needs(predictor=predictor, predicted=(*[False] * last, True))
    engine = engine_for(model, host, tmp_path, None, "cc", ["-O1"], needs)
    with pytest.raises(InputError, match="predictor_gate of layer 0 is missing"):
        engine.image.weight("predictor_gate", 0)
    t = dense_thresholds(engine.image)
    t[0, :4] = (0.1, 0.05, 0, 0.02)
    t[last, 5] = 0.2
    compare(engine, t)
    assert 0 < engine.counters()["neurons"] < POSITIONS * (last + 1) * model.spec.ffn_dim
    t[0, 5] = 0.1
    with pytest.raises(SparseflashError, match="layer 0: thresholds"):
        engine.set_thresholds(t)
    with pytest.raises(UnsupportedError, match="no predictor of neurons in a layer"):
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
        formats = Formats(attn, ffn, "q8")
        needs, folder = Needs(predictor=predictor, factors=factors), tmp_path / shape
        pack(model, folder / "model.sfm", formats, needs)
        engine = engine_of(Image(folder / "model.sfm"), host, folder, "cc", level.split())
        t = dense_thresholds(engine.image)
        compare(engine, t)
        dense = engine.counters()
        read = Reads.dense(3, model.spec.ffn_dim)
        size = bytes_a_token(model.spec, formats, needs, read)
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


@pytest.fixture(scope="module")
def rows_of(host: Board, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Engine]:
    """A shape's engine that stores no columns, by its grid."""

    @cache
    def build(shape: str, fmt: str) -> Engine:
        folder = tmp_path_factory.mktemp("rows")
        return engine_for(random_model(**SHAPES[shape]), host, folder, Formats(fmt, fmt, "q8"))

    return build


@pytest.mark.parametrize(
    ("columns", "fmt", "level"),
    [
        *itertools.product(COLUMNS, ("q4", "q8"), ("-O1",)),
        *itertools.product(("all", "by layer"), ("q4",), LEVELS),
    ],
)
def test_inputs_drop_columns(
    columns: str,
    fmt: str,
    level: str,
    host: Board,
    tmp_path: Path,
    rows_of: Callable[[str, str], Engine],
) -> None:
    for shape in ("llama", "qwen2", "gemma3"):
        model = random_model(**SHAPES[shape])
        formats = Formats(fmt, "q8" if shape == "qwen2" else fmt, "q8")
        folder, needs = tmp_path / shape / "columns", Needs(COLUMNS[columns])
        engine = engine_for(model, host, folder, formats, "cc", level.split(), needs)
        t = dense_thresholds(engine.image)
        compare(engine, t)
        dense = engine.counters()
        if formats.ffn == fmt:  # stored otherwise, computed alike
            rows = rows_of(shape, fmt)
            rows.reset()
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


@pytest.mark.parametrize("top_k", [False, True])
@pytest.mark.parametrize("shape", ["llama", "gemma3", "phi"])
def test_scores(shape: str, top_k: bool, host: Board, tmp_path: Path) -> None:
    """Norms of columns at some sites, magnitudes at others; counts of what stays, or limits."""
    model = random_model(**(SHAPES | UNGATED)[shape])
    spec = model.spec
    needs = Needs(("qkv o up", "o up"), norms=("q", "o", "xu", "h"), top_k=top_k)
    engine = engine_for(model, host, tmp_path, Formats("q4", "q8", "q8"), needs=needs)
    t = dense_thresholds(engine.image)
    compare(engine, t)
    dense = engine.counters()["bytes"]
    limits = {"q": (0.5, 20), "v": (0.3, 31), "o": (0.1, 17), "xu": (0.8, 33), "h": (0.3, 55)}
    for i, site in ((0, "q"), (0, "v"), (1, "o"), (0, "xu"), (1, "xu"), (0, "h"), (1, "h")):
        t[i, THRESHOLDS.index(site)] = limits[site][top_k]
    compare(engine, t)
    assert engine.counters()["bytes"] < dense
    if top_k:
        assert engine.counters()["neurons"] == 2 * 55 * POSITIONS
        t[1, THRESHOLDS.index("h")] = 10 * spec.ffn_dim  # more than there are: all
    elif spec.gated:
        t[0, [THRESHOLDS.index("up"), THRESHOLDS.index("act")]] = 0.2, 0.1
    compare(engine, t)


def test_scores_and_drafts(host: Board, tmp_path: Path) -> None:
    """Both in one program: greedy decoding with drafts gives the tokens of single steps."""
    pack(random_model(), tmp_path / "m.sfm", Formats(), Needs(norms=("h",), top_k=True))
    image = Image(tmp_path / "m.sfm")
    t = dense_thresholds(image)
    t[:, THRESHOLDS.index("h")] = 20
    generate(make_plan(image, host, t, kv_len=96, draft=3), tmp_path / "gen")
    engine = Engine(build_library(tmp_path / "gen", tmp_path / "lib.so", "cc", ["-O1"]), image)
    engine.prefill([3, 1, 4, 5, 3, 1])
    tokens = engine.greedy(4, 4)
    assert engine.counters()["drafted"] == 3
    engine.reset()
    engine.prefill([3, 1, 4, 5, 3, 1])
    for token, want in zip([4, *tokens], tokens):
        logits = engine.step(token)
        assert logits is not None and int(np.argmax(logits)) == want


def test_scores_need_thresholds_of_layers(tmp_path: Path) -> None:
    model = random_model()
    model.spec = replace(model.spec, own_thresholds=True)
    for needs in (Needs(("gate", "gate"), norms=("h",)), Needs(("gate", "gate"), top_k=True)):
        with pytest.raises(UnsupportedError, match="without top-k"):
            pack(model, tmp_path / "m.sfm", Formats(), needs)


def test_rows_of_one_scale_have_no_columns(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="r8 has no columns of o"):
        pack(random_model(), tmp_path / "m.sfm", Formats("r8", "r8", "q8"), Needs(("o", "")))


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


def test_faint_queries(host: Board, tmp_path: Path) -> None:
    """Scores from ordinary ones to those that are shifted away, as all of a head may be."""
    model = random_model(n_layers=12, qk_norm=True)
    for i, layer in enumerate(model.layers):
        assert layer.q_norm is not None
        layer.q_norm = layer.q_norm * np.float32(2.0 ** (-2 * i - 10))
    engine = engine_for(model, host, tmp_path, flags=["-O1"])
    compare(engine, dense_thresholds(engine.image))
