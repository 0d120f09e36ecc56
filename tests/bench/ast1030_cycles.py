"""Cycles a token on ast1030-evb: a model of the Cortex-M4 and of the flash's DMA, under QEMU.

    .venv/bin/python tests/bench/ast1030_cycles.py --model random-8m [--rates 0.125,0.25,0.5]
        [--tokens 4] [--kv-len N] [--ram BYTES] [--method h --sparsity 50] [--ring N]
        [--speculate svd-64] [--alone [--draft N]]
        [--trace trace.json]

The firmware is that of the board with marks in front of the reads (host_tools/emulators/ast1030).
The plugin m4_cycles.c counts the core's cycles; dma_model.py adds the flash at each
rate, in bytes a core cycle. Neither is a measurement of a chip. "ahead" is the firmware as it is;
"waited" starts each of its reads only when it is waited for. The ratio is total to the larger of
compute and flash, the gain is waited to ahead. --ring is the number of ring buffers of 4 KB;
--alone lets the device generate by itself, a prompt of --ids in blocks and then with drafts;
--trace writes the timeline at the last rate for chrome://tracing.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "host_tools"))

from emulators.ast1030 import cycles
from emulators.ast1030.dma_model import FlashTiming, Timeline, simulate
from sparseflash.base.errors import SparseflashError
from sparseflash.base.files import root, write_json
from sparseflash.base.sizes import parse_size
from sparseflash.codegen.build import build_firmware
from sparseflash.codegen.generate import generate
from sparseflash.device.runners import Files, flash_files
from sparseflash.model import recipes
from sparseflash.pipeline import stages as pipeline
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.kept import plan_digest
from sparseflash.plan.placement import use_of
from sparseflash.plan.plan import make_plan

HEADER = ("total", "compute", "flash", "stall", "bytes")


def row(rate: float, how: str, line: Timeline, against: float | None) -> str:
    """Cycles a token after the first, and the ratio to the larger of computing and flash."""
    s, n = line.steady(), max(1, len(line.tokens) - 1)
    best = max(s.compute, s.busy)
    gain = f"{against / s.total:5.3f}" if against else ""
    parts = (s.total, s.compute, s.busy, s.stall, s.bytes)
    numbers = " ".join(f"{p / n:13,.0f}" for p in parts)
    return f"{rate:11g} {how:>6} {numbers} {s.total / best:6.3f} {gain:>6}"


def alone(plan: dict[str, Any], line: Timeline, counters: dict[str, int], prompt: int) -> None:
    """Cycles of the prompt, and a token behind it, at the rate of the board file."""
    blocks = -(-prompt // plan["block"])
    first, rest = line.tokens[:blocks], line.tokens[blocks:]
    n = counters["tokens"] - prompt
    print(
        f"prompt of {prompt} tokens: {sum(t.total for t in first):,.0f} cycles, "
        f"{sum(t.bytes for t in first):,} bytes in {blocks} blocks"
    )
    print(
        f"then a token: {sum(t.total for t in rest) / n:,.0f} cycles, "
        f"{sum(t.bytes for t in rest) / n:,.0f} bytes; {n} tokens in {len(rest)} blocks, "
        f"{counters['taken']} of {counters['drafted']} drafted tokens taken"
    )


def run(a: argparse.Namespace) -> None:
    board: Board = load_board("ast1030-evb")
    if a.ring:
        stream = board.raw["stream"] | {"ring_buffers": a.ring}
        board = replace(board, raw=board.raw | {"stream": stream})
    board = cycles.marked(board)
    recipe = recipes.load_recipe(a.model)
    model = pipeline.open_model(recipe)
    method = a.method if a.sparsity else "dense"
    setting = pipeline.setting_for(model, recipe, method, a.sparsity, a.speculate)
    limits, use = setting.thresholds, use_of(setting.levels)
    image = pipeline.pack_model(model, recipe, settings=[setting])
    plan = make_plan(
        image, board, limits, a.kv_len, method, a.sparsity, a.ram, 0, a.speculate, use, a.draft
    )
    folder = root() / "build" / "ast1030-cycles" / a.model
    generate(plan, folder / "gen", board)
    elf = build_firmware(board, folder / "gen", folder / "firmware")
    write_json(folder / "plan.json", plan)
    flash_files(board, Files(elf, Path(image.path), folder / "plan.json"), folder / "flashed")

    plugin = cycles.build_plugin(folder)
    events, counters, _ = cycles.run_tokens(
        board, folder / "flashed", plugin, image.sha256, plan_digest(plan), a.ids, a.tokens, a.alone
    )
    if a.alone:
        alone(plan, simulate(events, FlashTiming.of(board)), counters, len(a.ids))
        return
    what = f"{method} {a.sparsity:g} %" if a.sparsity else method
    what += f", {a.speculate} reads early" if a.speculate else ""
    print(f"{a.model}, {what}, {a.tokens} tokens; cycles a token after the first")
    print(
        f"pinned {plan['memory']['pinned weights']:,} bytes, flash read "
        f"{counters['bytes_read'] / counters['tokens']:,.0f} bytes in "
        f"{counters['reads'] / counters['tokens']:,.0f} reads a token"
    )
    heads = " ".join(f"{h:>13}" for h in HEADER)
    print(f"bytes/cycle  reads {heads}  ratio   gain")
    line = Timeline()
    for rate in a.rates:
        timing = FlashTiming.of(board, rate)
        none = simulate(events, timing, ahead=False)
        line = simulate(events, timing)
        print(row(rate, "waited", none, None))
        print(row(rate, "ahead", line, none.steady().total))
    if a.trace:
        hertz = board.clock_hz or 1
        a.trace.write_text(json.dumps({"traceEvents": line.chrome(hertz)}))


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("--model", default="random-8m")
    p.add_argument("--tokens", type=int, default=4)
    p.add_argument("--ids", default="1")
    p.add_argument("--rates", default="0.125,0.25,0.5")
    p.add_argument("--kv-len", type=int, default=32)
    p.add_argument("--ram", type=partial(parse_size, "--ram"))
    p.add_argument("--method", default="h")
    p.add_argument("--sparsity", type=float, default=0.0)
    p.add_argument("--ring", type=int)
    p.add_argument("--speculate", default="")
    p.add_argument("--alone", action="store_true")
    p.add_argument("--draft", type=int)
    p.add_argument("--trace", type=Path)
    a = p.parse_args()
    a.rates = [float(r) for r in a.rates.split(",")]
    a.ids = [int(i) for i in a.ids.split(",")]
    try:
        run(a)
    except SparseflashError as e:
        sys.exit(str(e))


if __name__ == "__main__":
    main()
