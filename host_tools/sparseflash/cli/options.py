"""Options that several verbs share."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from sparseflash.base.errors import UsageError
from sparseflash.base.sizes import parse_size

DEFAULT_MODEL = "smollm2-135m"


def verbs() -> typer.Typer:
    """A group of verbs in a file."""
    return typer.Typer(rich_markup_mode=None)


def examples(*lines: str) -> str:
    """The end of a verb's help."""
    whole = [line if "sparseflash " in line else f"sparseflash {line}" for line in lines]
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in whole)


def _boards(incomplete: str) -> list[str]:
    """For the shell's completion."""
    from sparseflash.plan.boards import board_ids

    return [b for b in board_ids() if b.startswith(incomplete)]


def _models(incomplete: str) -> list[str]:
    from sparseflash.model.recipes import recipe_names

    return [m for m in recipe_names() if m.startswith(incomplete)]


def _named(model: str) -> str:
    """The recipe's name of what --model gives."""
    from sparseflash.model.resolve import resolve

    return resolve(model)


BoardOption = Annotated[
    str,
    typer.Option(
        "--board",
        help="as the verb boards lists them: a folder of firmware/port",
        autocompletion=_boards,
    ),
]
MODEL_HELP = "a recipe of models/, a .gguf, a safetensors folder, a llama2.c .bin, a hub id"
ModelOption = Annotated[
    str, typer.Option("--model", help=MODEL_HELP, callback=_named, autocompletion=_models)
]
ThreadsOption = Annotated[
    int, typer.Option("--threads", min=0, help="of the process of a Linux board; 0: one a core")
]
PortOption = Annotated[
    str | None, typer.Option("--port", help="serial port or pyserial URL; not for emulators")
]
MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        help="auto, dense, h, cats, paper, teal, prox-3, marginal; more: docs/METHODS.md",
    ),
]
SparsityOption = Annotated[
    float | None,
    typer.Option(
        "--sparsity",
        help="percent: below the threshold, by default 30; with auto fewer streamed bytes",
    ),
]
KvOption = Annotated[
    int | None,
    typer.Option("--kv-len", min=1, help="positions of KV cache; default: the board's"),
]
RamOption = Annotated[
    int | None,
    typer.Option(
        "--ram",
        parser=partial(parse_size, "--ram"),
        metavar="SIZE",
        help="to stay within, on a board that streams its weights: 512K, 70M",
    ),
]
AsvdOption = Annotated[
    float, typer.Option("--asvd", help="percent of the projections' bytes left by factors; 0: all")
]
HeadOption = Annotated[
    str, typer.Option("--head", help="auto, exact, screened or rows to screen for")
]
TextOption = Annotated[str | None, typer.Option("--text", help="a declared text or a file")]
CountOrDefault = Annotated[int, typer.Option(min=0, help="0: the recipe's")]


def numbers(option: str, text: str) -> list[float]:
    """Numbers with commas between them."""
    try:
        return [float(s) for s in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r} is not numbers with commas; write 30,50") from None
