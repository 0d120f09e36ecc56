"""Verbs that make what a board runs: generate, build, flash, size, stack."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Annotated

import typer

from sparseflash.cli import console, say
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
    examples,
    verbs,
)

app = verbs()


@app.command(
    epilog=examples(
        "generate --model story --board mps2-an386",
        "generate --board host-flash --ram 70M --sparsity 20",
        "generate --model story --method h --sparsity 50 --kv-len 128",
        "generate --model story --board esp32c3 --package esp-idf",
    )
)
def generate(
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    method: MethodOption = "auto",
    sparsity: SparsityOption = None,
    kv_len: KvOption = None,
    ram: RamOption = None,
    order: Annotated[str, typer.Option(help="neurons in flash: file or coactivation")] = "file",
    head: HeadOption = "auto",
    asvd: AsvdOption = 0,
    speculate: Annotated[
        str, typer.Option("--speculate", help="method whose prediction only reads early")
    ] = "",
    draft: Annotated[
        int | None,
        typer.Option(min=0, max=7, help="tokens that greedy decoding drafts; else what gains"),
    ] = None,
    package: Annotated[
        str, typer.Option(help="also a component: cmake, esp-idf, arduino, zephyr, cmsis-pack")
    ] = "",
) -> None:
    """Packs a model, plans it for a board, writes its C."""
    from sparseflash.codegen.package import check_package
    from sparseflash.image.formats import check_order
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages
    from sparseflash.plan.boards import load_board
    from sparseflash.plan.plan import warnings

    recipe, target = recipes.load_recipe(model), load_board(board)
    # Drafts need the exact head.
    rows = stages.rows_of_head("exact" if draft and head == "auto" else head, recipe, target)
    stages.check_asked(method, sparsity, speculate, asvd, target, ram)
    check_order(order)
    if package:
        check_package(package, target)
    with console.doing(f"reading {model}") as progress:
        loaded = stages.open_model(recipe)
        progress("choosing what is dropped")
        setting = stages.setting_on(
            loaded, recipe, target, method, sparsity, kv_len, ram, rows, speculate, asvd, progress
        )
        progress("packing")
        image = stages.pack_model(loaded, recipe, order, [setting], rows > 0, asvd)
        plan = stages.plan_and_generate(
            image, target, setting, recipe, kv_len, ram, rows, loaded, draft
        )
        fit = stages.fit_of_plan(
            image,
            stages.with_curve(target),
            plan,
            lambda b, m: stages.plan_of(image, b, setting, plan["kv_len"], m, rows),
            ram,
        )
    say.fit(fit)
    say.placement(plan)
    for sentence in warnings(image.formats, target):
        console.warn(sentence)
    if setting.reason:
        console.say(setting.reason)
    what = f"method {setting.method}" + (f" {setting.percent:g} %" if setting.percent else "")
    console.say(f"flash {image.size:,} of {target.flash_bytes:,} bytes; {what}")
    figures = {**fit.figures(), "method": setting.method, "sparsity": setting.percent}
    if package:
        folder = stages.package_of(loaded, recipe, target, image, plan, package)
        console.say(f"package {folder}")
        figures["package"] = str(folder)
    console.result(figures)


@app.command(epilog=examples("build --model story --board mps2-an386", "build --verbose"))
def build(model: ModelOption = DEFAULT_MODEL, board: BoardOption = "host") -> None:
    """Compiles what generate wrote.

    --verbose shows the compiler's commands.
    """
    from sparseflash.pipeline import device
    from sparseflash.plan.boards import load_board

    with console.doing(f"compiling for {board}"):
        path = device.build_board(load_board(board), model, console.asked.verbose)
    console.say(f"firmware {path}")
    console.result({"firmware": str(path), "bytes": path.stat().st_size})


@app.command(
    epilog=examples(
        "flash --model story",
        "flash --model story --board pico --runner uf2 --drive /media/me/RPI-RP2",
        "flash --model story --board nucleo-h743zi2 --dry-run",
    )
)
def flash(
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    runner: Annotated[str | None, typer.Option(help="one of the board's, not its first")] = None,
    port: PortOption = None,
    host: Annotated[str, typer.Option(help="user@machine of runner ssh")] = "",
    drive: Annotated[str, typer.Option(help="folder of the drive of runner uf2")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only print the commands")] = False,
) -> None:
    """Builds, and puts image and firmware on the board."""
    from sparseflash.pipeline import device
    from sparseflash.pipeline.places import Places
    from sparseflash.plan.boards import load_board

    target, places = load_board(board), Places(model, board)
    asked = {"port": port or "", "host": host, "drive": drive}
    target.settings(runner)
    device.check_generated(places)
    with console.doing(f"compiling for {board}") as progress:
        if not dry_run:
            device.build_board(target, model, console.asked.verbose)
        progress(f"flashing {board}")
        commands = device.flash_board(target, model, runner, asked, dry_run)
    for command in commands if dry_run or console.asked.verbose else ():
        console.say(shlex.join(command))
    place = board if commands else places.flashed
    image = places.planned_image()
    console.say(f"{'would flash' if dry_run else 'flashed'} {place} with {image.name}")
    lines = [shlex.join(c) for c in commands]
    console.result({"image": str(image), "to": str(place), "dry_run": dry_run, "commands": lines})


@app.command(epilog=examples("size --model story --board pico"))
def size(model: ModelOption = DEFAULT_MODEL, board: BoardOption = "host") -> None:
    """Bytes of the built program by part and section."""
    from sparseflash.codegen.footprint import SECTIONS
    from sparseflash.pipeline import device
    from sparseflash.plan.boards import load_board

    with console.doing(f"compiling for {board}"):
        found = device.program_sizes(load_board(board), model)
    rows = [(part, *(f"{row.get(s, 0):,}" for s in SECTIONS)) for part, row in found.items()]
    console.table(("part", *SECTIONS), rows, f"{model} on {board}, bytes")
    console.result(found)


@app.command(epilog=examples("stack --model story --board pico"))
def stack(model: ModelOption = DEFAULT_MODEL, board: BoardOption = "host") -> None:
    """The deepest stack of the program, against its limit."""
    from sparseflash.pipeline import device
    from sparseflash.plan.boards import load_board

    with console.doing(f"compiling for {board}"):
        found = device.program_stack(load_board(board), model)
    console.say(" -> ".join(f.rpartition(":")[2] for f in found.path))
    console.say(
        f"{found.bytes:,} bytes of {found.limit:,}, {found.interrupt:,} of them for an interrupt"
    )
    console.result(asdict(found))
