"""A flash that is late, reorders or fails: the bits stay, or the failure is named."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import random_factors, random_model, random_predictor
from sparseflash.base.errors import SparseflashError, TooSmallError
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.formats import THRESHOLDS, Formats
from sparseflash.image.needs import Needs
from sparseflash.image.pack import pack
from sparseflash.image.proxy import Proxies
from sparseflash.image.reference import Reference
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.recipes import load_recipe
from sparseflash.pipeline.stages import open_model
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan

ALL = os.environ.get("SPARSEFLASH_FAULTS") == "all"
FAULTS = Path(__file__).with_name("fault_flash.c")
POSITIONS = 12
STREAM = {
    "align": 512,
    "gap": 256,
    "ring_buffers": 3,
    "ring_bytes": 4096,
    "pick_buffers": 2,
    "pick_bytes": 2048,
    "program_bytes": 1000,
}


def stream_board(host: Board, **changes: int) -> Board:
    return replace(host, raw={**host.raw, "stream": STREAM | changes})


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    path = tmp_path_factory.mktemp("image") / "model.sfm"
    pack(random_model(n_layers=3), path, Formats(), Needs(predictor=Proxies(2)))
    return Image(path)


@pytest.fixture(scope="module")
def ids(image: Image) -> np.ndarray:
    return np.random.default_rng(3).integers(0, image.spec.vocab, POSITIONS)


def masks(image: Image) -> dict[str, np.ndarray]:
    dense = dense_thresholds(image)
    h, both = dense.copy(), dense.copy()
    h[:, 3] = 0.2
    both[0, :5] = (0.3, 0.1, 0.2, 0.05, 0.02)
    both[1, 1] = 0.15
    prediction = dense.copy()
    prediction[:2, 5] = 0.2
    return {"dense": dense, "h": h, "mixed": both, "prediction": prediction}


def engine(image: Image, board: Board, ram: int, folder: Path, speculate: str = "") -> Engine:
    dense = dense_thresholds(image)
    plan = make_plan(image, board, dense, kv_len=32, ram=ram, speculate=speculate)
    generate(plan, folder / "gen")
    flags = ["-O1", "-g1", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    return Engine(
        build_library(folder / "gen", folder / "lib.so", "cc", flags, flash=FAULTS), image
    )


def fault(e: Engine, seed: int, depth: int, fail: int = 0) -> None:
    e._lib.sf_fault_set(ctypes.c_uint32(seed), ctypes.c_uint32(depth), ctypes.c_uint32(fail))


def replay(
    e: Engine,
    ids: np.ndarray,
    want: np.ndarray,
    seed: int,
    depth: int,
    fail: int = 0,
    what: object = "",
) -> None:
    """All tokens under one fault setting, a failed one again; logits as wanted, bit by bit."""
    fault(e, seed, depth, fail)
    e.reset()
    for p, token in enumerate(ids):
        # Heads that are skipped change what the ring has read ahead.
        try:
            got = e.step(int(token), p % 3 != 1)
        except SparseflashError:
            assert fail
            got = e.step(int(token), p % 3 != 1)
        assert got is None or np.array_equal(got, want[p]), (what, seed, depth, p)


BUDGETS = [(42_000, 2), (42_000, 5), (60_000, 5), (120_000, 2), (170_000, 5), (10_000_000, 2)]
EVERY_BUDGET = [(ram, n) for ram in (42_000, 60_000, 120_000, 170_000, 10_000_000) for n in (2, 5)]


@pytest.mark.parametrize(("ram", "buffers"), EVERY_BUDGET if ALL else BUDGETS)
def test_same_bits(
    image: Image, ids: np.ndarray, host: Board, tmp_path: Path, ram: int, buffers: int
) -> None:
    """Every budget, buffer count, queue depth and order of completion gives the same logits."""
    e = engine(image, stream_board(host, ring_buffers=buffers), ram, tmp_path)
    for name, t in masks(image).items():
        want = Reference(image).run(ids, t, keep_sites=False).logits
        e.set_thresholds(t)
        for seed, depth in ((1, 64), (7, 8), (11, buffers + 4)):
            replay(e, ids, want, seed, depth, what=name)


@pytest.mark.parametrize("ram", [44_000, 120_000])
def test_predictor_before_attention(ids: np.ndarray, host: Board, tmp_path: Path, ram: int) -> None:
    """Gate rows, also of a factor, that are read while attention computes, late and reordered."""
    model = random_model(n_layers=3)
    predictor = random_predictor(model.spec, 32, ahead=True)
    factors = random_factors(model.spec, "q4", "q4") if ram > 100_000 else None
    needs = Needs(predictor=predictor, factors=factors)
    pack(model, tmp_path / "m.sfm", Formats(), needs)
    image = Image(tmp_path / "m.sfm")
    t = dense_thresholds(image)
    t[:, 5] = (0.2, 1e9, 0.3)  # one layer has no neuron at all
    t[2, 3] = 0.1
    e = engine(image, stream_board(host), ram, tmp_path)
    for limits in (dense_thresholds(image), t, t * [[1], [0], [1]]):
        want = Reference(image).run(ids, limits, keep_sites=False).logits
        e.set_thresholds(limits)
        for seed, depth, fail in ((1, 64, 0), (7, 8, 0), (3, 64, 9)):
            replay(e, ids, want, seed, depth, fail)


@pytest.mark.parametrize("kind", ["2 bits", "rank", "ahead"])
def test_speculation(kind: str, ids: np.ndarray, host: Board, tmp_path: Path) -> None:
    """Exact masks: whatever a prediction reads early, the bits are those without it."""
    model = random_model(n_layers=3)
    rank = 0 if kind == "2 bits" else 32
    predictor = random_predictor(model.spec, rank, kind == "ahead") if rank else Proxies(2)
    pack(model, tmp_path / "m.sfm", Formats(), Needs(predictor=predictor))
    image = Image(tmp_path / "m.sfm")
    e = engine(image, stream_board(host, pick_buffers=6), 50_000, tmp_path, speculate="svd-64")
    cats, h = dense_thresholds(image), dense_thresholds(image)
    cats[:, 1] = 0.15
    h[:, 3] = 0.2
    h[1, :4] = (0.1, 0.05, 0.1, 0.1)
    counts = {}
    for name, exact in (("cats", cats), ("h", h), ("dense", dense_thresholds(image))):
        want = Reference(image).run(ids, exact, keep_sites=False).logits
        for prediction in (0.0, 1e-9, 0.2, 1e9):  # none, everything, a prediction, nothing
            t = exact.copy()
            t[:, 5] = prediction
            e.set_thresholds(t)
            for seed, depth, fail in ((1, 64, 0), (7, 12, 0), (3, 64, 9)):
                e.counters(clear=True)
                replay(e, ids, want, seed, depth, fail, (name, prediction))
                if not fail:
                    counts[name, prediction] = e.counters()
    for name in ("cats", "h"):
        none, every, some, nothing = (counts[name, g] for g in (0.0, 1e-9, 0.2, 1e9))
        assert none["bytes_early"] == none["bytes_missed"] == 0
        assert nothing["bytes_early"] == nothing["bytes_early_used"] == 0 < nothing["bytes_missed"]
        for c in (every, some):
            assert 0 < c["bytes_early_used"] < c["bytes_early"]
            total = c["bytes_early_used"] + c["bytes_missed"]
            assert total == nothing["bytes_missed"]
        # What the prediction itself reads comes on top; nothing else does.
        assert every["bytes"] == some["bytes"] == nothing["bytes"] > none["bytes"]
    assert counts["dense", 0.2]["bytes"] == counts["dense", 0.0]["bytes"]


@pytest.mark.parametrize(
    "columns", [("qkv o gate up",) * 3, ("o up", "qkv gate", "")], ids=["all", "by layer"]
)
def test_masked_inputs(
    columns: tuple[str, ...], ids: np.ndarray, host: Board, tmp_path: Path
) -> None:
    """The same for an image by columns: every input mask, late and reordered."""
    formats = Formats()
    pack(random_model(n_layers=3), tmp_path / "model.sfm", formats, Needs(columns))
    image = Image(tmp_path / "model.sfm")
    t = dense_thresholds(image)
    t[0, 6:] = 0.6
    t[1, 9:11] = (0.2, 0.8)
    if columns[2] == "":
        t[:2, 6:] = 0.0
        t[0, (9, 11)] = (0.2, 0.6)
        t[1, (6, 7, 8, 10)] = (0.6, 0.5, 0.4, 0.6)
        t[1:, 1] = 0.05
    t[:, 3] = 0.05
    e = engine(image, stream_board(host), 60_000, tmp_path)
    for limits in (dense_thresholds(image), t):
        want = Reference(image).run(ids, limits, keep_sites=False).logits
        e.set_thresholds(limits)
        fault(e, 7, 8)
        e.reset()
        for p, token in enumerate(ids):
            got = e.step(int(token), p % 3 != 1)
            assert got is None or np.array_equal(got, want[p])


def test_counters(image: Image, ids: np.ndarray, host: Board, tmp_path: Path) -> None:
    """What is used does not depend on the budget; what is read shrinks with it."""
    used, read = [], []
    for k, ram in enumerate((34_000, 120_000, 10_000_000)):
        e = engine(image, stream_board(host), ram, tmp_path / str(k))
        fault(e, 1, 64)
        e.set_thresholds(masks(image)["h"])
        for token in ids:
            e.step(int(token))
        c = e.counters()
        used.append((c["bytes"], c["neurons"]))
        read.append(c["bytes_read"])
    assert len(set(used)) == 1
    assert read[0] > read[1] > read[2] == 0


def test_failed_reads_are_named(image: Image, ids: np.ndarray, host: Board, tmp_path: Path) -> None:
    """The n-th read fails, for many n: that token reports it, and a retry is right."""
    e = engine(image, stream_board(host), 34_000, tmp_path)
    t = masks(image)["h"]
    e.set_thresholds(t)
    want = Reference(image).run(ids, t, keep_sites=False).logits
    failures = 0
    for n in range(1, 150, 7):
        fault(e, n, 64, n)
        e.reset()
        for p, token in enumerate(ids[:3]):
            try:
                got = e.step(int(token))
            except SparseflashError as error:
                assert "-1" in str(error)
                failures += 1
                got = e.step(int(token))
            assert got is not None and np.array_equal(got, want[p]), (n, p)
    assert failures > 10


@pytest.mark.parametrize("kind", ["fail", "short", "flip"])
@pytest.mark.parametrize("buffers", [2, 5])
def test_any_read_of_a_token_may_fail(
    ids: np.ndarray, host: Board, tmp_path: Path, kind: str, buffers: int, count: Counter[str]
) -> None:
    """Read n of some tokens fails, for every n (`make faults`) or a sample: a retry is right.

    In this model a failed step meets keys below the least exponent of the cache.
    """
    pack(
        random_model(seed=2, n_layers=3),
        tmp_path / "m.sfm",
        Formats(),
        Needs(predictor=Proxies(2)),
    )
    image = Image(tmp_path / "m.sfm")
    e = engine(image, stream_board(host, ring_buffers=buffers), 44_000, tmp_path)
    e._lib.sf_fault_kind(ctypes.c_uint32(("fail", "short", "flip").index(kind)))
    failures = 0
    for name, t in masks(image).items():
        e.set_thresholds(t)
        want = Reference(image).run(ids[:8], t, keep_sites=False).logits
        replay(e, ids[:8], want, 1, 64)
        n = 1
        while n <= e._lib.sf_fault_reads():
            replay(e, ids[:8], want, n, 64, n, (name, kind))
            failures += 1
            n += 1 if ALL else 7
    assert failures > 150
    count["failed reads, random model"] += failures


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Image, np.ndarray]:
    """The trained model of the repository, and the ids of a sentence."""
    recipe, path = load_recipe("story"), tmp_path_factory.mktemp("story") / "model.sfm"
    model, f = open_model(recipe), recipe.formats
    assert model.tokenizer is not None
    pack(model, path, Formats(f["attn"], f["ffn"], f["embed"]))
    ids = model.tokenizer.encode("Once upon a time, there was a little girl named Lily.")
    return Image(path), np.array(ids[:6])


@pytest.mark.parametrize("buffers", [2, 5])
def test_reads_of_a_trained_model_may_fail(
    story: tuple[Image, np.ndarray],
    host: Board,
    tmp_path: Path,
    buffers: int,
    count: Counter[str],
) -> None:
    """Late and reordered reads, and a sample of those that fail, of the story model."""
    image, ids = story
    dense = dense_thresholds(image)
    h, gate = dense.copy(), dense.copy()
    h[:, THRESHOLDS.index("h")] = 0.02
    gate[::2, THRESHOLDS.index("act")] = 0.05
    board = stream_board(host, ring_buffers=buffers, ring_bytes=16384, pick_bytes=8192)
    plan = make_plan(image, board, dense, kv_len=32, ram=400_000)
    generate(plan, tmp_path / "gen")
    lib = build_library(tmp_path / "gen", tmp_path / "lib.so", "cc", ["-O2"], flash=FAULTS)
    e = Engine(lib, image)
    done = 0
    for name, t in {"own": dense, "h": h, "gate": gate}.items():
        e.set_thresholds(t)
        want = Reference(image).run(ids, t, keep_sites=False).logits
        for seed, depth in ((1, 64), (7, 8), (11, buffers + 4)):
            replay(e, ids, want, seed, depth, what=name)
        replay(e, ids, want, 1, 64)
        reads, rng = e._lib.sf_fault_reads(), np.random.default_rng(buffers)
        assert reads > 1000
        for kind in range(3):
            e._lib.sf_fault_kind(ctypes.c_uint32(kind))
            for n in rng.integers(1, reads, 1500 if ALL else 12):
                replay(e, ids, want, int(n), 64, int(n), (name, kind))
                done += 1
    assert done >= (13_500 if ALL else 108)
    count["failed reads, story model"] += done


def test_rows_longer_than_a_buffer(image: Image, host: Board, tmp_path: Path) -> None:
    """Refused by the plan; and by the compiler, should a plan say otherwise."""
    row = 36  # 64 weights of q4 in groups of 32, and more for columns of down
    for changes in ({"ring_bytes": 1024 + row - 1}, {"pick_bytes": 1024 + row - 1}):
        with pytest.raises(TooSmallError, match=next(iter(changes))):
            board = stream_board(host, **changes)
            make_plan(image, board, dense_thresholds(image), kv_len=32, ram=34_000)
    plan = make_plan(image, stream_board(host), dense_thresholds(image), kv_len=32, ram=34_000)
    plan["flash"]["ring_bytes"] = 1024 + plan["flash"]["ring_row"] - 1
    generate(plan, tmp_path / "gen")
    with pytest.raises(SparseflashError, match="a buffer holds a row"):
        build_library(tmp_path / "gen", tmp_path / "lib.so", "cc", ["-O0"], flash=FAULTS)


def test_too_small(image: Image, host: Board) -> None:
    with pytest.raises(TooSmallError, match="--ram"):
        make_plan(image, stream_board(host), dense_thresholds(image), kv_len=32, ram=12_000)
