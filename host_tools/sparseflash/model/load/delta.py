"""A distilled model as a difference to its base: 4-bit codes, entropy-coded, and thresholds.

The FFN of the distilled model is on grid s4: 32 weights share a signed float16 ``d`` and have
codes q in -8..7, w = d*q. The groups run along the axis that stays whole when a neuron or an
input is read: along the outputs for gate and down (read by columns), along the inputs for up
(read by rows). ``gate`` is therefore handled here as (dim, ffn), ``up`` as (ffn, dim) and ``down``
as (ffn, dim): always one line for what is read at once, groups inside the line.

The decoder owns the base weights w0, so the file says only what they do not:

1. ``d0`` of a group: s is its value of largest magnitude (the first at ties);
   d0 = float16(-s / 8), so that s has code -8. A group of zeros has d0 = 2^-14.
2. A scale code e in -4..4 for each group: d = float16(float32(d0) * (16 + e) / 16).
3. v = w0 / float32(d) is where the base weight lies on that grid, f = floor(v), and the symbol
   of a weight is q - f + 8, in 0..15. How likely a symbol is depends on the fraction v - f (eight
   bins) and on how far its line moved (four classes, two bits a line): 32 tables a matrix.

All of this is IEEE arithmetic on float32 in a fixed order, hence equal everywhere; a CRC-32 of
the codes and scales is checked after decoding. The coder is ``constriction``'s range coder.

File: a NumPy ``.npz`` without pickles. ``meta`` is JSON as bytes: format, base (sha256), shape,
budgets, figures. For every layer l and matrix m: ``words.l.m`` uint32 (coded symbols),
``tables.l.m`` uint16 (32, 16), ``classes.l.m`` uint8 (packed two bits a line), ``e_words.l.m``,
``e_table.l.m`` (9,). Then ``threshold.SITE`` float16 (layers, n) and, for every budget, float32
``scale.BUDGET`` (layers, 3), ``attn_norm.BUDGET`` and ``ffn_norm.BUDGET`` (layers, dim) and
``final_norm.BUDGET`` (dim,).
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparseflash.base.errors import InputError
from sparseflash.base.files import write_bytes
from sparseflash.base.limits import round_limits
from sparseflash.base.progress import each
from sparseflash.model.spec import Model, S4Blocks, S4Columns, Thresholds, as_float32

FORMAT = 2
GROUP = 32
MATRICES = ("gate", "up", "down")
SITES = ("x", "act", "h")
NORMS = ("attn_norm", "ffn_norm", "final_norm")
SCALE_CODES = 4
"""Scale codes are -4..4, in sixteenths of d0."""
BINS = 8
CLASSES = 4
SYMBOLS = 16
OFFSET = 8


@dataclass
class Codes:
    """One matrix by lines: ``q`` int8 (lines, n) in -8..7, ``e`` int8 (lines, n/32) in -4..4."""

    q: np.ndarray
    e: np.ndarray


@dataclass
class Delta:
    """What distillation made: codes, thresholds and norms, before or after coding.

    ``codes[l][m]``; ``threshold[site]`` float16 (layers, n); ``scale[budget]`` float32
    (layers, 3), in the order x, act, h; ``norms[budget][name]`` float32, (layers, dim) and (dim,).
    """

    codes: list[dict[str, Codes]]
    threshold: dict[str, np.ndarray]
    scale: dict[int, np.ndarray]
    norms: dict[int, dict[str, np.ndarray]]
    meta: dict[str, Any] = field(default_factory=dict)

    def thresholds(self, layer: int, budget: int) -> Thresholds:
        """Thresholds of a layer under a budget (percent of FFN bytes), rounded to bytes."""
        t = [
            self.threshold[s][layer].astype(np.float32) * self.scale[budget][layer, i]
            for i, s in enumerate(SITES)
        ]
        return Thresholds(*map(round_limits, t))


def base_scales(lines: np.ndarray) -> np.ndarray:
    """d0 of each group of 32 along the last axis of float32 weights, float16."""
    groups = lines.reshape(*lines.shape[:-1], -1, GROUP)
    at = np.abs(groups).argmax(axis=-1)
    s = np.take_along_axis(groups, at[..., None], axis=-1)[..., 0]
    d = (s / np.float32(-8)).astype(np.float16)
    return np.where(d == 0, np.float16(2.0**-14), d).astype(np.float16)


def scales(d0: np.ndarray, e: np.ndarray) -> np.ndarray:
    """d of each group, float16, from d0 and the scale codes."""
    factor = (16 + e.astype(np.float32)) / np.float32(16)
    return (d0.astype(np.float32) * factor).astype(np.float16)


def positions(lines: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Where weights lie on the grid of their group, float32, shape of ``lines``."""
    return lines / np.repeat(d.astype(np.float32), GROUP, axis=-1)


def regrid(lines: np.ndarray) -> Codes:
    """Float32 weights (lines, n) rounded to s4 with their own scales (every e = 0)."""
    d = base_scales(lines)
    q = np.clip(np.rint(positions(lines, d)), -8, 7).astype(np.int8)
    return Codes(q, np.zeros(d.shape, np.int8))


def lines_of(layer: Any, matrix: str) -> np.ndarray:
    """A matrix of a base layer as float32 lines, see the module's docstring."""
    w = as_float32({"gate": layer.gate_proj, "up": layer.up_proj, "down": layer.down_proj}[matrix])
    return w if matrix == "up" else np.ascontiguousarray(w.T)


def _contexts(v: np.ndarray, low: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Number of the table of each weight, 0..31."""
    part = np.minimum((v - low) * np.float32(BINS), np.float32(BINS - 1)).astype(np.uint8)
    return classes[:, None] * np.uint8(BINS) + part


def _classes(v: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Lines in four classes by how far they moved, a quarter each. uint8 (lines,)."""
    moved = np.square(q - v).mean(axis=1)
    return np.searchsorted(np.quantile(moved, (0.25, 0.5, 0.75)), moved).astype(np.uint8)


def _model(table: np.ndarray) -> Any:
    import constriction

    p = table.astype(np.float32) + np.float32(1e-3)
    return constriction.stream.model.Categorical(p / p.sum(dtype=np.float32), perfect=False)


def _table(symbols: np.ndarray, size: int) -> np.ndarray:
    """Counts scaled to at most 65535, never 0 where a symbol occurs. uint16 (size,)."""
    n = np.bincount(symbols, minlength=size)
    if n.max() > 0xFFFF:
        n = np.where(n > 0, np.maximum(1, n * 0xFFFF // n.max()), 0)
    return n.astype(np.uint16)


def encode(lines: np.ndarray, codes: Codes) -> dict[str, np.ndarray]:
    """Streams of one matrix against its base.

    Raises:
        ValueError: a code is more than 8 below or 7 above the base weight; ``fit`` avoids it.
    """
    import constriction

    d = scales(base_scales(lines), codes.e)
    v = positions(lines, d)
    low = np.floor(v)
    symbols = codes.q.astype(np.int32) - low.astype(np.int32) + OFFSET
    if symbols.min() < 0 or symbols.max() >= SYMBOLS:
        raise ValueError("a code lies too far from the base weight")
    classes = _classes(v, codes.q)
    context = _contexts(v, low, classes).reshape(-1)
    order = np.argsort(context, kind="stable")
    ends = np.cumsum(np.bincount(context, minlength=CLASSES * BINS))
    sorted_symbols = symbols.reshape(-1)[order].astype(np.int32)
    coder = constriction.stream.queue.RangeEncoder()
    tables = np.zeros((CLASSES * BINS, SYMBOLS), np.uint16)
    start = 0
    for c, end in enumerate(ends):
        if end > start:
            tables[c] = _table(sorted_symbols[start:end], SYMBOLS)
            coder.encode(sorted_symbols[start:end], _model(tables[c]))
        start = int(end)
    e = codes.e.reshape(-1).astype(np.int32) + SCALE_CODES
    e_coder = constriction.stream.queue.RangeEncoder()
    e_table = _table(e, 2 * SCALE_CODES + 1)
    e_coder.encode(e, _model(e_table))
    padded = np.zeros(-(-len(classes) // 4) * 4, np.uint8)
    padded[: len(classes)] = classes
    packed = (padded.reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8)).sum(axis=1)
    return {
        "words": coder.get_compressed(),
        "tables": tables,
        "classes": packed.astype(np.uint8),
        "e_words": e_coder.get_compressed(),
        "e_table": e_table,
    }


def decode(lines: np.ndarray, streams: Mapping[str, np.ndarray]) -> Codes:
    """The codes of one matrix from its streams and its base weights (lines, n)."""
    import constriction

    n_lines, n = lines.shape
    e_coder = constriction.stream.queue.RangeDecoder(streams["e_words"])
    e = e_coder.decode(_model(streams["e_table"]), n_lines * n // GROUP) - SCALE_CODES
    e = e.astype(np.int8).reshape(n_lines, n // GROUP)
    d = scales(base_scales(lines), e)
    v = positions(lines, d)
    low = np.floor(v)
    shifts = np.array([0, 2, 4, 6], np.uint8)
    classes = ((streams["classes"][:, None] >> shifts) & 3).reshape(-1)[:n_lines]
    context = _contexts(v, low, classes).reshape(-1)
    order = np.argsort(context, kind="stable")
    counts = np.bincount(context, minlength=CLASSES * BINS)
    coder = constriction.stream.queue.RangeDecoder(streams["words"])
    parts = [coder.decode(_model(streams["tables"][c]), int(k)) for c, k in enumerate(counts) if k]
    symbols = np.empty(n_lines * n, np.int32)
    symbols[order] = np.concatenate(parts)
    q = symbols.reshape(n_lines, n) - OFFSET + low.astype(np.int32)
    return Codes(q.astype(np.int8), e)


def fit(lines: np.ndarray, q: np.ndarray, e: np.ndarray) -> Codes:
    """Codes moved into the range that symbols can say; ``lines`` are the base's weights."""
    low = np.floor(positions(lines, scales(base_scales(lines), e)))
    q = np.clip(q, low - OFFSET, low + SYMBOLS - 1 - OFFSET)
    return Codes(np.clip(q, -8, 7).astype(np.int8), e.astype(np.int8))


def _crc(codes: list[dict[str, Codes]]) -> int:
    crc = 0
    for layer in codes:
        for m in MATRICES:
            crc = zlib.crc32(layer[m].q.tobytes(), crc)
            crc = zlib.crc32(layer[m].e.tobytes(), crc)
    return crc


def write_delta(path: Path, delta: Delta, base: list[dict[str, np.ndarray]]) -> int:
    """Writes the file whole or not at all; returns its size in bytes.

    ``base[l][m]`` are the float32 lines of the base model.
    """
    arrays: dict[str, np.ndarray] = {}
    for i, layer in enumerate(delta.codes):
        for m in MATRICES:
            for name, a in encode(base[i][m], layer[m]).items():
                arrays[f"{name}.{i}.{m}"] = a
    for s in SITES:
        arrays[f"threshold.{s}"] = delta.threshold[s].astype(np.float16)
    for budget, scale in delta.scale.items():
        arrays[f"scale.{budget}"] = scale.astype(np.float32)
        for name in NORMS:
            arrays[f"{name}.{budget}"] = delta.norms[budget][name].astype(np.float32)
    meta = delta.meta | {
        "format": FORMAT,
        "crc32": _crc(delta.codes),
        "layers": len(delta.codes),
        "budgets": sorted(delta.scale),
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta, sort_keys=True).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    # Tables and thresholds shrink a little more; coded words do not.
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(buffer) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out,
    ):
        for info in source.infolist():
            out.writestr(zipfile.ZipInfo(info.filename), source.read(info), zipfile.ZIP_DEFLATED)
    write_bytes(path, packed.getvalue())
    return len(packed.getvalue())


def read_delta(path: Path, base: list[dict[str, np.ndarray]]) -> Delta:
    """Reads and decodes a delta against the float32 lines of its base.

    Raises:
        InputError: missing, damaged, of another format, or made from another base.
    """
    try:
        import constriction  # noqa: F401
    except ImportError as e:
        raise InputError(f"{path}: reading it needs the package constriction; install it") from e
    try:
        with np.load(path, allow_pickle=False) as z:
            a = {k: z[k] for k in z.files}
        meta = json.loads(a["meta"].tobytes())
    except Exception as e:
        raise InputError(
            f"{path}: not a whole delta file ({type(e).__name__}); fetch it again"
        ) from e
    if meta.get("format") != FORMAT:
        raise InputError(
            f"{path}: delta format {meta.get('format')} where this tool reads {FORMAT}; "
            "use the version of the tool that made it"
        )
    if meta.get("layers") != len(base):
        raise InputError(f"{path}: {meta.get('layers')} layers, the base model has {len(base)}")
    try:
        codes = [
            {
                m: decode(
                    base[i][m],
                    {
                        n: a[f"{n}.{i}.{m}"]
                        for n in ("words", "tables", "classes", "e_words", "e_table")
                    },
                )
                for m in MATRICES
            }
            for i in each("reading layers of the delta", range(len(base)))
        ]
        delta = Delta(
            codes,
            {s: a[f"threshold.{s}"] for s in SITES},
            {int(b): a[f"scale.{b}"] for b in meta["budgets"]},
            {int(b): {n: a[f"{n}.{b}"] for n in NORMS} for b in meta["budgets"]},
            meta,
        )
    except InputError:
        raise
    except Exception as e:
        raise InputError(f"{path}: damaged, or made from another base ({e}); fetch it again") from e
    if _crc(codes) != meta["crc32"]:
        raise InputError(f"{path}: does not belong to this base model (CRC differs)")
    return delta


def apply_delta(base: Model, path: Path, budget: int | None = None) -> Model:
    """The distilled model: the base with its FFN, norms and thresholds replaced.

    ``budget`` is the percent of FFN bytes whose thresholds are taken; None takes the smallest.

    Raises:
        InputError: the file is damaged, belongs to another base or has no such budget.
    """
    if any(layer.gate_proj is None for layer in base.layers):
        raise InputError(f"{path}: the base model has no gate projection; use the model it names")
    lines = [{m: lines_of(layer, m) for m in MATRICES} for layer in base.layers]
    delta = read_delta(path, lines)
    if budget is None:
        budget = min(delta.scale)
    if budget not in delta.scale:
        known = ", ".join(str(b) for b in sorted(delta.scale))
        raise InputError(f"{path}: no thresholds for {budget} % of the bytes; it has {known}")
    layers = []
    norms = delta.norms[budget]
    for i, layer in enumerate(base.layers):
        d = {m: scales(base_scales(lines[i][m]), delta.codes[i][m].e) for m in MATRICES}
        c = delta.codes[i]
        layers.append(
            replace(
                layer,
                attn_norm=norms["attn_norm"][i],
                ffn_norm=norms["ffn_norm"][i],
                gate_proj=S4Columns(
                    np.ascontiguousarray(c["gate"].q.T), np.ascontiguousarray(d["gate"].T)
                ),
                up_proj=S4Blocks(c["up"].q, d["up"]),
                down_proj=S4Columns(
                    np.ascontiguousarray(c["down"].q.T), np.ascontiguousarray(d["down"].T)
                ),
                thresholds=delta.thresholds(i, budget),
            )
        )
    # What is derived from the model is kept by its hash, so this one needs its own.
    sha = hashlib.sha256(base.source.get("sha256", "").encode() + path.read_bytes())
    sha.update(str(budget).encode())
    source = base.source | {
        "delta": path.name,
        "budget": str(budget),
        "base_sha256": base.source.get("sha256", ""),
        "sha256": sha.hexdigest(),
    }
    spec = replace(base.spec, own_thresholds=True)
    return replace(base, spec=spec, layers=layers, final_norm=norms["final_norm"], source=source)
