"""Tiny models of the families on emulated boards: bit-equal to the reference over the link."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_boards import need
from test_load import CONFIGS, peer, some_ids

from sparseflash.codegen.build import build_firmware
from sparseflash.codegen.generate import generate
from sparseflash.device.emulator import EmulatorProcess
from sparseflash.device.link.client import Device
from sparseflash.device.runners import Files, flash_files, reply_seconds, start_board
from sparseflash.device.validate import validate
from sparseflash.image.formats import Formats
from sparseflash.image.needs import Needs
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import dense_thresholds
from sparseflash.model.load import load_model
from sparseflash.plan.boards import load_board
from sparseflash.plan.kept import plan_digest
from sparseflash.plan.plan import make_plan
from sparseflash.sparsity.bytes import bytes_a_token
from sparseflash.sparsity.reads import Reads

RUNS = {
    "llama": "mps2-an386",
    "llama3 rope": "mps2-an386",
    "mistral": "pico",
    "qwen2": "ast1030-evb",
    "yarn": "mps2-an500",
    "qwen3": "riscv-virt",
    "gemma3_text": "mps2-an505",
    "smollm3": "mps3-an547",
    "granite": "mps2-an386",
    "phi3": "mps2-an500",
    "phi4 mini": "mps2-an386",
    "llama biases": "mps2-an386",
    "olmo2": "mps2-an500",
    "stablelm": "mps2-an505",
    "phi": "mps2-an386",
    "gpt_neox": "mps3-an547",
    "gpt2": "pico",
    "opt": "ast1030-evb",
    "qwen3_moe": "ast1030-evb",
    "olmoe": "riscv-virt",
    "granitemoe": "mps3-an547",
}
"""An emulated board for each row of the table of docs/MODELS.md."""


@pytest.mark.parametrize("name", RUNS)
def test_family(name: str, tmp_path: Path) -> None:
    board = load_board(RUNS[name])
    need(board)
    streams = "stream" in board.raw
    peer(CONFIGS[name]()).save_pretrained(tmp_path / "m")
    formats = Formats("q8", "q4", "q8")
    pack(load_model(tmp_path / "m"), tmp_path / "model.sfm", formats)
    image, ids = Image(tmp_path / "model.sfm"), some_ids(160, 12, 1)[0].numpy()
    thresholds = dense_thresholds(image)
    plan = make_plan(image, board, thresholds, 16)
    if streams:  # half of the weights do not fit
        memory = plan["memory"]
        ram = memory["total"] - memory["pinned weights"] // 2 + sum(board.reserve.values())
        plan = make_plan(image, board, thresholds, 16, ram=ram)
        assert plan["placement"]["total"]["streamed"] > 0
    generate(plan, tmp_path / "gen", board)
    firmware = build_firmware(board, tmp_path / "gen", tmp_path / "firmware")
    (tmp_path / "plan.json").write_text("{}")
    place = tmp_path / "flashed"
    flash_files(board, Files(firmware, image.path, tmp_path / "plan.json"), place)
    process = start_board(board, place)
    assert process is not None
    with process:
        digest, timeout = plan_digest(plan), reply_seconds(board)
        if isinstance(process, EmulatorProcess):
            device = Device.connect(process.port, process.url, image.sha256, digest, timeout)
        else:
            device = Device.open(process.url, image.sha256, digest, timeout=timeout)
        with device:
            assert validate(device, image, ids, thresholds) is None
            counted = device.counters()
    spec = image.spec
    dense = Reads.dense_of(spec)
    assert counted["neurons"] == len(ids) * spec.n_layers * int(dense.columns[0])
    expected = bytes_a_token(spec, formats, Needs(), dense).total
    assert counted["bytes"] == len(ids) * expected
