"""The verb plan: the fit report, before anything is written or flashed."""

from __future__ import annotations

from typing import Annotated

import typer

from sparseflash.base.errors import TooSmallError
from sparseflash.cli import console, say
from sparseflash.cli.options import (
    DEFAULT_MODEL,
    BoardOption,
    HeadOption,
    KvOption,
    MethodOption,
    ModelOption,
    RamOption,
    SparsityOption,
    examples,
    verbs,
)

app = verbs()


@app.command(
    epilog=examples(
        "plan --model story --board pico",
        "plan --board host-flash --ram 70M --sparsity 20",
        "plan --model story --boards",
    )
)
def plan(
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    boards: Annotated[bool, typer.Option("--boards", help="the model on all boards")] = False,
    method: MethodOption = "auto",
    sparsity: SparsityOption = None,
    kv_len: KvOption = None,
    ram: RamOption = None,
    head: HeadOption = "auto",
) -> None:
    """The fit report: memory, bytes and time a token.

    Says what one more 64 KB would buy, and what would make a model fit that does not; that ends
    with code 5. Writes nothing but the packed image.
    """
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages
    from sparseflash.plan.boards import load_board

    recipe = recipes.load_recipe(model)
    if boards:
        _all_boards(model, kv_len)
        return
    target = load_board(board)
    rows = stages.rows_of_head(head, recipe, target)
    stages.check_asked(method, sparsity, board=target, ram=ram)
    with console.doing(f"reading {model}") as progress:
        loaded = stages.open_model(recipe)
        progress("planning")
        try:
            setting = stages.setting_on(
                loaded, recipe, target, method, sparsity, kv_len, ram, rows, progress=progress
            )
        except TooSmallError:  # the report says by how much, for the plan that drops nothing
            setting = stages.dense_setting(loaded)
        fit = stages.planned_fit(loaded, recipe, target, setting, kv_len, ram, rows)
    say.fit(fit)
    console.result(fit.figures())
    if fit.refused:
        raise TooSmallError(fit.refused)


def _all_boards(model: str, kv_len: int | None) -> None:
    """One line a board: what drops nothing fits, or what would make it fit."""
    from sparseflash.base.errors import SparseflashError
    from sparseflash.base.progress import each
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages
    from sparseflash.plan.boards import board_ids, load_board

    recipe = recipes.load_recipe(model)
    lines, figures = [], []
    with console.doing(f"reading {model}") as progress:
        loaded = stages.open_model(recipe)
        dense = stages.dense_setting(loaded)
        for name in each("planning for boards", board_ids()):
            progress(f"planning for {name}")
            try:
                fit = stages.planned_fit(loaded, recipe, load_board(name), dense, kv_len)
            except SparseflashError as e:
                console.warn(str(e))
                continue
            figures.append(fit.figures())
            lines.append(
                (
                    name,
                    f"{100 * fit.sram_used / fit.sram_bytes:.0f} %",
                    f"{100 * fit.flash_used / fit.flash_bytes:.0f} %",
                    f"{fit.kv_len}",
                    "fits" if not fit.refused else "; ".join(fit.advice) or fit.refused,
                )
            )
    columns = ("board", "SRAM", "flash", "positions", "dense")
    console.table(columns, lines, f"{model} on all boards")
    console.result(figures)
