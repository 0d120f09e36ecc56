"""The fit report: what a plan takes of a board, what a token costs, and what would change that.

Every figure of a token names its source: the plan, a measurement here, or the board file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sparseflash.base.errors import TooSmallError
from sparseflash.image.grids import GRIDS, grid
from sparseflash.image.sfm import Image
from sparseflash.plan.boards import Board
from sparseflash.plan.memory import LEAST_POSITIONS, most_positions, position_bytes

STEP = 65536
"""Bytes of SRAM whose worth is said."""


@dataclass(frozen=True)
class Figure:
    """A figure of a token."""

    name: str
    value: float
    unit: str
    source: str


@dataclass
class Fit:
    """How a model lies on a board. Sizes are in bytes."""

    model: str
    board: str
    kv_len: int
    sram: dict[str, int]
    """By line: of the plan, and what the board keeps for itself."""
    sram_bytes: int
    flash: dict[str, int]
    flash_bytes: int
    stack_bytes: int
    refused: str = ""
    """Why it does not fit, a sentence; empty when it does."""
    advice: list[str] = field(default_factory=list)
    """What would make it fit."""
    token: list[Figure] = field(default_factory=list)
    step: str = ""
    """What one more step of SRAM would buy."""

    @property
    def sram_used(self) -> int:
        return sum(self.sram.values())

    @property
    def flash_used(self) -> int:
        return sum(self.flash.values())

    def figures(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "model": self.model,
            "board": self.board,
            "fits": not self.refused,
            "refused": self.refused,
            "advice": self.advice,
            "kv_len": self.kv_len,
            "sram": self.sram,
            "sram_used": self.sram_used,
            "sram_bytes": self.sram_bytes,
            "stack_bytes": self.stack_bytes,
            "flash": self.flash,
            "flash_used": self.flash_used,
            "flash_bytes": self.flash_bytes,
            "token": {f.name: {"value": f.value, "unit": f.unit, "source": f.source}
                      for f in self.token},
            "one_more_64_kb": self.step,
        }  # fmt: skip


def fit_of(
    image: Image,
    board: Board,
    kv_len: int,
    memory: dict[str, int],
    refused: str = "",
    needs: Callable[[int], dict[str, int]] | None = None,
) -> Fit:
    """Of the memory of a plan, or of what would be planned where that was ``refused``.

    needs: the memory of so many positions, for advice.
    """
    data = image.data_bytes
    flash = {"weights": data, "tables, tokens and vectors": image.size - data}
    lines = {k: v for k, v in memory.items() if v and k != "total"} | dict(board.reserve)
    name = image.name
    fit = Fit(
        name, board.id, kv_len, lines, board.sram_bytes, flash, board.flash_bytes,
        board.reserve.get("stack", 0), refused,
    )  # fmt: skip
    if refused and needs:
        fit.advice = _advice(image, board, kv_len, needs)
    return fit


def _advice(
    image: Image, board: Board, kv_len: int, needs: Callable[[int], dict[str, int]]
) -> list[str]:
    """What makes it fit, each tried by the same sums as the plan."""
    out = []
    memory = needs(kv_len)
    room = board.sram_bytes - sum(board.reserve.values())
    if memory["total"] > room:
        most = most_positions(memory, kv_len, room)
        if most:
            out.append(f"--kv-len {most} fits the SRAM")
        else:
            least = needs(LEAST_POSITIONS)["total"] + board.sram_bytes - room
            out.append(
                f"{LEAST_POSITIONS} positions take {least:,} bytes of SRAM already: a model with "
                "a smaller vocabulary or narrower layers, or a board with more"
            )
    if image.size > board.flash_bytes:
        for name in ("q8", "q4"):
            size = _size_on(image, name)
            if size <= board.flash_bytes and size < image.size:
                out.append(f"formats {name} of all weights take about {size:,} bytes of flash")
                break
        else:
            out.append(f"flash for {image.size:,} bytes, or a model with fewer weights")
    return out


def _size_on(image: Image, name: str) -> int:
    """Bytes of the image with every weight on a grid."""
    size, g = image.size, grid(name)
    for w in image.weights.values():
        if w.grid not in GRIDS:
            continue
        if w.role.endswith("_scales"):
            item = g.table_bytes(w.outputs)
        else:
            item = g.column_bytes(w.outputs) if w.columns else g.row_bytes(w.inputs)
        size += w.count * (item - w.size)
    return size


def token_figures(
    plan: dict[str, Any], board: Board, measured: dict[str, Any] | None, digest: str
) -> list[Figure]:
    """Bytes and time of a token.

    measured: the last bench.json of model and board, None when there is none; it says the time if
    it is of the plan of ``digest``, and else only how long computing took beside the reads.
    """
    dropped = f"method {plan['method']} at {plan['sparsity']:g} %, by the plan"
    source = "all weights, by the plan" if plan["method"] == "dense" else dropped
    parts = plan["parts"]
    trained = any(p["use"] < 1 for p in parts if p["kind"] in ("up", "down"))
    if plan["method"] == "dense" and trained:
        source = "the share that the model was trained to use, by the plan"
    used = sum(p["rows"] * p["bytes"] * p["use"] for p in parts)
    out = [Figure("weight bytes", used, "bytes", source)]
    streamed = plan["placement"].get("total", {}).get("read")
    if streamed is not None:
        out.append(Figure("bytes from flash", streamed, "bytes", "placement of the plan"))
    if measured and measured.get("plan") == digest:
        out += _measured(measured, board)
        return out
    if streamed is None:
        return out
    timing = board.flash.get("timing")
    if "read_seconds" in plan["placement"]:
        seconds = plan["placement"]["read_seconds"]
        out.append(Figure("reading", 1e3 * seconds, "ms", "flash_curve.json, measured here"))
        computing = computing_seconds(measured or {})
        if computing is not None:
            said = "bench.json of an earlier plan"
            out.append(Figure("computing", 1e3 * computing, "ms", said))
            wait = max(0.0, seconds - computing)
            out.append(Figure("waiting, at the least", 1e3 * wait, "ms", f"both, {said}"))
    elif timing:
        seconds = 8 * streamed / (timing["lanes"] * timing["clock_hz"])
        said = "flash timing of board.yaml, without computing"
        out.append(Figure("reading, at the least", 1e3 * seconds, "ms", said))
    return out


def computing_seconds(bench: dict[str, Any]) -> float | None:
    """Seconds a token takes without its waits for flash; None where a board has no clock."""
    rate, waiting = bench.get("tokens_per_second"), bench.get("share_waiting")
    return (1 - waiting) / rate if rate and waiting is not None else None


def _measured(bench: dict[str, Any], board: Board) -> list[Figure]:
    source = "bench.json of this plan"
    out = [Figure("weight bytes, counted", bench["bytes_per_token"], "bytes", source)]
    if bench.get("tokens_per_second"):
        out.append(Figure("time", 1e3 / bench["tokens_per_second"], "ms", source))
        if bench.get("share_waiting"):
            wait = bench["share_waiting"] / bench["tokens_per_second"]
            out.append(Figure("of it waiting for flash", 1e3 * wait, "ms", source))
    if bench.get("cycles_per_token"):
        cycles = bench["cycles_per_token"]
        out.append(Figure("core cycles", cycles, "cycles", f"{source}: the emulator's model"))
        if board.clock_hz:
            said = f"{source}: its cycles at {board.clock_hz / 1e6:g} MHz"
            out.append(Figure("time", 1e3 * cycles / board.clock_hz, "ms", said))
    if bench.get("instructions_per_token"):
        said = f"{source}: counted, no model of cycles"
        out.append(Figure("instructions", bench["instructions_per_token"], "", said))
    return out


def step_worth(
    image: Image,
    board: Board,
    plan: dict[str, Any],
    again: Callable[[Board, int | None], dict[str, Any]],
    ram: int | None,
) -> str:
    """What one more step of SRAM would buy, by planning with it.

    again: the plan on another board within other RAM.
    """
    memory, kv_len, context = plan["memory"], plan["kv_len"], image.spec.context
    free = board.sram_bytes - memory["total"] - sum(board.reserve.values())
    if "stream" not in board.raw:
        if kv_len >= context:
            return "nothing: the cache already holds all positions that the model was made for"
        more = min(STEP // position_bytes(memory, kv_len), context - kv_len)
        beside = f"; {free:,} bytes are free already" if free > STEP else ""
        return f"{more:,} more positions of KV cache{beside}"
    larger = replace(board, sram_bytes=board.sram_bytes + STEP)
    try:
        then = again(larger, ram + STEP if ram else None)
    except TooSmallError:
        return ""
    now, less = (p["placement"]["total"]["read"] for p in (plan, then))
    if not now:
        return "nothing: all weights are resident"
    saved = f"{now - less:,.0f} fewer bytes from flash a token ({100 * (now - less) / now:.2g} %)"
    curve = board.raw["stream"].get("curve")
    if curve:
        saved += f", {1e3 * (now - less) * curve['seconds_per_byte']:.2g} ms by flash_curve.json"
    return saved
