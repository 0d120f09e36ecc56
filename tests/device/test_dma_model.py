"""Flash and core side by side, on sequences whose cycles are worked out by hand."""

from __future__ import annotations

import pytest

from emulators.ast1030.dma_model import FlashTiming, parse, simulate
from sparseflash.base.errors import InputError
from sparseflash.plan.boards import load_board

SLOW = FlashTiming(bytes_per_cycle=0.5, setup=100, restart=10)
"""A read of 200 bytes takes 100 + 400 cycles."""


def test_waits_for_what_has_not_come() -> None:
    line = simulate([("S", 0, 0), ("R", 10, 200), ("W", 60, 1), ("T", 100, 0)], SLOW)
    (token,) = line.tokens
    assert (token.stall, token.total, token.compute) == (450, 550, 100)
    assert line.waits == [(60, 510)]
    assert (token.bytes, token.reads, token.busy) == (200, 1, 500)


def test_computing_hides_a_read() -> None:
    events = [("S", 0, 0), ("R", 10, 200), ("W", 600, 1), ("T", 700, 0)]
    assert simulate(events, SLOW).tokens[0].stall == 0
    late = simulate(events, SLOW, ahead=False).tokens[0]
    assert (late.stall, late.total) == (500, 1200)


def test_one_transfer_at_a_time_in_order() -> None:
    """Two are queued: the second starts when the interrupt has come, and ends after it."""
    events = [("S", 0, 0), ("R", 0, 200), ("R", 20, 300)]
    events += [("W", 30, 1), ("W", 530, 2), ("T", 540, 0)]
    line = simulate(events, SLOW)
    first, second = line.transfers
    assert (first.start, first.end) == (0, 500)
    assert (second.start, second.end) == (510, 510 + 100 + 600)
    # Waits until 500, then computes 500 cycles, until 1000; then waits until 1210.
    assert line.waits == [(30, 500), (1000, 1210)]
    assert line.tokens[0].total == 540 + 470 + 210


def test_later_ticket_first() -> None:
    """Whoever waits for the last has waited for all before it."""
    events = [("S", 0, 0), ("R", 0, 200), ("R", 0, 200), ("W", 0, 2), ("W", 0, 1), ("T", 0, 0)]
    line = simulate(events, SLOW)
    assert line.tokens[0].stall == 1010 and len(line.waits) == 1


def test_nothing_is_read_between_tokens() -> None:
    """The clock stands still there, and a read in flight goes on in the next token."""
    events = [
        ("R", 5, 4), ("W", 6, 1), ("S", 100, 0), ("R", 100, 200), ("T", 200, 0),
        ("S", 9000, 0), ("W", 9050, 2), ("L", 9060, 0), ("T", 9060, 0),
    ]  # fmt: skip
    line = simulate(events, SLOW)
    one, two = line.tokens
    assert (one.total, one.stall, one.busy) == (100, 0, 100)
    assert (two.start, two.stall, two.total, two.busy) == (100, 350, 410, 400)
    assert line.layers == [(100, 510)]
    steady = line.steady()
    assert (steady.total, steady.compute, steady.busy) == (410, 60, 400)


def test_tickets_wrap() -> None:
    events = [("S", 0, 0)]
    for n in range(1, 70001):
        events += [("R", 1000 * n, 4), ("W", 1000 * n, n & 0xFFFF)]
    assert simulate(events, SLOW).tokens == []
    with pytest.raises(KeyError):
        simulate([("S", 0, 0), ("W", 0, 1)], SLOW)


def test_board() -> None:
    """48 clocks of the command at 100 MHz are 96 cycles of the core at 200 MHz."""
    board = load_board("ast1030-evb")
    assert FlashTiming.of(board) == FlashTiming(0.25, 96, 60)
    assert FlashTiming.of(board, 0.125).setup == 192
    with pytest.raises(InputError, match=r"flash\.timing"):
        FlashTiming.of(load_board("mps2-an386"))


def test_chrome() -> None:
    events = parse(["S 0", "R 0 200", "W 100 1", "L 110", "T 110"])
    out = simulate(events, SLOW).chrome(1e6)
    spans = {e["name"]: (e["ts"], e["dur"]) for e in out if e["ph"] == "X"}
    assert spans == {"layer 0": (0, 510), "wait": (100, 400), "200 bytes": (0, 500)}
