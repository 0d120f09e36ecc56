"""Options that several verbs share."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from sparseflash.base.errors import UsageError
from sparseflash.base.sizes import parse_size

DEFAULT_MODEL = "smollm2-135m"

BoardOption = Annotated[str, typer.Option("--board", help="a folder of firmware/port")]


def _named(model: str) -> str:
    """The recipe's name of what --model gives."""
    from sparseflash.model.resolve import resolve

    return resolve(model)


MODEL_HELP = "a recipe of models/, a .gguf, a safetensors folder, a llama2.c .bin, a hub id"
ModelOption = Annotated[str, typer.Option("--model", help=MODEL_HELP, callback=_named)]
PortOption = Annotated[str | None, typer.Option("--port", help="serial port or pyserial URL")]
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
KvOption = Annotated[int | None, typer.Option("--kv-len", min=1, help="positions of KV cache")]
RamOption = Annotated[
    int | None,
    typer.Option(
        "--ram",
        parser=partial(parse_size, "--ram"),
        metavar="SIZE",
        help="to stay within: 512K, 70M",
    ),
]
AsvdOption = Annotated[
    float, typer.Option("--asvd", help="percent of the projections' bytes left by factors; 0: all")
]
HeadOption = Annotated[str, typer.Option("--head", help="exact, screened or rows to screen for")]
TextOption = Annotated[str | None, typer.Option("--text", help="a declared text or a file")]
Count = Annotated[int, typer.Option(min=1)]
CountOrDefault = Annotated[int, typer.Option(min=0, help="0: the recipe's")]


def numbers(option: str, text: str) -> list[float]:
    """Numbers with commas between them."""
    try:
        return [float(s) for s in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r} is not numbers with commas; write 30,50") from None
