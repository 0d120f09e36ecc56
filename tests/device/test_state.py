"""The runtime's answers about itself: information, trace, tap, thresholds, counters, texts."""

from __future__ import annotations

import ctypes
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from conftest import random_model
from sparseflash.base.files import root
from sparseflash.codegen.build import build_library, includes
from sparseflash.codegen.generate import generate
from sparseflash.image.needs import Needs
from sparseflash.image.pack import pack
from sparseflash.image.reference import SITES, THRESHOLDS, Reference
from sparseflash.image.sfm import Image, Section
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan

U32 = ctypes.c_uint32


@pytest.fixture(scope="module", params=[False, True], ids=["rows", "columns of o"])
def columns(request: pytest.FixtureRequest) -> bool:
    """Whether layer 1 has o_proj by columns."""
    return bool(request.param)


@pytest.fixture(scope="module")
def engine(columns: bool, host: Board, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("state")
    needs = Needs(("", "o")) if columns else Needs()
    pack(random_model(eos_ids=(2, 150)), folder / "m.sfm", needs=needs)
    image = Image(folder / "m.sfm")
    generate(make_plan(image, host, dense_thresholds(image), kv_len=32), folder / "gen")
    return Engine(build_library(folder / "gen", folder / "lib.so", flags=["-O1"]), image)


def test_information(engine: Engine) -> None:
    info, spec = engine.info, engine.image.spec
    assert (info.board, info.model) == (b"host", b"random")
    assert bytes(info.model_sha[:32]) == engine.image.sha256
    assert any(info.plan_digest[:32])
    for name in ("vocab", "dim", "ffn_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim"):
        assert getattr(info, name) == getattr(spec, name), name
    assert info.kv_len == 32 and info.block > 1 and info.arena_bytes > 10_000
    assert info.ticks_per_second == 10**9


def test_tap_and_trace(engine: Engine) -> None:
    """Every site of every layer is what the reference says; off is off."""
    ids = np.array([3, 50, 7, 9])
    want = Reference(engine.image).run(ids, dense_thresholds(engine.image))
    hashes = want.hashes()
    lib = engine._lib
    engine.set_thresholds(dense_thresholds(engine.image))
    for layer in range(2):
        for site, name in enumerate(SITES):
            engine.reset()
            engine.trace(False)
            assert lib.sf_tap_set(U32(layer), U32(site)) == 0
            assert engine.tapped().size == 0
            before = engine.hashes()
            engine.step(3)
            assert np.array_equal(engine.hashes(), before)
            assert np.array_equal(engine.tapped(), want.sites[layer][name][0])
            engine.trace(True)
            engine.step(50)
            assert np.array_equal(engine.hashes(), hashes[1])
            assert np.array_equal(engine.tapped(), want.sites[layer][name][1])
    for layer, site in ((2, 0), (2**31, 0), (0, len(SITES)), (0, 2**31)):
        assert lib.sf_tap_set(U32(layer), U32(site)) == -5
        assert lib.sf_trace_hash(U32(layer), U32(site)) == 0
    assert engine.tapped().size  # the refused changed nothing


def test_thresholds(engine: Engine, columns: bool) -> None:
    """Those of sites that the image has columns for; others are refused, and change nothing."""
    lib = engine._lib
    lib.sf_get_thresholds.restype = ctypes.POINTER(ctypes.c_float)
    stored = {"gate", "act", "up", "h", "down"}

    def put(layer: int, values: np.ndarray) -> int:
        values = np.ascontiguousarray(values, np.float32)
        return int(lib.sf_set_thresholds(U32(layer), values.ctypes.data_as(ctypes.c_void_p)))

    for layer in range(2):
        for i, name in enumerate(THRESHOLDS):
            t = np.zeros(len(THRESHOLDS))
            t[i] = 0.5 + i
            may = name in stored or (name == "o" and layer == 1 and columns)
            assert put(layer, np.zeros(len(THRESHOLDS))) == 0
            assert put(layer, t) == (0 if may else -5), (layer, name)
            assert list(lib.sf_get_thresholds(layer)[: len(t)]) == list(t if may else 0 * t)
            for bad in (-1e-9, -1.0, float("nan")):
                t[i] = bad
                assert put(layer, t) == -5
    assert put(2, np.zeros(12)) == put(2**32 - 1, np.zeros(12)) == -5
    t = np.zeros(12)
    t[3] = 0.25
    assert put(0, t) == 0 == put(1, 2 * t)
    assert [lib.sf_get_thresholds(U32(i))[3] for i in (0, 1, 2, 2**31)] == [0.25, 0.5, 0.25, 0.25]


def test_counters(engine: Engine) -> None:
    """Of a prompt and steps: what is counted adds up, and goes when cleared."""
    engine.set_thresholds(dense_thresholds(engine.image))
    engine.reset()
    engine.counters(clear=True)
    assert not any(engine.counters().values())
    seen = engine.counters()
    for n in range(1, 4):
        engine.step(n)
        c = engine.counters()
        assert c["tokens"] == n and c["neurons"] == n * 2 * 172
        assert c["bytes"] > c["bytes_ffn"] > seen["bytes_ffn"]
        for name in ("time_attn", "time_ffn", "time_head", "time_total", "bytes"):
            assert c[name] > seen[name], name
        assert c["time_total"] >= c["time_attn"] + c["time_ffn"] + c["time_head"]
        assert c["bytes_read"] and not c["bytes_early"] and not c["bytes_missed"]
        seen = c
    engine.prefill([1, 2, 3, 4, 5])
    assert engine.counters(clear=True)["tokens"] == 8
    assert not any(engine.counters().values())


def test_texts_and_ends(engine: Engine) -> None:
    lib, n = engine._lib, U32(7)
    lib.sf_is_eos.restype = ctypes.c_bool
    assert [t for t in range(200) if lib.sf_is_eos(U32(t))] == [2, 150]
    lib.sf_token_text.restype = ctypes.POINTER(ctypes.c_uint8)
    for token in (160, 161, 2**31, 2**32 - 1):
        n.value = 7
        assert lib.sf_token_text(U32(token), ctypes.byref(n)) and n.value == 0


def test_texts_of_a_damaged_table_stay_inside(engine: Engine) -> None:
    offset, _ = engine.image.sections[Section.TOKENS]
    data = np.array(engine._data)
    table = data[offset + 4 : offset + 4 + 4 * 161].view("<u4")
    most, n = data.size - offset - 4 - 4 * 161, U32()
    bytes_ = U32(data.size)
    engine._lib.sf_library_image(data.ctypes.data_as(ctypes.c_void_p), bytes_)
    try:
        for begin, end, found in (
            *((0, most, most), (most, most, 0), (0, most + 1, 0), (0, 2**32 - 1, 0)),
            *((1, 0, 0), (most + 1, most + 1, 0)),
        ):
            table[5:7] = begin, end
            engine._lib.sf_token_text(U32(5), ctypes.byref(n))
            assert n.value == found, (begin, end)
    finally:
        engine._lib.sf_library_image(engine._data.ctypes.data_as(ctypes.c_void_p), bytes_)


def test_another_image_does_not_start(engine: Engine) -> None:
    lib, data = engine._lib, engine._data.copy()
    pointer = data.ctypes.data_as(ctypes.c_void_p)
    try:
        for size, code in ((data.size, 0), (data.size - 1, -2), (0, -2)):
            lib.sf_library_image(pointer, U32(size))
            assert lib.sf_init() == code
        for at in (0, 3, 32, 63):  # the mark and the SHA
            data[at] ^= 1
            lib.sf_library_image(pointer, U32(data.size))
            assert lib.sf_init() == -2, at
            data[at] ^= 1
        lib.sf_library_image(None, U32(data.size))
        assert lib.sf_init() == -2
    finally:
        good = engine._data.ctypes.data_as(ctypes.c_void_p)
        lib.sf_library_image(good, U32(data.size))
        assert lib.sf_init() == 0


@pytest.mark.parametrize("table", [[], ["-U__x86_64__", "-U__aarch64__"]], ids=["8 KB", "64 bytes"])
def test_sums(tmp_path: Path, table: list[str]) -> None:
    """CRC-32 with the table of computers, and with that of small boards."""
    source = root() / "firmware" / "runtime" / "crc32.c"
    command = ["cc", *table, "-shared", "-fPIC", *includes("plain"), str(source)]
    subprocess.run([*command, "-o", str(tmp_path / "crc.so")], check=True)
    lib = ctypes.CDLL(str(tmp_path / "crc.so"))
    lib.sf_crc32.restype = U32
    rng = np.random.default_rng(3)
    for n in (*range(20), 1000, 4096):
        data = rng.bytes(n)
        assert lib.sf_crc32(U32(0), data, ctypes.c_size_t(n)) == zlib.crc32(data)
        first = lib.sf_crc32(U32(0), data, ctypes.c_size_t(n // 2))
        assert lib.sf_crc32(U32(first), data[n // 2 :], ctypes.c_size_t(n - n // 2)) == zlib.crc32(
            data
        )
