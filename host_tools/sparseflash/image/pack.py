"""The writer of the flash image ``model.sfm`` (docs/SPEC.md, "Flash image")."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from sparseflash.base.errors import InputError, UnsupportedError
from sparseflash.base.files import write_bytes
from sparseflash.base.limits import pack_limits
from sparseflash.base.progress import each
from sparseflash.image.bfp import GROUP
from sparseflash.image.formats import FACTORED, MET, Formats, shape_of
from sparseflash.image.grids import Blocks, grid, grid_of, quantize
from sparseflash.image.needs import Needs, Pairs
from sparseflash.image.screen import proxy_of
from sparseflash.image.sfm import (
    ALIGN,
    DIMS,
    ENTRY,
    HEADER,
    MAGIC,
    VERSION,
    Section,
    last_vectors,
    vector_layout,
)
from sparseflash.image.weights import Weight
from sparseflash.model.rope import frequencies
from sparseflash.model.spec import (
    Layer,
    LayerSpec,
    Matrix,
    Model,
    ModelSpec,
    Position,
    S4Columns,
    as_float32,
)


def _rope_increments(layer: LayerSpec, head_dim: int) -> np.ndarray:
    """Phase added for one position, in 2^-32 turns, for each pair: uint32 (head_dim/2,)."""
    turns = frequencies(layer, head_dim) / (2.0 * np.pi)
    return np.rint(turns * 2.0**32).astype(np.uint64).astype(np.uint32)


def check_device_support(spec: ModelSpec) -> None:
    """Refuses what the device runtime does not compute, naming it."""
    reasons = []
    for name, value in (("dim", spec.dim), ("heads * head_dim", spec.q_dim)):
        if value % GROUP:
            reasons.append(f"{name} = {value}, not a multiple of {GROUP}")
    if spec.head_dim % 4:
        reasons.append(f"head_dim = {spec.head_dim}, not a multiple of 4")
    if spec.dim >= 2**16:
        reasons.append(f"dim = {spec.dim}, not below 65536")
    if reasons:
        raise UnsupportedError(
            f"{spec.family}: the device runtime does not compute {', '.join(reasons)}; "
            "the host's perplexity and calibration still can"
        )


NEURONS = ("gate_bias", "up_bias", "act_threshold", "h_threshold", "h_column_norm")
"""Vectors of a layer with a value for each neuron."""


def _vector(owner: Layer | Model, name: str, size: int) -> np.ndarray | None:
    """A vector of a layer or the model; a LayerNorm without a bias has one of zeros."""
    found: np.ndarray | None
    if name.endswith("_threshold"):
        own = owner.thresholds if isinstance(owner, Layer) else None
        found = None if own is None else getattr(own, name.removesuffix("_threshold"))
    elif name.endswith("_column_norm"):
        weights = as_float32(getattr(owner, f"{MET[name.removesuffix('_column_norm')]}_proj"))
        found = np.linalg.norm(weights.astype(np.float64), axis=0)
    else:
        found = getattr(owner, name)
    if found is None and name.endswith("_norm_bias"):
        return np.zeros(size, np.float32)
    return found


def _floats(model: Model, order: np.ndarray | None, norms: tuple[str, ...]) -> np.ndarray:
    """The section VECTORS, float32 and bytes of thresholds."""
    out: list[np.ndarray] = []

    def add(owner: Layer | Model, where: str, layout: list[tuple[str, int]], i: int = 0) -> None:
        for name, words in layout:
            limits = name.endswith("_threshold")
            size = 4 * (words - 1) if limits else words
            v = _vector(owner, name, size)
            if v is None or v.size != size:
                raise InputError(f"{where}{name} should hold {size} values")
            v = np.asarray(v, dtype="<f4").reshape(-1)
            v = v[order[i]] if order is not None and name in NEURONS else v
            if limits:
                base, codes = pack_limits(v)
                out.append(np.array([base], "<u4").view("<f4"))
                v = codes.view("<f4")
            out.append(v)

    for i, layer in enumerate(model.layers):
        add(layer, f"layer {i}: ", vector_layout(model.spec, norms), i)
    add(model, "", last_vectors(model.spec))
    return np.concatenate(out)


class _Data:
    """Weights as they are laid one after the other, and their table."""

    def __init__(self) -> None:
        self.weights: list[Weight] = []
        self.chunks: list[bytes] = []
        self.size = 0

    def align(self) -> None:
        """What follows begins at a whole unit."""
        extra = -self.size % ALIGN
        self.chunks.append(b"\0" * extra)
        self.size += extra

    def items(self, w: Weight, items: np.ndarray) -> None:
        """The items of a matrix, one after the other."""
        data, size = items.tobytes(), items.shape[1]
        place = {"at": self.size, "stride": size, "size": size, "count": len(items)}
        self.weights.append(replace(w, **place, crc=zlib.crc32(data)))
        self.chunks.append(data)
        self.size += len(data)

    def raw(
        self, role: str, layer: int, name: str, items: np.ndarray, outputs: int, inputs: int
    ) -> None:
        """Rows of a grid ``name`` that is not one of image/grids, or that are packed already."""
        w = Weight(role, layer, name, False, 0, 0, 0, 0, outputs, inputs, 0)
        self.items(w, items)

    def matrix(self, role: str, layer: int, blocks: Blocks, columns: bool = False) -> None:
        """A matrix, and after it the tables of its columns."""
        self.items(*_item(role, layer, blocks, columns))
        if columns:
            self.tables(role, layer, blocks)

    def tables(self, role: str, layer: int, blocks: Blocks) -> None:
        """Scales of columns, where these do not carry their own."""
        g = grid_of(blocks)
        tables = g.pack_tables(blocks)
        if tables.size:
            self.raw(f"{role}_scales", layer, g.name, tables, *blocks.shape)


def _item(role: str, layer: int, blocks: Blocks, columns: bool) -> tuple[Weight, np.ndarray]:
    """A matrix as items and their row of the table, whose place is not known yet."""
    g = grid_of(blocks)
    items = g.pack_columns(blocks) if columns else g.pack_rows(blocks)
    shift = g.shift(blocks) if columns else 0
    return Weight(role, layer, g.name, columns, 0, 0, 0, 0, *blocks.shape, 0, shift), items


def _lay_layer(
    data: _Data,
    layer: Layer,
    i: int,
    formats: Formats,
    needs: Needs,
    order: np.ndarray | None,
    spec: ModelSpec,
) -> None:
    """The weights of one layer, in the order of their use."""

    def on_grid(name: str, matrix: Matrix | None, columns: bool) -> Blocks:
        assert matrix is not None
        return quantize(matrix, formats.grid_of(name), f"layer {i} {name}_proj", columns)

    data.align()
    for name in ("q", "k", "v", "o"):
        columns = needs.by_columns(i, "o" if name == "o" else "qkv")
        if not needs.rank_of(i, name):
            data.matrix(name, i, on_grid(name, getattr(layer, f"{name}_proj"), columns), columns)
    if layer.router is not None:
        router = quantize(layer.router, formats.embed, f"layer {i} router")
        data.matrix("router", i, router)
    by_columns = {m: needs.by_columns(i, m) for m in ("gate", "up") if spec.gated or m == "up"}
    by_columns["down"] = needs.down == "columns"
    ffn = {m: on_grid(m, getattr(layer, f"{m}_proj"), c) for m, c in by_columns.items()}
    if order is not None:
        ffn = _reordered(ffn, order[i])
    whole = [m for m in ffn if not needs.rank_of(i, m)]
    data.align()
    items = {m: _item(m, i, ffn[m], by_columns[m]) for m in whole}
    if by_columns["down"]:  # columns of the last group that no neuron has
        items["down"] = (items["down"][0], items["down"][1][: spec.ffn_dim])
    for m in whole:
        data.items(*items[m])
        if by_columns[m] and m != "down":
            data.tables(m, i, ffn[m])
    if by_columns["down"]:
        data.align()
        data.tables("down", i, ffn["down"])
    if needs.factors is not None:
        data.align()
        _lay_factors(data, needs.factors, i, formats, order, spec)
    if needs.predicts(i):
        assert needs.predictor is not None
        data.align()
        neurons = slice(None) if order is None else order[i]
        for role, name, stored, inputs in needs.predictor.parts(layer, i):
            rows = stored if role == "predictor_b" else stored[neurons]
            data.raw(role, i, name, rows, len(rows), inputs)


def _lay_factors(
    data: _Data,
    f: Pairs,
    i: int,
    formats: Formats,
    order: np.ndarray | None,
    spec: ModelSpec,
) -> None:
    """B, then A, of each projection in factors."""
    for name in FACTORED:
        if not f.rank(i, name):
            continue
        b, a = f.rows[i, name]
        if order is not None and name in ("gate", "up"):
            a = a[order[i]]
        fmt, (outputs, inputs) = formats.grid_of(name), shape_of(spec, name)
        data.raw(f"{name}_b", i, fmt, b, len(b), inputs)
        data.raw(name, i, fmt, a, outputs, len(b))


def _reordered(ffn: dict[str, Blocks], order: np.ndarray) -> dict[str, Blocks]:
    """The blocks with neuron order[i] of each in place i; ``order`` stays within groups of 32."""
    n = len(order)
    file = np.arange(n)
    if not np.array_equal(np.sort(order), file) or (order // GROUP != file // GROUP).any():
        raise InputError(
            "the neuron order leaves groups of 32 or names one twice; measure it again"
        )
    down = ffn["down"]
    columns = np.concatenate([order, np.arange(n, down.q.shape[1])])
    moved = {"q": down.q[:, columns]}
    if isinstance(down, S4Columns):
        moved["d"] = down.d[:, columns]
    rows: dict[str, Blocks] = {m: b.rows(order) for m, b in ffn.items() if m != "down"}
    return {**rows, "down": replace(down, **moved)}  # type: ignore[arg-type]


def _token_table(model: Model) -> bytes:
    """u32 count, u32 offsets (count+1), then the bytes of every token."""
    texts = [
        model.tokenizer.token_bytes(i) if model.tokenizer is not None else b""
        for i in range(model.spec.vocab)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in texts])]).astype("<u4")
    return struct.pack("<I", len(texts)) + offsets.tobytes() + b"".join(texts)


def pack(
    model: Model,
    path: Path,
    formats: Formats | None = None,
    needs: Needs | None = None,
    order: np.ndarray | None = None,
) -> None:
    """Quantizes ``model`` and writes the flash image; the file appears whole or not at all.

    needs: what the methods ask of it.
    order: int (layers, ffn), old numbers of the neurons in their new places, when the formats ask
    for one.
    """
    formats, needs, spec = formats or Formats(), needs or Needs(), model.spec
    needs.check(spec, formats)
    if (order is None) != (formats.order == "file"):
        raise InputError(f"neuron order {formats.order!r} needs its permutations, and only it")
    check_device_support(spec)
    if spec.head_bias and formats.screened:
        raise UnsupportedError(f"{spec.family} has a bias on its logits: no screened head")
    meta = {
        "name": model.name,
        "source": model.source,
        "spec": asdict(spec),
        "formats": asdict(formats),
        "needs": needs.plain(),
    }
    turns = spec.position is Position.ROPE
    still = LayerSpec(rope_dims=0)  # learned positions are added to the embedding
    thetas = [_rope_increments(s if turns else still, spec.head_dim) for s in spec.layers]
    sections = {
        Section.META: json.dumps(meta, sort_keys=True, ensure_ascii=False).encode(),
        Section.TOKENS: _token_table(model),
        Section.VECTORS: _floats(model, order, needs.norms).tobytes(),
        Section.ROPE: np.concatenate(thetas).astype("<u4").tobytes(),
    }
    data = _Data()
    embed = quantize(model.embed, formats.embed, "embed")
    data.matrix("embed", 0, embed)
    head = embed
    if model.head is not None:
        data.align()
        head = quantize(model.head, formats.embed, "head")
        data.matrix("head", 0, head)
    if formats.screened:
        data.align()
        data.matrix("head_proxy", 0, proxy_of(head))
    if spec.position is Position.LEARNED:
        assert model.positions is not None
        data.align()
        rows = model.positions[spec.position_offset :][: spec.context]
        data.matrix("positions", 0, quantize(rows, formats.embed, "positions"))
    for i, layer in enumerate(each("packing layers", model.layers)):
        _lay_layer(data, layer, i, formats, needs, order, spec)
    _write(path, spec, formats, sections, data)  # whole, or not at all


def _dims(spec: ModelSpec, formats: Formats) -> bytes:
    values = [
        spec.vocab,
        spec.dim,
        spec.ffn_dim,
        spec.n_layers,
        spec.n_heads,
        spec.n_kv_heads,
        spec.head_dim,
        spec.context,
        grid(formats.attn).bits,
        grid(formats.ffn).bits,
        grid(formats.embed).bits,
        int(spec.tied_head),
    ]
    return DIMS.pack(*values, *([0] * (16 - len(values))))


def _write(
    path: Path, spec: ModelSpec, formats: Formats, sections: dict[Section, bytes], data: _Data
) -> None:
    """Header, dimensions, section table, sections; the table of weights says where in the file."""
    table_at = HEADER.size + DIMS.size
    sizes = {kind: len(body) for kind, body in sections.items()}
    sizes |= {Section.WEIGHTS: len(data.weights) * len(data.weights[0].packed())}
    sizes |= {Section.DATA: data.size}
    places, offset = {}, table_at + ENTRY.size * len(sizes)
    for kind, size in sizes.items():
        places[kind] = offset = -(-offset // ALIGN) * ALIGN
        offset += size
    moved = [replace(w, at=places[Section.DATA] + w.at) for w in data.weights]
    bodies = sections | {Section.WEIGHTS: b"".join(w.packed() for w in moved)}
    bodies |= {Section.DATA: b"".join(data.chunks)}
    body = bytearray(_dims(spec, formats))
    for kind, at in places.items():
        crc = zlib.crc32(bodies[kind])
        body += ENTRY.pack(kind, 0, at, sizes[kind], crc, ALIGN)
    for kind, at in places.items():
        body += b"\0" * (at - HEADER.size - len(body)) + bodies[kind]
    sha = hashlib.sha256(body).digest()
    header = HEADER.pack(
        *(MAGIC, VERSION, HEADER.size, 0, len(sizes), HEADER.size + len(body), table_at, 0, sha)
    )
    write_bytes(path, header + bytes(body))
