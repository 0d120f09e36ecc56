"""The screened head: reference and C give the same bits wherever the weights lie."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import random_model
from sparseflash.base.errors import UnsupportedError, UsageError
from sparseflash.codegen.build import build_firmware, build_library
from sparseflash.codegen.generate import generate
from sparseflash.device.host_board import start_host_device
from sparseflash.device.link.client import Device
from sparseflash.device.validate import validate
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.reference import Reference
from sparseflash.image.screen import check_rows, head_rows, largest
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.spec import Model
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.kept import plan_digest
from sparseflash.plan.plan import make_plan

SCREENED = Formats(screened=True)


def engine_for(model: Model, rows: int, board: Board, folder: Path) -> Engine:
    pack(model, folder / "model.sfm", SCREENED)
    image = Image(folder / "model.sfm")
    plan = make_plan(image, board, dense_thresholds(image), kv_len=32, head_rows=rows)
    generate(plan, folder / "gen")
    return Engine(build_library(folder / "gen", folder / "libmodel.so", flags=["-O1"]), image)


def logits_of(engine: Engine, ids: np.ndarray) -> np.ndarray:
    engine.reset()
    out = [engine.step(int(i)) for i in ids]
    return np.array(out, np.float32)


@pytest.mark.parametrize("rows", [7, 500])
@pytest.mark.parametrize("tied", [True, False])
def test_bits(rows: int, tied: bool, host: Board, tmp_path: Path) -> None:
    engine = engine_for(random_model(tied_head=tied), rows, host, tmp_path)
    ids = np.random.default_rng(2).integers(0, 160, 16)
    reference = Reference(engine.image)
    want = reference.run(ids, head_rows=min(rows, 160)).logits
    exact = reference.run(ids).logits
    got = logits_of(engine, ids)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
    same = (got.view(np.uint32) == exact.view(np.uint32)).sum(-1)
    assert (same == 160).all() if rows >= 160 else (same >= rows).all() and same.max() < 160


def test_largest(host: Board, tmp_path: Path) -> None:
    """The C picks what a stable sort picks, ties, signs and zeros included."""
    engine = engine_for(random_model(), 8, host, tmp_path)
    rng = np.random.default_rng(3)
    lists = [
        rng.standard_normal(5000),
        rng.integers(-3, 4, 5000) * 0.5,
        np.zeros(700),
        np.where(rng.integers(0, 2, 900) > 0, 0.0, -0.0),
        -np.exp(rng.uniform(-80, 80, 3000)),
        np.concatenate([np.full(300, 1e30), np.full(300, -1e30), [3e38, -3e38, 1e-45]]),
        np.full(65536, 7.0),
    ]
    pick = engine._lib.sf_plain_pick_largest
    for values in lists:
        x = values.astype(np.float32)
        for rows in sorted({1, 2, 64, 256, len(x) - 1, len(x)}):
            got = np.zeros(rows + 1, np.uint16)
            got[rows] = 12345
            pick(
                x.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_uint32(len(x)),
                ctypes.c_uint32(rows),
                got.ctypes.data_as(ctypes.c_void_p),
            )
            assert got[rows] == 12345
            assert np.array_equal(got[:rows], largest(x[None], rows)[0])


@pytest.mark.parametrize("pinned", [0.0, 0.5])
def test_streamed(pinned: float, tmp_path: Path) -> None:
    """The proxy comes through the ring, the picked rows through theirs, and fewer bytes do."""
    model = random_model(n_layers=3, dim=256, ffn_dim=512, vocab=4000)
    pack(model, tmp_path / "m.sfm", SCREENED)
    image = Image(tmp_path / "m.sfm")
    board = load_board("host-flash")
    stream = board.raw["stream"] | {"ring_bytes": 65536, "ring_buffers": 4}
    board = replace(board, raw=board.raw | {"stream": stream})
    t = dense_thresholds(image)
    full = make_plan(image, board, t, kv_len=64, head_rows=32)["memory"]
    ram = full["total"] - int(full["pinned weights"] * (1 - pinned))
    plan = make_plan(image, board, t, kv_len=64, ram=ram, head_rows=32)
    generate(plan, tmp_path / "gen", board)
    program = build_firmware(board, tmp_path / "gen", tmp_path / "firmware")
    ids = np.random.default_rng(4).integers(0, image.spec.vocab, 8)
    with (
        start_host_device(program, image.path, "tcp") as process,
        Device.open(process.url, image.sha256, plan_digest(plan), timeout=20) as device,
    ):
        found = validate(device, image, ids, t, None, 32)
        assert found is None, str(found)
        device.counters(clear=True)
        device.step(1)
        c = device.counters()
    exact_head = 4000 * (256 + 16)
    proxy = 4000 * (128 + 32)
    dense = make_plan(image, board, t, kv_len=64)["placement"]["total"]
    weights = dense["pinned"] + dense["streamed"]
    assert c["bytes"] == weights - exact_head + proxy + 33 * (256 + 16)


def test_refusals(tmp_path: Path) -> None:
    assert [head_rows(s) for s in ("exact", "screened", "64")] == [0, 256, 64]
    for wrong in ("", "0", "-1", "65537", "4.5", "top"):
        with pytest.raises(UsageError, match="exact, screened"):
            head_rows(wrong)
    with pytest.raises(UsageError, match="no head proxy"):
        check_rows(64, 1000, "")
    with pytest.raises(UnsupportedError, match="vocabulary of 70,000"):
        check_rows(64, 70000, "q4")
    with pytest.raises(UnsupportedError, match="exact head"):
        pack(random_model(), tmp_path / "m.sfm", Formats("q8", "q8", "q4", screened=True))
