"""The plan: every decision the generated C only spells out, checked against the board."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from sparseflash.base.errors import TooSmallError, UnsupportedError, UsageError
from sparseflash.image.formats import INPUTS, THRESHOLDS, Formats
from sparseflash.image.grids import grid, padded
from sparseflash.image.screen import check_rows
from sparseflash.image.sfm import Image, Section, last_vectors, vector_layout
from sparseflash.model.spec import Norm, Position
from sparseflash.plan.boards import Board, tier_kernels
from sparseflash.plan.memory import (
    ARRAYS,
    PART_BYTES,
    Size,
    bytes_of,
    memory_table,
    most_positions,
    sizes_of,
)
from sparseflash.plan.placement import (
    BY_TOKEN,
    Part,
    kinds_of,
    parts_of,
    pinned_bytes,
    place,
    summary,
)
from sparseflash.plan.reads import Reading
from sparseflash.sparsity.sites import Use

RUNTIME_VERSION = 9
PROCESS_BLOCKS, BOARD_BLOCKS = (8, 16, 32, 64), (2, 4)
"""Tokens that may go through the layers together, with an operating system and without."""
PROCESS_SHARE, BOARD_SHARE = 32, 4
"""One part in so many of the SRAM that is left may go to them."""
MOST_DRAFT = 7
"""Tokens drafted at once; the firmware's link keeps one more."""
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


def memory_sizes(
    image: Image,
    kv_len: int,
    head_rows: int = 0,
    block: int = 1,
    workers: int = 1,
    draft: int = 0,
) -> list[Size]:
    """The sizes of the arrays that the generated C declares."""
    inputs = [w for w in image.weights.values() if w.columns and w.role != "down"]
    return sizes_of(
        image.spec,
        kv_len,
        outputs=outputs_of(image, "wide"),
        block_outputs=outputs_of(image, "narrow"),
        rank=image.rank,
        most_rank=max([image.rank, *image.ranks], default=0),
        predicts=image.predictor_grid != "",
        signs=image.predictor_grid == "signs",
        input_columns=bool(inputs),
        scored=image.scored,
        head_rows=head_rows,
        block=block,
        workers=workers,
        draft=draft,
    )


def together(image: Image, board: Board, kv_len: int, head_rows: int, left: int) -> tuple[int, int]:
    """How many tokens of a prompt go through the layers together, and threads at most.

    The largest block whose arrays take a share of the ``left`` bytes: weights that
    could stay resident in it instead are read by every token, and a block helps prompts alone.
    """

    def size(block: int, workers: int) -> int:
        return memory_table(memory_sizes(image, kv_len, head_rows, block, workers))["total"]

    process = board.kind == "process"
    one = size(1, 1)
    room = left // (PROCESS_SHARE if process else BOARD_SHARE)
    most = int(board.raw.get("threads", 1))
    workers = most if size(1, most) - one <= room else 1
    blocks = PROCESS_BLOCKS if process else BOARD_BLOCKS
    fits = [b for b in blocks if size(b, workers) - one <= room]
    return max(fits, default=1), workers


def drafted(image: Image, board: Board, head_rows: int, left: int, block: int) -> int:
    """How many tokens greedy decoding drafts at once, 0 where that gains nothing.

    A draft saves reads and not computing: it gains where weights stream to a fast processor. On
    microcontrollers computing takes longer than reading (docs/BENCHMARKS.md). ``left``: bytes for
    resident weights. The draft's choices need the exact head.
    """
    streams = board.kind == "process" and "stream" in board.raw and image.size > left
    gains = streams and not head_rows
    return block - 1 if gains else 0


def stream_buffers(
    image: Image, board: Board, parts: list[Part], memory: dict[str, int], speculates: bool
) -> dict[str, Any]:
    """What streaming asks for; adds its buffers to ``memory``."""
    stream = board.raw["stream"]
    names = ("align", "gap", "ring_buffers", "ring_bytes", "pick_buffers", "pick_bytes")
    flash = {k: int(stream[k]) for k in names}
    flash["pick_reads"] = int(stream.get("pick_reads", flash["pick_buffers"]))
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
        memory["parts by columns or predictors"] = PART_BYTES * more * image.spec.n_layers
    memory["program and stack"] = int(stream.get("program_bytes", 0))
    memory["total"] = sum(v for k, v in memory.items() if k != "total")
    return flash


def working_memory(
    image: Image, board: Board, kv_len: int, head_rows: int = 0, speculates: bool = False
) -> dict[str, int]:
    """SRAM by category, bytes, and its ``total``, before any weight is resident."""
    memory = memory_table(memory_sizes(image, kv_len, head_rows))
    if "stream" in board.raw:
        stream_buffers(image, board, parts_of(image, {}, head_rows), memory, speculates)
    return memory


def _check_ram(
    memory: dict[str, int], board: Board, kv_len: int, ram: int, asked: int | None
) -> None:
    """Refuses what does not fit, and says what would."""
    kept = sum(board.reserve.values())
    if memory["total"] + kept <= ram:
        return
    worst = max((k for k in memory if k != "total"), key=lambda k: memory[k])
    beside = ", ".join(f"{k} {v:,}" for k, v in board.reserve.items())
    most = most_positions(memory, kv_len, ram - kept)
    least = memory["total"] + kept
    if asked is not None and least <= board.sram_bytes:
        advice = f"the least that works is --ram {least}"
    else:
        advice = f"--kv-len {most} fits" if most else "choose a smaller model"
    has = f"--ram leaves {ram - kept:,}" if asked is not None else f"has {ram - kept:,}"
    raise TooSmallError(
        f"board {board.id}: the plan takes {memory['total']:,} bytes of SRAM and the board "
        f"{has}{f' beside {beside}' if beside else ''}; the largest line "
        f"is {worst!r} with {memory[worst]:,}: {advice}"
    )


def _flash_and_parts(
    image: Image,
    board: Board,
    memory: dict[str, int],
    ram: int,
    use: Use,
    head_rows: int,
    flash: dict[str, Any],
) -> tuple[dict[str, Any], list[Part]]:
    """How weights are reached, and where each part lies; adds what is resident to ``memory``."""
    parts = parts_of(image, use, head_rows)
    if not flash:
        return {"mode": "map"}, parts
    budget = ram - memory["total"] - sum(board.reserve.values())
    reading = Reading.of(board.raw["stream"])
    parts = place(parts, budget, image.spec.tied_head, reading)
    _check_rows_fit(flash, parts, head_rows, board.id)
    del memory["total"]
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
            if p.pinned >= p.rows or p.kind in BY_TOKEN or p.kind.endswith("scales"):
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
        streamed = [p.fetched for p in parts if p.pinned < p.rows and p.kind not in BY_TOKEN]
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


def _offsets(layout: list[tuple[str, int]]) -> dict[str, int]:
    """Where each vector begins, in floats."""
    ends = np.cumsum([size for _, size in layout])
    return {name: int(end) - size for (name, size), end in zip(layout, ends)}


def check_ram(board: Board, ram: int | None) -> None:
    """Refuses a RAM budget on a board that reads its weights where they lie."""
    if ram is not None and "stream" not in board.raw:
        raise UsageError(
            f"board {board.id} maps its flash, so there is nothing that --ram could keep resident; "
            "leave it out, or shorten the KV cache with --kv-len"
        )
    if ram is not None and ram > board.sram_bytes:
        raise UsageError(
            f"--ram {ram:,} is more than board {board.id} has; it has {board.sram_bytes:,} bytes"
        )


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
    draft: int | None = None,
) -> dict[str, Any]:
    """The plan as plain data; ``thresholds`` float32 (layers, 12), ``ram`` bytes to stay within,
    ``head_rows`` the rows that a screened head computes exactly (0: the exact head),
    ``speculate`` the method whose prediction only reads early what the mask may ask for,
    ``draft`` the most tokens drafted at once (by default as many as gain on this board),
    ``use`` what a token is expected to read (by default everything).

    Raises:
        TooSmallError: SRAM or flash of the board does not hold it; names the line that overflows.
    """
    check_ram(board, ram)
    s = image.spec
    kv_len = min(kv_len or board.kv_len_default, s.context)
    if s.ffn_dim > 65536:
        raise UnsupportedError(f"{s.ffn_dim} neurons of a layer exceed 65536, the most of a mask")
    if image.size > board.flash_bytes:
        raise TooSmallError(
            f"board {board.id}: the image takes {image.size:,} bytes of flash and the board has "
            f"{board.flash_bytes:,}; choose a smaller model or a board with more flash"
        )
    head_rows = check_rows(head_rows, s.vocab, image.has("head_proxy"))
    room = min(ram or board.sram_bytes, board.sram_bytes)
    least = working_memory(image, board, kv_len, head_rows, bool(speculate))["total"]
    left = room - least - sum(board.reserve.values())
    block, workers = together(image, board, kv_len, head_rows, left)
    if draft is None:
        draft = drafted(image, board, head_rows, left, block)
    elif draft and head_rows:
        raise UsageError("drafts need the exact head; leave out --head, or give --draft 0")
    draft = min(draft, block - 1, MOST_DRAFT)
    sizes = memory_sizes(image, kv_len, head_rows, block, workers, draft)
    memory = memory_table(sizes)
    flash: dict[str, Any] = {}
    if "stream" in board.raw:
        flash = stream_buffers(
            image, board, parts_of(image, {}, head_rows), memory, bool(speculate)
        )
    _check_ram(memory, board, kv_len, room, ram)
    if speculate and not image.predictor_grid:
        raise UsageError(
            f"the image of {image.name} has no predictor of neurons to speculate with; give "
            "--speculate a prox, svd, lowrank or signs method and generate again"
        )
    flash, parts = _flash_and_parts(image, board, memory, room, use or {}, head_rows, flash)
    inputs = {(p.layer, p.input) for p in parts}
    for i, row in enumerate(np.asarray(thresholds)):
        limits = dict(zip(THRESHOLDS, row, strict=True))
        if any(limits[site] > 0 and (i, site) not in inputs for site in INPUTS):
            raise UnsupportedError(
                f"the image of {image.name} has rows where {method} needs columns; pack again"
            )
    needs_gate = [THRESHOLDS.index(site) for site in ("gate", "act", "up")]
    if not s.gated and np.asarray(thresholds)[:, needs_gate].any():
        raise UnsupportedError(
            f"method {method} looks at a gate, and {image.name} is a {s.family}: its FFN has no "
            "gate; take h, or a prox, svd, lowrank or signs method"
        )
    predictions = np.asarray(thresholds)[:, THRESHOLDS.index("predictor")]
    if any(t > 0 and not image.has(image.first_predictor, i) for i, t in enumerate(predictions)):
        raise UnsupportedError(
            f"the image of {image.name} has no predictor of neurons in a layer where method "
            f"{method} needs it; pack again"
        )
    at = sum(size for _, size in vector_layout(s, image.norms))
    return {
        "name": image.name,
        "board": board.id,
        "runtime_version": RUNTIME_VERSION,
        "model_sha": image.sha256.hex(),
        "method": method,
        "sparsity": sparsity,
        "kv_len": kv_len,
        "head_rows": head_rows,
        "block": block,
        "workers": workers,
        "draft": draft,
        "kinds": list(kinds_of(image)),
        "predictor_grid": image.predictor_grid,
        "rank": image.rank,
        "ahead": image.ahead,
        "factored": bool(image.ranks),
        "norms": list(image.norms),
        "top_k": image.top_k,
        "scored": image.scored,
        "speculate": speculate,
        "speculates": bool(speculate),
        "stored": {m: stored(image, m) for m in ("gate", "up", "down") if s.gated or m != "gate"},
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
            "experts": s.experts,
            "experts_normed": s.experts_normed,
            "gated": s.gated,
            "layernorm": s.norm is Norm.LAYER,
            "pre_norms": s.pre_norms,
            "qk_norm_whole": s.qk_norm_whole,
            "parallel": s.parallel,
            "learned_positions": s.position is Position.LEARNED,
            "out_bias": s.out_bias,
            "ffn_bias": s.ffn_bias,
            "head_bias": s.head_bias,
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
        "vectors": _offsets(vector_layout(s, image.norms)),
        "vector_layer": at,
        "last_vectors": _offsets(last_vectors(s)),
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
