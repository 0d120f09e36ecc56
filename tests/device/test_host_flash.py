"""The board ``host-flash``: real reads past the page cache, within a RAM budget."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import half_ram, random_model, random_predictor
from sparseflash.codegen.build import build_firmware
from sparseflash.codegen.generate import generate
from sparseflash.device.host_board import start_host_device
from sparseflash.device.link.client import Device
from sparseflash.device.validate import validate
from sparseflash.image.formats import Formats
from sparseflash.image.needs import Needs
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import dense_thresholds
from sparseflash.plan.boards import load_board
from sparseflash.plan.kept import plan_digest
from sparseflash.plan.plan import make_plan


def mapping_flags(pid: int, path: Path) -> list[str]:
    """Linux's VmFlags of a mapped file; rr: no reading ahead."""
    maps = Path(f"/proc/{pid}/smaps").read_text()
    found = re.search(rf"{re.escape(str(path))}\n.*?^VmFlags:(.*)$", maps, re.M | re.S)
    assert found
    return found[1].split()


@pytest.mark.parametrize("reader", ["flash_uring.c", "flash_pread.c"])
@pytest.mark.parametrize("method", ["dense", "h", "lowrank-64-ahead"])
def test_bits_and_budget(reader: str, method: str, tmp_path: Path) -> None:
    """Half of the weights fit: what is read is what is not pinned, and no bit changes."""
    model = random_model(n_layers=4, dim=256, ffn_dim=1024)
    predictor = random_predictor(model.spec, 64, True) if method[:3] == "low" else None
    pack(model, tmp_path / "m.sfm", Formats(), Needs(predictor=predictor))
    image = Image(tmp_path / "m.sfm")
    board = load_board("host-flash")
    sources = [reader if s == "flash_uring.c" else s for s in board.sources]
    stream = board.raw["stream"] | {"ring_bytes": 65536, "ring_buffers": 4, "pick_buffers": 8}
    board = replace(board, sources=sources, raw=board.raw | {"stream": stream})
    t = dense_thresholds(image)
    if method == "h":
        t[:, 3] = 0.1
    if predictor:
        t[:, 5] = 0.2
    ram = half_ram(lambda ram: make_plan(image, board, t, kv_len=64, ram=ram)["memory"])
    plan = make_plan(image, board, t, kv_len=64, method=method, sparsity=30, ram=ram)
    assert plan["memory"]["total"] <= ram
    generate(plan, tmp_path / "gen", board)
    program = build_firmware(board, tmp_path / "gen", tmp_path / "firmware")
    ids = np.random.default_rng(4).integers(0, image.spec.vocab, 16)
    with (
        start_host_device(program, image.path, "tcp") as process,
        Device.open(process.url, image.sha256, plan_digest(plan), timeout=20) as device,
    ):
        found = validate(device, image, ids, t)
        assert found is None, str(found)
        device.counters(clear=True)
        device.step(1)
        c = device.counters()
        assert "rr" in mapping_flags(process.process.pid, image.path), "pages are read ahead"
    streamed = plan["placement"]["total"]["streamed"]
    assert c["bytes_read"] > 0
    if predictor:
        return  # the rows it picks come in whole blocks
    assert c["bytes_read"] < c["bytes"]
    # Alignment and what runs ahead come on top; a mask takes away.
    assert c["bytes_read"] < streamed + 2 * 4096 * c["reads"] + 4 * 65536


def test_timeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace is what Chrome loads: spans of computing, waiting and reading, none negative."""
    model = random_model(n_layers=3, dim=256, ffn_dim=1024)
    pack(model, tmp_path / "m.sfm", Formats())
    image, board = Image(tmp_path / "m.sfm"), load_board("host-flash")
    stream = board.raw["stream"] | {"ring_bytes": 65536, "ring_buffers": 4}
    board = replace(board, raw=board.raw | {"stream": stream})
    t = dense_thresholds(image)
    full = make_plan(image, board, t, kv_len=64)["memory"]
    plan = make_plan(image, board, t, kv_len=64, ram=full["total"] - full["pinned weights"] // 2)
    generate(plan, tmp_path / "gen", board)
    program = build_firmware(board, tmp_path / "gen", tmp_path / "firmware")
    monkeypatch.setenv("SPARSEFLASH_TIMELINE", str(tmp_path / "trace.json"))
    with start_host_device(program, image.path, "tcp") as process:
        with Device.open(process.url, image.sha256, plan_digest(plan), timeout=20) as device:
            for token in range(4):
                device.step(token)
            device.quit()
        process.process.wait(10)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["tid"] for e in spans} == {0, 1, 2}
    assert all(e["dur"] >= 0 for e in spans)
    assert sum(e["name"] == "FFN" for e in spans) == 4 * 3
