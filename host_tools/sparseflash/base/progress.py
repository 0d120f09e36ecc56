"""Loops of a known length say how far they are; who shows that, watches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
Watch = Callable[[str, float, float], None]
"""Is told what is done, how much of it, and how much there is."""
_watching: list[Watch] = []


@contextmanager
def watched(by: Watch) -> Iterator[None]:
    """``by`` hears of the loops in here."""
    _watching.append(by)
    try:
        yield
    finally:
        _watching.remove(by)


def at(what: str, done: float, total: float) -> None:
    """So much of ``what`` is done; with all of it ``what`` has ended."""
    if _watching:
        _watching[-1](what, done, total)


def each(what: str, items: Collection[T]) -> Iterator[T]:
    """The items, one after the other."""
    try:
        for i, item in enumerate(items):
            at(what, i, len(items))
            yield item
    finally:
        at(what, len(items), len(items))
