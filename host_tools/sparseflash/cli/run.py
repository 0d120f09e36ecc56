"""The verb run: the others in a row."""

from __future__ import annotations

import time

from sparseflash.base.errors import UsageError
from sparseflash.cli import console
from sparseflash.cli.build import flash, generate
from sparseflash.cli.chat import chat
from sparseflash.cli.device import bench, validate
from sparseflash.cli.model import load
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
        "run --model story",
        "run --model story --board ast1030-evb",
        "run --board host-flash --ram 70M",
        "run --model path/to/model.gguf",
    )
)
def run(
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    method: MethodOption = "auto",
    sparsity: SparsityOption = None,
    kv_len: KvOption = None,
    ram: RamOption = None,
    head: HeadOption = "auto",
) -> None:
    """The whole way, from a model to a chat with the board.

    Loads, generates, flashes, validates, measures and talks. `demo` is the same verb.
    """
    from sparseflash.model.recipes import load_recipe

    start = time.monotonic()
    question = load_recipe(model).prompt
    for title, step in (
        ("load", lambda: load(model)),
        ("generate", lambda: generate(model, board, method, sparsity, kv_len, ram, head=head)),
        ("flash", lambda: flash(model, board)),
        ("validate", lambda: validate(model, board)),
        ("bench", lambda: bench(model, board)),
        ("chat", lambda: console.say(f"> {question}")),
    ):
        console.rule(f"{title} ({time.monotonic() - start:.0f} s)", title)
        step()
    try:
        chat(question, model, board, most=60)
    except UsageError as e:  # a model without words, or too few positions for the question
        console.say(f"no chat: {e}")
    console.rule(f"done ({time.monotonic() - start:.0f} s)")
