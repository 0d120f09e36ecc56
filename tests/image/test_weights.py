"""The table of weights: what it says, and that damage to it is named."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import random_factors, random_model, random_predictor, random_thresholds
from sparseflash.base.errors import InputError
from sparseflash.base.limits import pack_limits, round_limits, unpack_limits
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.formats import Formats
from sparseflash.image.needs import Needs
from sparseflash.image.pack import pack
from sparseflash.image.proxy import Proxies
from sparseflash.image.reference import Reference
from sparseflash.image.sfm import HEADER, Image, Section
from sparseflash.image.weights import ENTRY, ROLES, Weight, name_of
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.spec import Activation
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan

KINDS: dict[str, dict[str, Any]] = {
    "q4": {},
    "r8": {"attn": "r8", "ffn": "r8", "embed": "r8"},
    "s4": {"attn": "s4", "ffn": "s4", "embed": "q8"},
    "columns": {},
    "rows of down": {"ffn": "q8"},
    "proxies": {},
    "screened": {"screened": True},
}
NEEDS = {
    "columns": Needs(("qkv o", "gate up")),
    "rows of down": Needs(down="rows"),
    "proxies": Needs(predictor=Proxies(3)),
}


def packed(kind: str, folder: Path) -> Image:
    model = random_model()
    pack(model, folder / "model.sfm", Formats(**KINDS[kind]), NEEDS.get(kind))
    return Image(folder / "model.sfm")


@pytest.mark.parametrize("kind", KINDS)
def test_items_lie_apart_and_have_their_crc(kind: str, tmp_path: Path) -> None:
    image = packed(kind, tmp_path)
    seen = np.zeros(image.size, bool)
    start, size = image.sections[Section.DATA]
    for w in image.weights.values():
        assert zlib.crc32(image.items(w).tobytes()) == w.crc, w.name
        at = (w.at + w.stride * np.arange(w.count)[:, None] + np.arange(w.size)).ravel()
        assert start <= at[0] and at[-1] < start + size and not seen[at].any(), w.name
        seen[at] = True
    assert seen[start : start + size].sum() > 0.98 * size  # the rest fills up


def test_factors_and_predictor_are_rows_of_it(tmp_path: Path) -> None:
    model = random_model()
    factors = random_factors(model.spec, "q4", "q4")
    needs = Needs(predictor=random_predictor(model.spec, 32), factors=factors)
    pack(model, tmp_path / "m.sfm", Formats(), needs)
    names = {w.name for w in Image(tmp_path / "m.sfm").weights.values()}
    assert {"embed", "blk.0.attn_q", "blk.0.attn_q.b", "blk.1.predictor.b"} <= names
    assert "blk.0.attn_k.b" not in names and "blk.0.ffn_down.scales" in names


def rewritten(image: Image, change: dict[int, bytes], folder: Path) -> Path:
    """The image with bytes of the table of weights replaced, its checks made right again."""
    data = bytearray(image.path.read_bytes())
    start, size = image.sections[Section.WEIGHTS]
    for at, value in change.items():
        data[start + at : start + at + len(value)] = value
    crc = zlib.crc32(data[start : start + size])
    for i in range(len(image.sections)):
        at = 128 + 32 * i
        if struct.unpack_from("<I", data, at)[0] == Section.WEIGHTS:
            data[at + 24 : at + 28] = struct.pack("<I", crc)
    data[32:64] = hashlib.sha256(data[HEADER.size :]).digest()
    path = folder / "changed.sfm"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"blk.0.attn_z", "named"),
        (26, (999).to_bytes(2, "little"), "role 999"),
        (28, b"\xff", "grid 255"),
        (28, b"\x13", "grid 19"),  # proxies of an older order
        (29, b"\x02", "orientation 2"),
        (31, b"\x01", "flags 1"),
        (32, (1 << 40).to_bytes(8, "little"), "outside"),
        (32, (4).to_bytes(8, "little"), "outside"),
        (40, (1).to_bytes(4, "little"), "outside"),
        (48, (0).to_bytes(4, "little"), "outside"),
        (48, (1 << 31).to_bytes(4, "little"), "outside"),
    ],
)
def test_a_damaged_field_is_named(at: int, value: bytes, message: str, tmp_path: Path) -> None:
    image = packed("q4", tmp_path)
    row = next(i for i, w in enumerate(image.weights.values()) if w.role == "gate")
    with pytest.raises(InputError, match=message):
        Image(rewritten(image, {row * ENTRY.size + at: value}, tmp_path))


def test_every_byte_of_the_file_is_checked(tmp_path: Path) -> None:
    image = packed("q4", tmp_path)
    data = image.path.read_bytes()
    for at in np.random.default_rng(1).integers(0, len(data), 60):
        changed = bytearray(data)
        changed[at] ^= 4
        (tmp_path / "changed.sfm").write_bytes(changed)
        with pytest.raises(InputError):
            Image(tmp_path / "changed.sfm")


def test_names() -> None:
    assert name_of("down_scales", 3) == "blk.3.ffn_down.scales"
    for role in ROLES:
        w = Weight(role, 7, "q4", False, 64, 8, 8, 1, 1, 1, 0)
        assert len(w.packed()) == ENTRY.size and len(w.name) < 24


SPARSE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "s4": ({}, {"attn": "s4", "ffn": "s4"}),
    "story": (
        {"gate_inputs": 32, "act_threshold": 0.3, "activation": Activation.RELU},
        {"attn": "s4", "ffn": "s4"},
    ),
    "split gate in q4": ({"gate_inputs": 32}, {}),
    "own thresholds": ({"own_thresholds": True}, {"ffn": "s4"}),
    "own thresholds in q4": ({"own_thresholds": True}, {}),
}


@pytest.mark.parametrize("name", SPARSE)
def test_models_sparse_by_training(name: str, host: Board, tmp_path: Path) -> None:
    """Logits, sites and neurons of the C are those of the reference, dense and with a method."""
    changes, formats = SPARSE[name]
    model = random_model(**changes)
    if changes.get("gate_inputs"):
        for layer in model.layers:
            assert isinstance(layer.gate_proj, np.ndarray)
            assert isinstance(layer.up_proj, np.ndarray)
            layer.gate_proj, layer.up_proj = layer.gate_proj[:, :32], layer.up_proj[:, 32:]
    if changes.get("own_thresholds"):
        model = random_thresholds(model)
    needs = Needs()
    if changes.get("own_thresholds"):
        needs = needs.with_gate_by_columns(model.spec.n_layers)
    pack(model, tmp_path / "m.sfm", Formats(**formats), needs)
    image = Image(tmp_path / "m.sfm")
    generate(make_plan(image, host, dense_thresholds(image), kv_len=48), tmp_path / "gen")
    engine = Engine(build_library(tmp_path / "gen", tmp_path / "m.so", "cc", ["-O1"]), image)
    ids = np.random.default_rng(5).integers(0, model.spec.vocab, 32)
    for limit in (0.0, 0.05):
        t = dense_thresholds(image)
        t[:, 3] = limit
        want = Reference(image).run(ids, t)
        engine.set_thresholds(t)
        engine.reset()
        engine.counters(clear=True)
        engine.trace(True)
        for p, token in enumerate(ids):
            logits = engine.step(int(token))
            assert logits is not None
            assert np.array_equal(engine.hashes(), want.hashes()[p]), f"sites at {p}"
            assert np.array_equal(logits.view(np.uint32), want.logits[p].view(np.uint32))
        found = engine.counters()
        assert found["neurons"] == want.neurons
        dense = len(ids) * model.spec.n_layers * model.spec.ffn_dim
        sparse = limit > 0 or name in ("story", "own thresholds", "own thresholds in q4")
        assert (0 < found["neurons"] < dense) if sparse else found["neurons"] == dense


def test_thresholds_take_a_byte_each() -> None:
    """The nearest of 256 values that reach down almost eight octaves from the largest one."""
    rng = np.random.default_rng(2)
    x = np.exp2(rng.uniform(-7.9, 0, 10_000)).astype(np.float32)
    x[0] = 1.0
    base, codes = pack_limits(x)
    got = unpack_limits(base, codes)
    every = unpack_limits(base, np.arange(256, dtype=np.uint8))
    bits = every.view(np.uint32).astype(np.int64)
    away = np.abs(x.view(np.uint32).astype(np.int64)[:, None] - bits)
    assert np.array_equal(away[np.arange(x.size), codes], away.min(1))
    assert np.abs(got / x - 1).max() < 1 / 63 and got[0] == 1.0
    assert every[0] < 2.0**-7.9 and np.array_equal(np.sort(every), every)


def test_thresholds_that_are_too_small_keep_a_little_less() -> None:
    got = round_limits(np.array([0.0, 2.0**-20, 1.0], np.float32))
    assert got[0] == got[1] and 0 < got[0] < 2.0**-7.9 and got[2] == 1.0
    assert np.array_equal(round_limits(np.zeros(4, np.float32)), np.zeros(4, np.float32))
