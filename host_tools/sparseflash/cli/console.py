"""What the verbs print: sentences, tables and progress; plain text where nobody looks on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

EVERY = 5.0
"""Seconds between lines of progress where the standard error is no terminal."""


@cache
def _console(error: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=error, soft_wrap=error, emoji=False, highlight=False, markup=False)


def say(text: str) -> None:
    """A sentence of the result."""
    if sys.stdout.isatty():
        _console().print(text)
    else:
        print(text)


def warn(sentence: str) -> None:
    """On the standard error: something that does not stop the verb."""
    _console(error=True).print(f"warning: {sentence}", markup=False, highlight=False)


def fail(sentence: str) -> None:
    """Why the run stops, on the standard error."""
    if sys.stderr.isatty():
        _console(error=True).print(f"error: {sentence}", style="red")
    else:
        print(f"error: {sentence}", file=sys.stderr)


def rule(title: str) -> None:
    """A heading over what a longer run does next."""
    if sys.stdout.isatty():
        _console().rule(title)
    else:
        print(f"== {title}")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table; piped, its cells are set apart by two or more spaces."""
    if sys.stdout.isatty():
        from rich.table import Table

        made = Table(title=title or None)
        for column in columns:
            made.add_column(column, overflow="fold")
        for row in rows:
            made.add_row(*row)
        _console().print(made)
        return
    if title:
        print(title)
    lines = [columns, *rows]
    widths = [max(len(row[i]) for row in lines) for i in range(len(columns))]
    for row in lines:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


@contextmanager
def bar(what: str, total: float = 0) -> Iterator[Callable[[float], None]]:
    """Progress towards ``total``: call the given function with what is done."""
    start = last = time.monotonic()
    if sys.stderr.isatty():
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:g}/")
        more = TextColumn("{task.total:g}"), TimeRemainingColumn(elapsed_when_finished=True)
        with Progress(*columns, *more, console=_console(error=True), transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda done: progress.update(task, completed=done)
        return

    def line(done: float) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY and done:
            last = time.monotonic()
            left = (last - start) * (total - done) / done
            print(f"{what}: {done:g} of {total:g}, {left:.0f} s left", file=sys.stderr, flush=True)

    yield line


@contextmanager
def doing(what: str) -> Iterator[Callable[[str], None]]:
    """Work without a known end: call the given function with what is done now."""
    start = last = time.monotonic()
    if sys.stderr.isatty():
        with _console(error=True).status(what) as status:
            yield status.update
        return

    def line(now: str) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            print(f"{now} ({last - start:.0f} s)", file=sys.stderr, flush=True)

    yield line


def ask(prompt: str) -> str | None:
    """A line of the user; None at the end of the input."""
    try:
        return input(prompt if sys.stdin.isatty() else "")
    except EOFError:
        return None


def write(data: bytes) -> None:
    """Bytes of an answer, as they come."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def drop_output() -> None:
    """Nobody reads on: what is still buffered has nowhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
