"""Flash and core side by side: what a DMA engine's reads cost a core that computes meanwhile.

The engine does one transfer at a time, in the order of their submission: a transfer starts when
it is submitted and the engine is free. The core loses cycles where it waits for a transfer that
has not ended. All times are core cycles; setup, restart and rate are parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sparseflash.base.errors import InputError
from sparseflash.plan.boards import Board


@dataclass(frozen=True)
class FlashTiming:
    """What a transfer costs, in core cycles."""

    bytes_per_cycle: float
    setup: float
    """From the start of a transfer to its first byte: the read command."""
    restart: float
    """From the end of a transfer to the start of one that is queued: the interrupt."""

    @staticmethod
    def of(board: Board, bytes_per_cycle: float | None = None) -> FlashTiming:
        """Of ``flash.timing`` of the board file; another rate is another clock of the same flash.

        Raises:
            InputError: the board file has none.
        """
        t = board.flash.get("timing")
        if t is None or not board.clock_hz:
            raise InputError(f"{board.folder / 'board.yaml'}: no flash.timing and clock_hz")
        rate = bytes_per_cycle or t["clock_hz"] * t["lanes"] / 8 / board.clock_hz
        setup = t["command_clocks"] * t["lanes"] / 8 / rate
        return FlashTiming(rate, setup, t["restart_cycles"])


@dataclass
class Transfer:
    """A read of the engine; ``start`` and ``end`` are None until it is scheduled."""

    bytes: int
    submitted: float
    start: float | None = None
    end: float | None = None


@dataclass
class Token:
    """One token: cycles from ``start`` to ``end``, of which ``stall`` were spent waiting."""

    start: float
    end: float = 0.0
    stall: float = 0.0
    bytes: int = 0
    reads: int = 0
    busy: float = 0.0
    """Cycles of it in which the engine worked."""

    @property
    def total(self) -> float:
        return self.end - self.start

    @property
    def compute(self) -> float:
        return self.total - self.stall


@dataclass
class Timeline:
    tokens: list[Token] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    layers: list[tuple[float, float]] = field(default_factory=list)

    def steady(self) -> Token:
        """Sums over the tokens after the first, which finds nothing read ahead."""
        some = self.tokens[1:] or self.tokens
        out = Token(0.0, sum(t.total for t in some))
        for name in ("stall", "bytes", "reads", "busy"):
            setattr(out, name, sum(getattr(t, name) for t in some))
        return out

    def chrome(self, hertz: float) -> list[dict[str, Any]]:
        """Events for chrome://tracing: computing, waiting and reading."""
        lanes = {
            "compute": [(f"layer {i}", a, b) for i, (a, b) in enumerate(self.layers)],
            "wait": [("wait", a, b) for a, b in self.waits],
            "read": [
                (f"{t.bytes} bytes", t.start, t.end)
                for t in self.transfers
                if t.start is not None and t.end is not None and t.end > t.start
            ],
        }
        scale = 1e6 / hertz
        out: list[dict[str, Any]] = []
        for number, (lane, spans) in enumerate(lanes.items()):
            at = {"pid": 0, "tid": number}
            out.append({"name": "thread_name", "ph": "M", "args": {"name": lane}, **at})
            out += [
                {"name": n, "ph": "X", "ts": a * scale, "dur": (b - a) * scale, **at}
                for n, a, b in spans
            ]
        return out


def parse(lines: Iterable[str]) -> list[tuple[str, int, int]]:
    """Lines "letter cycle [value]" of the plugin."""
    out = []
    for line in lines:
        letter, cycle, *value = line.split()
        out.append((letter, int(cycle), int(value[0]) if value else 0))
    return out


def simulate(
    events: Iterable[tuple[str, int, int]], timing: FlashTiming, ahead: bool = True
) -> Timeline:
    """The timeline of events (letter, cycle of the core without stalls, value).

    S a token begins, L a layer ends, T the token ends, R a read of ``value`` bytes is submitted,
    W ticket ``value`` (its number from 1, modulo 2^16) is waited for. The clock stands still
    between tokens, so nothing is read for free there; reads before the first token cost nothing.
    ``ahead=False``: every transfer starts when it is waited for.
    """
    out = Timeline()
    free = now = 0.0  # when the engine is free; the clock with stalls
    core = layer = 0.0  # the core's cycle count at ``now``; when the layer began
    token: Token | None = None
    pending: dict[int, Transfer] = {}

    def run(t: Transfer) -> None:
        nonlocal free
        t.start = now if now >= free else free + timing.restart
        t.end = free = t.start + timing.setup + t.bytes / timing.bytes_per_cycle

    for letter, cycle, value in events:
        if token is not None:
            now += cycle - core
        core = cycle
        if letter == "S":
            token = Token(now)
            layer = now
        elif letter == "R":
            t = Transfer(value, now)
            out.transfers.append(t)
            pending[len(out.transfers) & 0xFFFF] = t
            if token is None:
                t.start = t.end = now
            else:
                token.bytes += value
                token.reads += 1
                if ahead:
                    run(t)
        elif letter == "W":
            t = pending.pop(value)
            if t.end is None:
                run(t)
            if t.end is not None and t.end > now:
                if token is not None:
                    token.stall += t.end - now
                out.waits.append((now, t.end))
                now = t.end
        elif letter == "L":
            if now > layer:
                out.layers.append((layer, now))
            layer = now
        elif letter == "T" and token is not None:
            token.end = now
            out.tokens.append(token)
            token = None
    for done in out.tokens:
        for t in out.transfers:
            if t.start is not None and t.end is not None:
                done.busy += max(0.0, min(t.end, done.end) - max(t.start, done.start))
    return out
