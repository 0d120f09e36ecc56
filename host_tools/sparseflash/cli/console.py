"""What the verbs print: sentences, tables, bars and progress; plain text where nobody looks on."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from sparseflash.base import progress
from sparseflash.base.files import no_nan

if TYPE_CHECKING:
    from rich.console import Console

EVERY = 5.0
"""Seconds between lines of progress where the standard error is no terminal."""
LONG = 2.0
"""Seconds that may pass in silence."""
BAR = 24
"""Characters of a bar."""
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass
class Asked:
    """How a run prints, and the figures of it so far, by the part of the run they belong to."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    part: str = ""
    results: dict[str, Any] = field(default_factory=dict)


asked = Asked()


def begin() -> None:
    """Forgets what an earlier run asked for."""
    asked.__dict__.update(Asked().__dict__)


@cache
def _console(error: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=error, soft_wrap=error, emoji=False, highlight=False, markup=False)


def shown(text: str) -> str:
    """``text`` without what commands a terminal: names come from files and devices of others."""
    return _COMMANDS.sub("\N{REPLACEMENT CHARACTER}", text)


def say(text: str) -> None:
    """A sentence of how the run went."""
    text = shown(text)
    if asked.quiet or asked.json:
        return
    if sys.stdout.isatty():
        _console().print(text)
    else:
        print(text)


def result(figures: Any) -> None:
    """What ``--json`` prints: plain data of the verb."""
    asked.results[asked.part] = figures


def flush_results() -> None:
    """Prints the figures if they are asked for; several parts of a run by their names."""
    if asked.json and asked.results:
        whole = asked.results.get("") if list(asked.results) == [""] else asked.results
        print(json.dumps(no_nan(whole), indent=2, ensure_ascii=False, default=str))


def warn(sentence: str) -> None:
    """On the standard error: something that does not stop the verb."""
    sentence = shown(sentence)
    if sys.stderr.isatty():
        _console(error=True).print(f"warning: {sentence}", style="yellow")
    else:
        print(f"warning: {sentence}", file=sys.stderr, flush=True)


def fail(sentence: str) -> None:
    """Why the run stops, on the standard error."""
    sentence = shown(sentence)
    if sys.stderr.isatty():
        _console(error=True).print(f"error: {sentence}", style="red")
    else:
        print(f"error: {sentence}", file=sys.stderr)


def rule(title: str, part: str = "") -> None:
    """A heading over what a longer run does next; its figures get the name ``part``."""
    asked.part = part
    if asked.quiet or asked.json:
        return
    if sys.stdout.isatty():
        _console().rule(title)
    else:
        print(f"== {title}", flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table; piped, its cells are set apart by two or more spaces."""
    if asked.json:
        return
    rows = [[shown(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.table import Table

        made = Table(title=title or None)
        numbers = [all(_number(row[i]) for row in rows) for i in range(len(columns))]
        for i, (column, number) in enumerate(zip(columns, numbers, strict=True)):
            # Names and numbers stay whole where the terminal has room for them.
            whole = (i == 0 and len(columns) > 2) or number
            made.add_column(
                column,
                overflow="fold",
                justify="right" if number else "left",
                no_wrap=whole,
            )
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


def _number(cell: str) -> bool:
    return not cell.strip("-") or cell[:1].isdigit()


def share(part: float, whole: float) -> str:
    """A bar of ``part`` in ``whole`` and its percentage; what is too much is marked."""
    if not whole:
        return ""
    filled = min(BAR, round(BAR * part / whole))
    over = " !" if part > whole else ""
    return f"{'#' * filled}{'.' * (BAR - filled)} {100 * part / whole:.0f} %{over}"


@dataclass
class _Part:
    """A part of the work: what is done of it, and when that began to be counted."""

    total: float = 0
    done: float = 0
    since: float = field(default_factory=time.monotonic)


class _Work:
    """What is being done, and the parts of it whose length is known."""

    def __init__(self, what: str, total: float = 0) -> None:
        self.lock = threading.Lock()
        self.now, self.start = what, time.monotonic()
        self.parts: dict[str, _Part] = {}
        if total:
            self.parts[what] = _Part(total)

    def at(self, what: str, done: float, total: float) -> None:
        with self.lock:
            if done >= total:
                self.parts.pop(what, None)
                for waiting in self.parts.values():  # what came before is no measure of them
                    if not waiting.done:
                        waiting.since = time.monotonic()
                return
            part = self.parts.setdefault(what, _Part(total))
            part.done = done
            if not done:
                part.since = time.monotonic()

    def doing(self, what: str) -> None:
        with self.lock:
            self.now = what

    def line(self, bar: bool = False) -> str:
        """The innermost part with its share and the time that is left of it, else the whole."""
        with self.lock:
            part = next(reversed(self.parts.items()), None)
        seconds = time.monotonic()
        if part is None or not part[1].done:
            return f"{part[0] if part else self.now} ({seconds - self.start:.0f} s)"
        what, p = part
        left = (seconds - p.since) * (p.total - p.done) / p.done
        so_far = share(p.done, p.total) if bar else f"{100 * p.done / p.total:.0f} %"
        return f"{what}: {so_far}, {_minutes(left)} left"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@contextmanager
def _shown_while(work: _Work, after: float = 0) -> Iterator[None]:
    """A line at a terminal that changes, from ``after`` seconds on; else one every few seconds."""
    if asked.quiet:
        yield
        return
    done = threading.Event()
    if sys.stderr.isatty():
        status = _console(error=True).status(shown(work.line(True)))

        def beat() -> None:
            if after and done.wait(after):
                return
            with status:
                while not done.wait(0.5):
                    status.update(shown(work.line(True)))

        with _running(beat, done):
            yield
        return

    def say_so() -> None:
        while not done.wait(EVERY):
            print(shown(work.line()), file=sys.stderr, flush=True)

    with _running(say_so, done):
        yield


@contextmanager
def _running(beat: Callable[[], None], done: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def bar(what: str, total: float = 0) -> Iterator[Callable[[float], None]]:
    """Progress towards ``total``: call the given function with what is done."""
    work = _Work(what, total)
    with progress.watched(work.at), _shown_while(work):
        yield lambda done: work.at(what, done, total)


@contextmanager
def doing(what: str) -> Iterator[Callable[[str], None]]:
    """Work without a known end: call the given function with what is done now."""
    work = _Work(what)
    with progress.watched(work.at), _shown_while(work):
        yield work.doing


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """For something that mostly comes at once; what takes longer is shown as other work is."""
    work = _Work(what)
    with progress.watched(work.at), _shown_while(work, LONG):
        yield


CONTROLS = bytes(c for c in range(32) if c not in b"\n\t") + b"\x7f"


def write(data: bytes) -> None:
    """Bytes of an answer, as they come; a terminal gets no control characters of a model."""
    if sys.stdout.isatty():
        data = data.translate(None, CONTROLS)
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def drop_output() -> None:
    """Nobody reads on: what is still buffered has nowhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
