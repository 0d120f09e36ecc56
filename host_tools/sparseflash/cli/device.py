"""Verbs that talk to a device: validate, bench, chat, boards, flash-curve."""

from __future__ import annotations

from typing import Annotated

import typer

from sparseflash.base.errors import SparseflashError
from sparseflash.cli import console
from sparseflash.cli.options import DEFAULT_MODEL, BoardOption, Count, ModelOption, PortOption

app = typer.Typer()


@app.command()
def validate(
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    port: PortOption = None,
    positions: Count = 64,
) -> None:
    """Compares logits and every layer of the device with the reference, bit by bit.

    At most as many positions as its KV cache holds.
    """
    from sparseflash.device.validate import validate as run
    from sparseflash.pipeline import stages

    with stages.session(model, board, port) as session:
        ids = stages.validation_ids(model, min(positions, session.plan["kv_len"]))
        with console.bar("validating", len(ids)) as progress:
            rows = session.plan.get("head_rows", 0)
            device, image = session.device, session.image
            found = run(device, image, ids, session.thresholds, progress, rows)
    if found is not None:
        raise SparseflashError(f"the device differs from the reference at {found}")
    n = image.spec.n_layers
    console.say(f"validated {len(ids)} positions: logits and 7 sites of {n} layers are bit-equal")


@app.command()
def bench(
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    port: PortOption = None,
    tokens: Count = 64,
    repetitions: Count = 3,
) -> None:
    """Tokens a second, bytes a token, time by stage: table, JSON and CSV."""
    from sparseflash.pipeline import stages

    with console.doing("benchmarking"):
        result = stages.bench_board(model, board, port, tokens, repetitions)
    rows = [
        (name, f"{value:,.3f}" if isinstance(value, float) else str(value))
        for name, value in result.items()
        if value is not None
    ]
    console.table(("figure", "value"), rows, f"{model} on {board}")


@app.command()
def chat(
    message: Annotated[str, typer.Argument()] = "",
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    port: PortOption = None,
    most: Count = 120,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.9,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    raw: Annotated[bool, typer.Option("--raw", help="without the model's chat template")] = False,
) -> None:
    """Talks to the device; with a message, one question and its answer."""
    from sparseflash.device.chat import Chat
    from sparseflash.pipeline import stages

    words, ends = stages.open_tokenizer(model)
    with stages.session(model, board, port) as session:
        talk = Chat(session.device, words, ends, raw, console.warn)
        while text := message or console.ask("> "):
            for piece in talk.ask(text, most, temperature, top_p, seed):
                console.write(piece)
            console.write(b"\n")
            if message:
                return


@app.command("flash-curve")
def flash_curve(model: ModelOption = DEFAULT_MODEL, board: BoardOption = "host-flash") -> None:
    """Measures what a read of the flash costs by its size; plans use it from then on."""
    from sparseflash.pipeline import stages
    from sparseflash.plan.boards import load_board

    path, curve = stages.measure_curve(load_board(board), model)
    rows = [
        (f"{size:,}", f"{1e6 * seconds:.1f}", f"{size / seconds / 1e6:,.0f}")
        for size, seconds in zip(curve["bytes"], curve["seconds"], strict=True)
    ]
    title = f"{board}, depth {curve['depth']}"
    console.table(("bytes", "microseconds a read", "MB/s"), rows, title)
    console.say(f"rows closer than {curve['gap']:,} bytes share a read; {path}")


@app.command()
def boards() -> None:
    """Lists the boards."""
    from sparseflash.plan.boards import board_ids, load_board

    rows = [
        (b.id, f"{b.sram_bytes:,}", f"{b.flash_bytes:,}", b.description)
        for b in map(load_board, board_ids())
    ]
    console.table(("board", "SRAM", "flash", "what it is"), rows)
