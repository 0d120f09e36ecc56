"""Kept state in the generated C: what goes on from it has the bits of what ran."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from conftest import random_model
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan

ARGUMENT, TOKEN, CONTEXT = -5, -4, -3


def test_goes_on_as_if_it_had_run(host: Board, tmp_path: Path) -> None:
    pack(random_model(n_layers=3, tied_head=False), tmp_path / "m.sfm", Formats())
    image = Image(tmp_path / "m.sfm")
    generate(make_plan(image, host, dense_thresholds(image), 32, draft=7), tmp_path / "gen")
    e = Engine(build_library(tmp_path / "gen", tmp_path / "lib.so", flags=["-O1"]), image)
    u, lib = ctypes.c_uint32, e._lib
    s = image.spec
    size = 2 * s.n_layers * (s.kv_dim + s.n_kv_heads)
    ids = [int(t) for t in np.random.default_rng(2).integers(0, s.vocab, 20)]
    ids[12:15] = ids[2:5]  # from which a draft follows
    e.prefill(ids[:15])
    kept = []
    for p in range(14):
        buffer = ctypes.create_string_buffer(size)
        assert lib.sf_state_read(u(p), u(0), u(size), buffer) == 0
        kept.append(buffer.raw)
    assert lib.sf_state_read(u(15), u(0), u(size), buffer) == ARGUMENT
    assert lib.sf_state_read(u(0), u(size), u(1), buffer) == ARGUMENT

    def go_on() -> tuple[list[int], dict[str, int], bytes]:
        e.counters(clear=True)
        tokens = e.greedy(ids[14], 8)
        logits = e.step(7)
        assert logits is not None
        return tokens, {k: e.counters()[k] for k in ("drafted", "taken")}, logits.tobytes()

    e.rewind(14)
    want = go_on()
    assert want[1]["drafted"] == 7
    e.reset()
    e.prefill(ids[5:12])  # another text in the cache
    e.reset()
    for token, state in zip(ids, kept):
        for at in range(0, size, 37):  # pieces across k, v and exponents
            some = state[at : at + 37]
            assert lib.sf_state_write(u(at), u(len(some)), some) == 0
        assert lib.sf_state_keep(u(token)) == 0
    assert go_on() == want

    e.rewind(3)
    for at, byte in ((0, 128), (size - 1, 61), (size - 1, 256 - 41), (s.kv_dim, 128)):
        bad = bytearray(kept[3])
        bad[at] = byte
        assert lib.sf_state_write(u(0), u(size), bytes(bad)) == 0
        assert lib.sf_state_keep(u(ids[3])) == ARGUMENT
        assert lib.sf_position() == 3
    assert lib.sf_state_write(u(size), u(1), b"a") == ARGUMENT
    assert lib.sf_state_keep(u(s.vocab)) == TOKEN
    e.reset()
    e.prefill([1] * 32)
    assert lib.sf_state_write(u(0), u(1), b"a") == lib.sf_state_keep(u(1)) == CONTEXT
