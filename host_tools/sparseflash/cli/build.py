"""Verbs that make what a board runs: generate, build, flash, size, stack."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import typer

from sparseflash.cli import console
from sparseflash.cli.options import (
    DEFAULT_MODEL,
    AsvdOption,
    BoardOption,
    HeadOption,
    KvOption,
    MethodOption,
    ModelOption,
    PortOption,
    RamOption,
    SparsityOption,
)

app = typer.Typer()


@app.command()
def generate(
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    method: MethodOption = "auto",
    sparsity: SparsityOption = None,
    kv_len: KvOption = None,
    ram: RamOption = None,
    order: Annotated[str, typer.Option(help="neurons in flash: file or coactivation")] = "file",
    head: HeadOption = "exact",
    asvd: AsvdOption = 0,
    speculate: Annotated[
        str, typer.Option("--speculate", help="method whose guess only reads early")
    ] = "",
) -> None:
    """Packs the model, plans it for the board and writes its C."""
    from sparseflash.image.formats import check_order
    from sparseflash.image.screen import head_rows
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages
    from sparseflash.plan.boards import load_board
    from sparseflash.plan.plan import warnings

    recipe, target, rows = recipes.load_recipe(model), load_board(board), head_rows(head)
    stages.check_asked(method, sparsity, speculate, asvd)
    check_order(order)
    loaded = stages.open_model(recipe)
    with console.doing("choosing what is dropped") as progress:
        setting = stages.setting_on(
            loaded, recipe, target, method, sparsity, kv_len, ram, rows, speculate, asvd, progress
        )
        progress("packing")
        layout = target.raw.get("layout", "joint")
        image = stages.pack_model(loaded, recipe, layout, order, [setting], rows > 0, asvd)
    plan = stages.plan_and_generate(image, target, setting, recipe, kv_len, ram, rows)
    sram = {**plan["memory"], **target.reserve, "of the board": target.sram_bytes}
    lines = [(name, f"{size:,}") for name, size in sram.items()]
    console.table(("SRAM", "bytes"), lines, f"{model} on {board}")
    say_placement(plan)
    for sentence in warnings(image.formats, target):
        console.say(f"warning: {sentence}")
    if setting.reason:
        console.say(setting.reason)
    what = f"method {setting.method}" + (f" {setting.percent:g} %" if setting.percent else "")
    console.say(f"flash {image.size:,} of {target.flash_bytes:,} bytes; {what}")


def say_placement(plan: dict[str, Any]) -> None:
    """Where the weights lie, for a board that streams them, and what reading them costs."""
    from sparseflash.device.bench import computing_seconds
    from sparseflash.pipeline.places import Places

    placement = plan.get("placement")
    if not placement:
        return
    rows = [
        (name, f"{k['pinned']:,}", f"{k['streamed']:,}", f"{k['read']:,.0f}")
        for name, k in [*placement["kinds"].items(), ("total", placement["total"])]
    ]
    console.table(("weights", "pinned", "streamed", "read a token"), rows, "placement, bytes")
    if "ratio" in placement or "ratio_predicted" in placement:
        say_expected(placement)
    if "read_seconds" not in placement:
        console.say("make flash-curve measures what the reads cost on this board")
        return
    console.say(
        f"reading takes {1e3 * placement['read_seconds']:.1f} ms a token by the measured "
        f"curve; one more megabyte of RAM saves "
        f"{1e3 * placement['seconds_saved_by_a_megabyte']:.2f} ms"
    )
    computing = computing_seconds(Places(plan["name"], plan["board"]).target / "bench.json")
    if computing is None:
        console.say("make bench measures what computing takes beside it, and so the stalls")
    else:
        stall = max(0.0, placement["read_seconds"] - computing)
        console.say(
            f"the last bench computed for {1e3 * computing:.1f} ms a token beside its waits: "
            f"expect stalls of {1e3 * stall:.1f} ms at the least"
        )


def say_expected(placement: dict[str, Any]) -> None:
    """What the planner chose, and what it loses."""
    if "ratio_predicted" not in placement:
        console.say("nothing is dropped, so perplexity is that of dense")
        return
    names = {"qkv": "q, k, v", "o": "o", "gate": "gate", "up": "up", "down": "down"}
    whole = ", ".join(f"{n} of {placement[f'whole_{k}']:g}" for k, n in names.items())
    guessed = f"; a predictor picks in {placement['guessed']:g}" if "guessed" in placement else ""
    console.say(f"of {placement['layers']:g} layers these stay whole: {whole}{guessed}")
    if "ratio" not in placement:
        console.say(
            f"perplexity is expected at {placement['ratio_predicted']:.3f} of dense, by prices "
            "measured on calibration text; METHOD=planned measures it on other text"
        )
        return
    console.say(
        f"perplexity {placement['ratio']:.4f} ± {placement['ratio_error']:.4f} of dense on text "
        "that calibration did not see; the model of the loss predicted "
        f"{placement['ratio_predicted']:.4f}, and with one more megabyte of RAM at the same bytes "
        f"{placement['ratio_predicted_with_a_megabyte']:.4f}"
    )


@app.command()
def build(model: ModelOption = DEFAULT_MODEL, board: BoardOption = "host") -> None:
    """Compiles what generate wrote."""
    from sparseflash.pipeline import stages
    from sparseflash.plan.boards import load_board

    console.say(f"firmware {stages.build_board(load_board(board), model)}")


@app.command()
def flash(
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    runner: Annotated[str | None, typer.Option(help="one of the board's, not its first")] = None,
    port: PortOption = None,
    host: Annotated[str, typer.Option(help="user@machine of runner ssh")] = "",
    drive: Annotated[str, typer.Option(help="folder of the drive of runner uf2")] = "",
    dry_run: bool = False,
) -> None:
    """Builds, and puts image and firmware on the board; --dry-run only prints the commands."""
    from sparseflash.pipeline import stages
    from sparseflash.pipeline.places import Places
    from sparseflash.plan.boards import load_board

    target = load_board(board)
    asked = {"port": port or "", "host": host, "drive": drive}
    target.settings(runner)
    if not dry_run:
        stages.build_board(target, model)
    commands = stages.flash_board(target, model, runner, asked, dry_run)
    for command in commands if dry_run else ():
        console.say(shlex.join(command))
    place = board if commands else Places(model, board).flashed
    console.say(f"{'would flash' if dry_run else 'flashed'} {place}")


@app.command()
def size(model: ModelOption = DEFAULT_MODEL, board: BoardOption = "host") -> None:
    """Bytes of the built program by part and section."""
    from sparseflash.codegen.footprint import SECTIONS
    from sparseflash.pipeline import stages
    from sparseflash.plan.boards import load_board

    found = stages.program_sizes(load_board(board), model)
    rows = [(part, *(f"{row.get(s, 0):,}" for s in SECTIONS)) for part, row in found.items()]
    console.table(("part", *SECTIONS), rows, f"{model} on {board}, bytes")


@app.command()
def stack(model: ModelOption = DEFAULT_MODEL, board: BoardOption = "host") -> None:
    """The deepest stack of the built program, against the board's limit."""
    from sparseflash.pipeline import stages
    from sparseflash.plan.boards import load_board

    found = stages.program_stack(load_board(board), model)
    console.say(" -> ".join(f.rpartition(":")[2] for f in found.path))
    console.say(
        f"{found.bytes:,} bytes of {found.limit:,}, {found.interrupt:,} of them for an interrupt"
    )
