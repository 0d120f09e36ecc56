"""The plan: every decision the generated C only spells out, checked against the board."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from sparseflash.base.errors import TooSmallError, UnsupportedError, UsageError
from sparseflash.image.formats import INPUTS, THRESHOLDS, Formats
from sparseflash.image.grids import grid, padded
from sparseflash.image.screen import check_rows
from sparseflash.image.sfm import Image, Section, vector_layout
from sparseflash.plan.boards import Board, tier_kernels
from sparseflash.plan.memory import ARRAYS, PART_BYTES, Size, bytes_of, memory_table, sizes_of
from sparseflash.plan.placement import Part, kinds_of, parts_of, pinned_bytes, place, summary
from sparseflash.plan.reads import Reading
from sparseflash.sparsity.sites import Use

RUNTIME_VERSION = 5
LEAST_KINDS = 6
"""Parts of a layer of a model by rows."""


def outputs_of(image: Image, sums: str) -> int:
    """The most outputs, in whole groups, of a matrix by columns whose sums are so held.

    sums: ``wide`` in 64 bits, ``narrow`` in 32: those of a block of columns that share scales, and
    those of columns that carry their own.
    """

    def held(name: str) -> bool:
        g = grid(name)
        own, blocks = not g.tables(1), g.tables(64) > 1
        return not own if sums == "wide" else own or blocks

    found = [w.outputs for w in image.weights.values() if w.columns and held(w.grid)]
    return padded(max(found, default=0))


def stored(image: Image, role: str) -> str:
    """``columns`` or ``rows`` when every layer stores a matrix so, ``both`` when they differ."""
    by = {w.columns for w in image.weights.values() if w.role == role}
    return "both" if len(by) > 1 else "columns" if by.pop() else "rows"


def memory_sizes(image: Image, kv_len: int, head_rows: int = 0) -> list[Size]:
    """The sizes of the arrays that the generated C declares."""
    inputs = [w for w in image.weights.values() if w.columns and w.role != "down"]
    return sizes_of(
        image.spec,
        kv_len,
        outputs=outputs_of(image, "wide"),
        block_outputs=outputs_of(image, "narrow"),
        rank=image.rank,
        most_rank=max([image.rank, *image.ranks], default=0),
        signs=image.predictor_grid == "signs",
        input_columns=bool(inputs),
        head_rows=head_rows,
    )


def _flash_and_parts(
    image: Image,
    board: Board,
    memory: dict[str, int],
    ram: int,
    use: Use,
    head_rows: int,
    speculates: bool,
) -> tuple[dict[str, Any], list[Part]]:
    """How weights are reached, and where each part lies; adds its buffers to ``memory``."""
    parts = parts_of(image, use, head_rows)
    stream = board.raw.get("stream")
    if stream is None:
        return {"mode": "map"}, parts
    if image.formats.layout != "split":
        raise UnsupportedError(
            f"board {board.id} streams its flash in blocks and needs the split layout; generate "
            "the model for this board again"
        )
    names = ("align", "gap", "ring_buffers", "ring_bytes", "pick_buffers", "pick_bytes")
    flash = {k: int(stream[k]) for k in names}
    flash["row_bytes"] = max(p.bytes for p in parts) // flash["align"] * flash["align"]
    flash["row_bytes"] += 3 * flash["align"]
    memory["flash buffers"] = (
        flash["ring_buffers"] * flash["ring_bytes"]
        + flash["pick_buffers"] * flash["pick_bytes"]
        + (3 if speculates else 2) * flash["row_bytes"]
    )
    flash["constants"] = 0
    if stream.get("constants"):
        start, end = image.offset(Section.VECTORS), image.offset(Section.ROPE)
        flash["constants"] = end + image.section(Section.ROPE).size - start
        memory["vectors and tables"] = flash["constants"]
    more = len(kinds_of(image)) - LEAST_KINDS
    if (
        more > 0 and "code and constants" in board.reserve
    ):  # which holds the parts of a model by rows
        memory["parts by columns or guesses"] = PART_BYTES * more * image.spec.n_layers
    memory["program and stack"] = int(stream.get("program_bytes", 0))
    del memory["total"]
    budget = ram - sum(memory.values()) - sum(board.reserve.values())
    reading = Reading.of(stream)
    parts = place(parts, budget, image.spec.tied_head, ram, board.id, reading)
    _check_rows_fit(flash, parts, head_rows, board.id)
    memory["pinned weights"] = flash["pinned_bytes"] = pinned_bytes(parts)
    memory["total"] = sum(memory.values())
    return {"mode": "stream", **flash}, parts


def _check_rows_fit(flash: dict[str, Any], parts: list[Part], head_rows: int, board: str) -> None:
    """Refuses a streamed row that no buffer holds; adds the longest of each ring to ``flash``."""
    picked = {"gate", "up", "down"} | ({"head"} if head_rows else set())
    edge = 2 * flash["align"]  # a read begins and ends at whole units
    for ring in ("ring", "pick"):
        longest = 0
        for p in parts:
            if p.pinned >= p.rows or p.kind == "embed" or p.kind.endswith("scales"):
                continue  # these have buffers of their own, of the longest row
            if ring == "pick" and p.kind not in picked and not p.input:
                continue
            longest = max(longest, p.stride)
            if p.stride + edge > flash[f"{ring}_bytes"]:
                raise TooSmallError(
                    f"board {board}: a row of {p.kind} of layer {p.layer} takes {p.stride:,} bytes "
                    f"and the {ring} buffers hold {flash[f'{ring}_bytes'] - edge:,}; raise "
                    f"{ring}_bytes in its board.yaml or choose a smaller model"
                )
        flash[f"{ring}_row"] = longest


def _expectation(parts: list[Part], board: Board) -> dict[str, Any]:
    """Placement by kind, and what reading it costs by the board's measured curve."""
    out = summary(parts)
    curve = board.raw["stream"].get("curve")
    if curve:
        b = curve["seconds_per_byte"]
        out["read_seconds"] = out["total"]["read"] * b
        streamed = [p.fetched for p in parts if p.pinned < p.rows and p.kind != "embed"]
        out["seconds_saved_by_a_megabyte"] = 1e6 * b * max(streamed, default=0.0)
    return out


def warnings(formats: Formats, board: Board) -> list[str]:
    """What is worth knowing before an image goes to a board, one sentence each."""
    has = tier_kernels(board.tier, board.tiers)
    out = []
    better = sorted(k[4:] for k in has if k in ("dot_q4", "dot_q8"))
    for name in sorted({formats.attn, formats.ffn, formats.embed}):
        if f"dot_{name}" not in has and better:
            out.append(
                f"format {name} is computed in plain C on board {board.id} (CPU {board.cpu}), "
                f"which has faster kernels for {' and '.join(better)}: choose one of them under "
                "formats"
            )
    return out


def make_plan(
    image: Image,
    board: Board,
    thresholds: np.ndarray,
    kv_len: int | None = None,
    method: str = "dense",
    sparsity: float = 0.0,
    ram: int | None = None,
    head_rows: int = 0,
    speculate: str = "",
    use: Use | None = None,
) -> dict[str, Any]:
    """The plan as plain data; ``thresholds`` float32 (layers, 12), ``ram`` bytes to stay within,
    ``head_rows`` the rows that a screened head computes exactly (0: the exact head),
    ``speculate`` the method whose guess only reads early what the mask of true values may ask for,
    ``use`` what a token is expected to read (by default everything).

    Raises:
        TooSmallError: SRAM or flash of the board does not hold it; names the line that overflows.
    """
    s = image.spec
    kv_len = min(kv_len or board.kv_len_default, s.context)
    if s.ffn_dim > 65535:
        raise UnsupportedError(f"ffn_dim {s.ffn_dim} exceeds the 65535 that masks can index")
    if image.size > board.flash_bytes:
        raise TooSmallError(
            f"board {board.id}: the image takes {image.size:,} bytes of flash and the board has "
            f"{board.flash_bytes:,}; choose a smaller model or a board with more flash"
        )
    head_rows = check_rows(head_rows, s.vocab, image.has("head_proxy"))
    sizes = memory_sizes(image, kv_len, head_rows)
    memory = memory_table(sizes)
    kept = sum(board.reserve.values())
    if memory["total"] + kept > board.sram_bytes:
        over = memory["total"] + kept - board.sram_bytes
        worst = max((k for k in memory if k != "total"), key=lambda k: memory[k])
        beside = ", ".join(f"{k} {v:,}" for k, v in board.reserve.items())
        a_position = memory["KV cache"] // kv_len + 8
        most = kv_len + (-over) // a_position
        advice = f"--kv-len {most} fits" if most >= 16 else "choose a smaller model"
        raise TooSmallError(
            f"board {board.id}: the plan takes {memory['total']:,} bytes of SRAM and the board has "
            f"{board.sram_bytes - kept:,}{f' beside {beside}' if beside else ''}; the largest line "
            f"is {worst!r} with {memory[worst]:,}: {advice}"
        )
    ram = min(ram or board.sram_bytes, board.sram_bytes)
    if speculate and not image.predictor_grid:
        raise UsageError(
            f"the image of {image.name} has nothing that guesses neurons to speculate with; give "
            "--speculate a prox, svd, lowrank or signs method and generate again"
        )
    flash, parts = _flash_and_parts(
        image, board, memory, ram, use or {}, head_rows, bool(speculate)
    )
    inputs = {(p.layer, p.input) for p in parts}
    for i, row in enumerate(np.asarray(thresholds)):
        limits = dict(zip(THRESHOLDS, row, strict=True))
        if any(limits[site] > 0 and (i, site) not in inputs for site in INPUTS):
            raise UnsupportedError(
                f"the image of {image.name} has rows where {method} needs columns; pack again"
            )
    guesses = np.asarray(thresholds)[:, THRESHOLDS.index("guess")]
    if any(t > 0 and not image.has("guess_gate", i) for i, t in enumerate(guesses)):
        raise UnsupportedError(
            f"the image of {image.name} has nothing that guesses neurons in a layer where method "
            f"{method} needs it; pack again"
        )
    vectors: dict[str, int] = {}
    at = 0
    for name, size in vector_layout(s):
        vectors[name] = at
        at += size
    return {
        "name": image.name,
        "board": board.id,
        "runtime_version": RUNTIME_VERSION,
        "model_sha": image.sha256.hex(),
        "method": method,
        "sparsity": sparsity,
        "kv_len": kv_len,
        "head_rows": head_rows,
        "kinds": list(kinds_of(image)),
        "predictor_grid": image.predictor_grid,
        "rank": image.rank,
        "ahead": image.formats.ahead,
        "factored": bool(image.ranks),
        "speculate": speculate,
        "speculates": bool(speculate),
        "stored": {m: stored(image, m) for m in ("gate", "up", "down")},
        "score_scale": float(np.float32(s.score_scale * 1.4426950408889634)),
        "model": {
            "family": s.family,
            "vocab": s.vocab,
            "dim": s.dim,
            "ffn_dim": s.ffn_dim,
            "n_layers": s.n_layers,
            "n_heads": s.n_heads,
            "n_kv_heads": s.n_kv_heads,
            "head_dim": s.head_dim,
            "activation": s.activation.value,
            "gate_inputs": s.gate_inputs,
            "act_threshold": s.act_threshold,
            "own_thresholds": s.own_thresholds,
            "norm_eps": s.norm_eps,
            "qk_norm": s.qk_norm,
            "sandwich_norms": s.sandwich_norms,
            "attn_bias": s.attn_bias,
            "embed_scale": s.embed_scale,
            "eos_ids": list(s.eos_ids),
        },
        "image": {
            "file": image.path.name,
            "bytes": image.size,
            "tokens": image.offset(Section.TOKENS),
            "vectors": image.offset(Section.VECTORS),
            "rope": image.offset(Section.ROPE),
        },
        "vectors": vectors,
        "vector_layer": at,
        "windows": any(x.window for x in s.layers),
        "layers": [{"window": s.layers[i].window} for i in range(s.n_layers)],
        "thresholds": [[float(v) for v in row] for row in np.asarray(thresholds, np.float32)],
        "sizes": [asdict(size) for size in sizes],
        "arrays": [asdict(a) for a in ARRAYS if a.name in bytes_of(sizes)],
        "arena_bytes": sum(bytes_of(sizes).values()),
        "memory": memory,
        "flash": flash,
        "parts": [asdict(p) for p in parts],
        "placement": _expectation(parts, board) if flash["mode"] == "stream" else {},
    }
