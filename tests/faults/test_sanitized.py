"""Whole programs under the address and undefined sanitizers: streamed or not, sparse or not, with
the kernels of this CPU or plain C, in 64 and 32 bits. Logits and sites are the reference's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import BITS, flags_of, half_ram, random_model
from sparseflash.codegen.build import build_firmware
from sparseflash.codegen.generate import generate
from sparseflash.device.host_board import start_host_device
from sparseflash.device.link.client import Device
from sparseflash.device.validate import validate
from sparseflash.image.formats import THRESHOLDS, Formats
from sparseflash.image.needs import Needs
from sparseflash.image.pack import pack
from sparseflash.image.proxy import Proxies
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import dense_thresholds
from sparseflash.plan.boards import load_board
from sparseflash.plan.kept import plan_digest
from sparseflash.plan.plan import make_plan

SANITIZERS = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.parametrize(
    ("kernels", "bits"), [("of this CPU", 64), *(("plain", bits) for bits in BITS)]
)
@pytest.mark.parametrize("name", ["host", "host-flash"])
def test_sanitized(name: str, kernels: str, bits: int, tmp_path: Path) -> None:
    board = load_board(name)
    flags = [*board.toolchain["cflags"], *SANITIZERS, *flags_of(bits)]
    chain = board.toolchain | {"cflags": flags}
    tiers = {"tier": "plain", "tiers": {}} if kernels == "plain" else {}
    board = replace(board, toolchain=chain, **tiers)
    formats = Formats()
    model = random_model(n_layers=3, dim=256, ffn_dim=512, n_heads=8, head_dim=32)
    pack(model, tmp_path / "m.sfm", formats, Needs(predictor=Proxies(2)))
    image = Image(tmp_path / "m.sfm")
    dense = dense_thresholds(image)
    sparse, predicted = dense.copy(), dense.copy()
    sparse[:, THRESHOLDS.index("h")] = 0.1
    predicted[:, THRESHOLDS.index("predictor")] = 0.2
    ram = None
    if name == "host-flash":
        stream = board.raw["stream"] | {"ring_bytes": 65536, "ring_buffers": 4}
        board = replace(board, raw=board.raw | {"stream": stream})
        ram = half_ram(lambda ram: make_plan(image, board, dense, kv_len=64, ram=ram)["memory"])
    plan = make_plan(image, board, dense, kv_len=64, ram=ram)
    generate(plan, tmp_path / "gen", board)
    program = build_firmware(board, tmp_path / "gen", tmp_path / "firmware")
    ids = np.random.default_rng(4).integers(0, image.spec.vocab, 12)
    with (
        start_host_device(program, image.path, "tcp") as process,
        Device.open(process.url, image.sha256, plan_digest(plan), timeout=20) as device,
    ):
        for thresholds in (dense, sparse, predicted):
            for layer, limits in enumerate(thresholds):
                device.set_thresholds(layer, limits)
            assert validate(device, image, ids, thresholds) is None
            last = device.logits()
            device.reset()
            device.prefill(list(ids), logits=True)  # in blocks
            assert np.array_equal(device.logits(), last)
        tokens = [t for t, _ in device.generate([1], 8, 0.8, 0.9, 3)]
        assert len(tokens) == 8 or tokens[-1] == 2
        device.quit()
        assert process.process.wait(20) == 0
