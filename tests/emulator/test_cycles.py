"""The model of ast1030-evb's cycles: costs against the manual, and a model under it."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_boards import need, story

from emulators.ast1030 import cycles
from emulators.ast1030.dma_model import FlashTiming, simulate
from sparseflash.base.errors import ToolError
from sparseflash.base.programs import missing
from sparseflash.codegen.build import build_firmware, build_library
from sparseflash.codegen.generate import generate
from sparseflash.device.runners import Files, flash_files
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.recipes import load_recipe
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.kept import plan_digest
from sparseflash.plan.plan import make_plan

HERE = Path(__file__).parent
FLAGS = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-nostdlib"]

SNIPPETS = [
    # 8 cycles of the loop and 2 of the branch back, but for the last round.
    ("movs r0, #100; 1: ldr r1, [r4]; ldr r3, [r5]; mul r1, r1, r3; adds r2, r2, r1;"
     " str r2, [r4, #4]; subs r0, #1; bne 1b", 1 + 100 * 8 + 99 * 2),
    ("ldr r0, [r4]", 2),
    ("ldr r0, [r4]; ldr r1, [r5]; ldr r3, [r6]", 4),
    ("ldr r0, [r4]; str r0, [r5, #20]", 3),
    ("ldr r0, [r4, r2]; str r1, [r5, r2]", 3),
    ("str r1, [r5, r2]; ldr r0, [r4]", 4),
    ("ldr r0, [sp]; mov r0, r0; nop", 4),
    ("mov r0, r4; ldr r0, [r0]", 1 + 3),  # the address is a result of the cycle before
    ("add.w r0, r4, r2; ldrb.w r0, [r0, #300]", 1 + 3),
    ("str r4, [r5]; ldr r0, [r5]; ldr r1, [r0]", 1 + 2 + 2),  # and one of the load before
    ("ldrd r0, r1, [r4]; strd r0, r1, [r4]", 3 + 3),
    ("ldm r4, {r0, r1, r3}; stm r5!, {r0, r1, r3}", 4 + 4),
    ("push {r0, r1, r3, lr}; pop {r0, r1, r3}; pop {r3}", 5 + 4 + 2),
    ("mla r0, r1, r3, r0; smlad r0, r1, r3, r0; smlal r0, r1, r3, r0; sxtb16 r0, r1", 4),
    ("udiv r0, r1, r4", 12),
    ("b 1f; nop; 1: nop", 1 + 2 + 1),
    ("cmp r4, r4; bne 1f; nop; 1: nop", 4),
    ("bl 1f; b 2f; 1: bx lr; nop; 2: nop", 3 + 3 + 3 + 1),
    ("cmp r4, r4; it ne; addne r0, r0, #1", 3),
    ("vldr s0, [r4]; vldr d1, [r4]; vstr s0, [r4]", 2 + 3 + 2),
    ("vmul.f32 s0, s0, s0; vadd.f32 s0, s0, s0; vfma.f32 s0, s0, s0; vmla.f32 s0, s0, s0", 8),
    ("vdiv.f32 s0, s0, s0; vsqrt.f32 s0, s0; vneg.f32 s0, s0", 14 + 14 + 1),
    ("vldmia r4, {s0-s3}; vmov r0, s0; vmov r0, r1, s0, s1; vmrs r0, fpscr", 5 + 1 + 2 + 1),
    # At the end of a page, where QEMU looks ahead whether the next instruction crosses.
    ("b 1f; .balign 4096; .space 4092; 1: ldm r5!, {r0, r1, r3}; nop", 3 + 4 + 1),
    ("b 1f; .balign 4096; .space 4090; 1: udiv r0, r1, r4; nop", 3 + 12 + 1),
    ("b 1f; .balign 4096; .space 4092; 1: ldr.w r0, [r4]; ldr r1, [r5]; ldr r3, [r6]", 3 + 4),
    ("b 1f; .balign 4096; .space 4092; 1: add.w r0, r4, r2; ldr r0, [r0]", 3 + 1 + 3),
    ("movs r0, #9; b 1f; .balign 4096; .space 4092; 1: push {r1, r3}; pop.w {r1, r3}; subs r0, #1;"
     " bne 1b", 1 + 3 + 9 * 8 + 8 * 2),
]  # fmt: skip
"""Instructions, and their cycles by the Technical Reference Manual with a refill of 2."""


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    board = load_board("ast1030-evb")
    need(board)
    for absent in filter(None, [missing("cc")]):
        pytest.skip(absent)
    built = cycles.build_plugin(tmp_path_factory.mktemp("plugin"))
    refused = cycles.why_no_plugin(built, board.settings()["command"])
    if refused:
        pytest.skip(refused)
    return built


def test_costs(plugin: Path, tmp_path: Path) -> None:
    code = "; ".join(f"mark{i}: nop; {text}; nop" for i, (text, _) in enumerate(SNIPPETS))
    source = (HERE / "m4_loop.S").read_text().replace("    SNIPPETS\n", f"    {code}\n")
    (tmp_path / "loop.S").write_text(source)
    elf = tmp_path / "loop"
    places = ["-Wl,-Ttext=0x100,--section-start=.vectors=0,-e,start"]
    command = ["arm-none-eabi-gcc", *FLAGS, *places, tmp_path / "loop.S", "-o", elf]
    subprocess.run(command, check=True)
    listed = subprocess.run(
        ["arm-none-eabi-nm", elf], capture_output=True, text=True, check=True
    ).stdout
    at = {line.split()[2]: line.split()[0] for line in listed.splitlines()}
    names = [*(f"mark{i}" for i in range(len(SNIPPETS))), "marked_end"]
    marks = ",".join(f"at=0x{at[name]}:{chr(65 + i)}" for i, name in enumerate(names))
    subprocess.run(
        ["qemu-system-arm", "-machine", "mps2-an386", "-display", "none", "-monitor", "none",
         "-serial", "none", "-semihosting", "-kernel", elf,
         "-plugin", f"{plugin},out={tmp_path / 'out'},{marks}"],
        check=True, timeout=30,
    )  # fmt: skip
    events = [e for e in cycles.read_events(tmp_path / "out") if e[0] != "."]
    assert [e[0] for e in events] == [chr(65 + i) for i in range(len(names))]
    found = [b[1] - a[1] - 2 for a, b in pairwise(events)]
    assert list(zip([s for s, _ in SNIPPETS], found)) == SNIPPETS


def test_refuses_bad_arguments(plugin: Path) -> None:
    command = load_board("ast1030-evb").settings()["command"]
    assert "bad argument" in str(cycles.why_no_plugin(Path(f"{plugin},of=1"), command))


def test_streams_ahead(plugin: Path, host: Board, tmp_path: Path) -> None:
    """The story model: the tokens of the host, its speed, and reads hidden behind computing."""
    board = cycles.marked(load_board("ast1030-evb"))
    f = load_recipe("story").formats
    formats = Formats(f["attn"], f["ffn"], f["embed"])
    pack(story(), tmp_path / "model.sfm", formats)
    image = Image(tmp_path / "model.sfm")
    plan = make_plan(image, board, dense_thresholds(image), kv_len=256)
    generate(plan, tmp_path / "gen", board)
    elf = build_firmware(board, tmp_path / "gen", tmp_path / "firmware")
    (tmp_path / "plan.json").write_text("{}")
    flash_files(board, Files(elf, Path(image.path), tmp_path / "plan.json"), tmp_path / "flashed")
    events, counters, said = cycles.run_tokens(
        board, tmp_path / "flashed", plugin, image.sha256, plan_digest(plan), [1], 4
    )
    generate(make_plan(image, host, dense_thresholds(image)), tmp_path / "host")
    engine = Engine(build_library(tmp_path / "host", tmp_path / "lib.so", flags=["-O1"]), image)
    token = 1
    for got in said:
        logits = engine.step(token)
        assert logits is not None
        token = int(np.argmax(logits))
        assert got == token
    for rate in (0.125, 0.25, 0.5):
        timing = FlashTiming.of(board, rate)
        ahead = simulate(events, timing).steady()
        waited = simulate(events, timing, ahead=False).steady()
        assert ahead.compute == pytest.approx(waited.compute, rel=1e-6)
        assert waited.total == pytest.approx(waited.compute + waited.busy, rel=1e-6)
        assert ahead.total <= 1.1 * max(ahead.compute, ahead.busy)
        assert waited.total >= 1.2 * ahead.total
        if timing == FlashTiming.of(board):
            assert 3 * (board.clock_hz or 0) / ahead.total >= 10.0  # tokens a second
    counters["bytes_read"] += 4
    with pytest.raises(ToolError, match="the device counted"):
        cycles.check(events, counters)
