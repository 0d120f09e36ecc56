"""Verbs that measure and check a device: validate, bench, flash-curve."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from sparseflash.base.errors import SparseflashError
from sparseflash.cli import console
from sparseflash.cli.options import (
    DEFAULT_MODEL,
    BoardOption,
    ModelOption,
    PortOption,
    ThreadsOption,
    examples,
    verbs,
)

app = verbs()
HASH = re.compile(r"[0-9a-f]{32,}")


@app.command(
    epilog=examples(
        "validate --model story", "validate --model story --board pico --port /dev/ttyACM0"
    )
)
def validate(
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    port: PortOption = None,
    positions: Annotated[
        int, typer.Option(min=1, help="tokens of a fixed text; at most what the KV cache holds")
    ] = 64,
) -> None:
    """Compares a device with the reference, bit by bit.

    Logits, and seven sites of every layer.
    """
    from sparseflash.pipeline import device

    with console.bar(f"validating {model} on {board}", 1) as progress:
        found = device.validate_board(model, board, port, positions, console.warn, progress)
    console.result(found)
    if not found["equal"]:
        raise SparseflashError(f"the device differs from the reference at {found['difference']}")
    console.say(
        f"validated {found['positions']} positions: logits and 7 sites of {found['layers']} "
        "layers are bit-equal"
    )


@app.command(
    epilog=examples(
        "bench --model story",
        "bench --model story --board mps2-an386 --tokens 16",
        "bench --model story --json",
        "echo 'name% profile%' | sparseflash bench --model story --commands",
    )
)
def bench(
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    port: PortOption = None,
    threads: ThreadsOption = 0,
    tokens: Annotated[int, typer.Option(min=1, help="of each repetition")] = 64,
    repetitions: Annotated[int, typer.Option(min=1, help="of which the median counts")] = 3,
    commands: Annotated[
        bool, typer.Option("--commands", help="obey MLPerf Tiny's runner on the standard input")
    ] = False,
) -> None:
    """Tokens a second, bytes a token, time by stage.

    --json prints a list as llama-bench does, prefill first and then decode, with our own figures
    behind its names. --commands takes the commands of MLPerf Tiny's runner, each with its % at the
    end, and answers as a device does; `help%` lists them.
    """
    from sparseflash.device.bench import as_llama_bench
    from sparseflash.pipeline import device

    if commands:
        for line in device.obey(model, board, port, tokens, _typed(), console.warn):
            print(line, flush=True)
        return
    with console.bar(f"measuring {model} on {board}", 1) as progress:
        result = device.bench_board(
            model, board, port, tokens, repetitions, console.warn, progress, threads
        )
    rows = [
        (name.replace("_", " "), bench_figure(value))
        for name, value in result.items()
        if value is not None and not isinstance(value, list)
    ]
    console.table(("figure", "value"), rows, f"{model} on {board}")
    console.result(as_llama_bench(result))


def bench_figure(value: float | str) -> str:
    """Whole numbers from a thousand on, four digits below; a hash by its beginning."""
    if isinstance(value, str):
        return f"{value[:16]}…" if HASH.fullmatch(value) else value
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def _typed() -> Iterator[str]:
    """Commands of the standard input, without the % that ends each."""
    command = ""
    while character := sys.stdin.read(1):
        if character == "%":
            yield command.strip()
            command = ""
        else:
            command += character


@app.command("flash-curve", epilog=examples("flash-curve --board host-flash"))
def flash_curve(model: ModelOption = DEFAULT_MODEL, board: BoardOption = "host-flash") -> None:
    """Measures what a read of the flash costs by its size.

    Plans of the board use it from then on.
    """
    from sparseflash.pipeline import device
    from sparseflash.plan.boards import load_board

    with console.doing("reading blocks of many sizes"):
        path, curve = device.measure_curve(load_board(board), model)
    rows = [
        (f"{size:,}", f"{1e6 * seconds:.1f}", f"{size / seconds / 1e6:,.0f}")
        for size, seconds in zip(curve["bytes"], curve["seconds"], strict=True)
    ]
    title = f"{board}, depth {curve['depth']}"
    console.table(("bytes", "microseconds a read", "MB/s"), rows, title)
    console.say(f"rows closer than {curve['gap']:,} bytes share a read; {path}")
    console.result({**curve, "path": str(path)})
