"""The flash image ``model.sfm``: writer and checked reader (docs/SPEC.md, "Flash image")."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from sparseflash.base.errors import InputError, UnsupportedError
from sparseflash.base.files import write_bytes
from sparseflash.image.factors import Factors
from sparseflash.image.formats import BITS, BY_ROWS, FACTORED, MATRICES, Formats, shape_of
from sparseflash.image.grids import GROUP, Blocks, grid, grid_of, padded, quantize
from sparseflash.image.predictor import Predictor
from sparseflash.image.proxy import pack_proxy, pack_signs, proxy_blocks, unpack_proxy
from sparseflash.image.screen import proxy_of
from sparseflash.image.weights import Weight, read_table
from sparseflash.model.rope import frequencies
from sparseflash.model.spec import (
    Activation,
    Layer,
    LayerSpec,
    Matrix,
    Model,
    ModelSpec,
    Norm,
    Position,
    S4Columns,
    as_float32,
)

MAGIC = b"SFM1"
VERSION = 2
HEADER = struct.Struct("<4sHHIIQII32s")  # 64 bytes
DIMS = struct.Struct("<16I")
ENTRY = struct.Struct("<IIQQII")
ALIGN = 64


class Section(IntEnum):
    META = 1
    TOKENS = 2
    VECTORS = 3
    ROPE = 4
    WEIGHTS = 5
    """The table of weights."""
    DATA = 6
    """What it describes."""


def _rope_increments(layer: LayerSpec, head_dim: int) -> np.ndarray:
    """Phase added for one position, in 2^-32 turns, for each pair: uint32 (head_dim/2,)."""
    turns = frequencies(layer, head_dim) / (2.0 * np.pi)
    return np.rint(turns * 2.0**32).astype(np.uint64).astype(np.uint32)


def check_device_support(spec: ModelSpec) -> None:
    """Refuses what the device runtime does not compute, naming it."""
    reasons = []
    if spec.norm is not Norm.RMS:
        reasons.append("LayerNorm")
    if spec.position is not Position.ROPE:
        reasons.append("learned positions")
    if not spec.gated:
        reasons.append("an FFN without a gate")
    if spec.activation is Activation.GELU:
        reasons.append("GELU by erf")
    if spec.out_bias:
        reasons.append("biases on o_proj or the FFN")
    if spec.parallel:
        reasons.append("attention and FFN side by side")
    if not spec.pre_norms:
        reasons.append("layers without a norm before attention and FFN")
    if spec.qk_norm_whole:
        reasons.append("q and k norms over all heads")
    for name, value in (("dim", spec.dim), ("heads * head_dim", spec.q_dim)):
        if value % GROUP:
            reasons.append(f"{name} = {value}, not a multiple of {GROUP}")
    if spec.head_dim % 2:
        reasons.append(f"an odd head_dim ({spec.head_dim})")
    if reasons:
        raise UnsupportedError(
            f"{spec.family}: the device runtime does not compute {', '.join(reasons)}; "
            "the host's perplexity and calibration still can"
        )


def vector_layout(spec: ModelSpec) -> list[tuple[str, int]]:
    """Names and lengths of a layer's float vectors, in image order."""
    v = [("attn_norm", spec.dim), ("ffn_norm", spec.dim)]
    if spec.qk_norm:
        v += [("q_norm", spec.head_dim), ("k_norm", spec.head_dim)]
    if spec.sandwich_norms:
        v += [("post_attn_norm", spec.dim), ("post_ffn_norm", spec.dim)]
    if spec.attn_bias:
        v += [("q_bias", spec.q_dim), ("k_bias", spec.kv_dim), ("v_bias", spec.kv_dim)]
    if spec.own_thresholds:
        v += [("x_threshold", spec.dim)]
        v += [("act_threshold", spec.ffn_dim), ("h_threshold", spec.ffn_dim)]
    return v


def _vector(layer: Layer, name: str) -> np.ndarray | None:
    own = layer.thresholds
    if name.endswith("_threshold"):
        return None if own is None else getattr(own, name.removesuffix("_threshold"))
    found: np.ndarray | None = getattr(layer, name)
    return found


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

    def items(self, weights: Sequence[tuple[Weight, np.ndarray]]) -> None:
        """Items side by side: the first of each, then the second of each."""
        rows = np.concatenate([items for _, items in weights], axis=1)
        at, stride = self.size, rows.shape[1]
        for w, items in weights:
            crc = zlib.crc32(np.ascontiguousarray(items).tobytes())
            self.weights.append(
                replace(w, at=at, stride=stride, size=items.shape[1], count=len(items), crc=crc)
            )
            at += items.shape[1]
        self.chunks.append(rows.tobytes())
        self.size += rows.size

    def raw(
        self, role: str, layer: int, name: str, items: np.ndarray, outputs: int, inputs: int
    ) -> None:
        """Rows of a grid ``name`` that is not one of image/grids, or that are packed already."""
        w = Weight(role, layer, name, False, 0, 0, 0, 0, outputs, inputs, 0)
        self.items([(w, items)])

    def matrix(self, role: str, layer: int, blocks: Blocks, columns: bool = False) -> None:
        """A matrix, and after it the tables of its columns."""
        self.items([_item(role, layer, blocks, columns)])
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
    order: np.ndarray | None,
    predictor: Predictor | None,
    factors: Factors | None,
    spec: ModelSpec,
) -> None:
    """The weights of one layer, in the order of their use."""

    def on_grid(name: str, matrix: Matrix | None, columns: bool) -> Blocks:
        assert matrix is not None
        return quantize(matrix, formats.grid_of(name), f"layer {i} {name}_proj", columns)

    data.align()
    for name in ("q", "k", "v", "o"):
        columns = formats.by_columns(i, "o" if name == "o" else "qkv")
        if not formats.rank_of(i, name):
            data.matrix(name, i, on_grid(name, getattr(layer, f"{name}_proj"), columns), columns)
    by_columns = {m: formats.by_columns(i, m) for m in ("gate", "up")}
    by_columns["down"] = formats.down == "columns"
    ffn = {m: on_grid(m, getattr(layer, f"{m}_proj"), c) for m, c in by_columns.items()}
    if order is not None:
        ffn = _reordered(ffn, order[i])
    whole = [m for m in ffn if not formats.rank_of(i, m)]
    data.align()
    items = {m: _item(m, i, ffn[m], by_columns[m]) for m in whole}
    if by_columns["down"]:  # columns of the last group that no neuron has
        items["down"] = (items["down"][0], items["down"][1][: spec.ffn_dim])
    joint = formats.layout == "joint" and by_columns == {"gate": False, "up": False, "down": True}
    if joint:
        data.items([items[m] for m in whole])
    else:
        for m in whole:
            data.items([items[m]])
            if by_columns[m] and m != "down":
                data.tables(m, i, ffn[m])
    if by_columns["down"]:
        data.align()
        data.tables("down", i, ffn["down"])
    if factors is not None:
        data.align()
        _lay_factors(data, factors, i, formats, order, spec)
    if formats.guesses_in(i):
        data.align()
        _lay_predictor(data, layer, i, formats, order, predictor)


def _lay_factors(
    data: _Data,
    f: Factors,
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


def _lay_predictor(
    data: _Data,
    layer: Layer,
    i: int,
    formats: Formats,
    order: np.ndarray | None,
    predictor: Predictor | None,
) -> None:
    """Signs of gate, proxies of gate and up, or B, A_gate and A_up."""
    neurons = slice(None) if order is None else order[i]
    assert layer.gate_proj is not None
    inputs = layer.gate_proj.shape[1]
    if formats.signs:
        signs = pack_signs(as_float32(layer.gate_proj))[neurons]
        data.raw("guess_gate", i, "signs", signs, len(signs), inputs)
    elif formats.guess:
        for role, w in (("guess_gate", layer.gate_proj), ("guess_up", layer.up_proj)):
            rows = pack_proxy(proxy_blocks(as_float32(w), formats.guess), formats.guess)[neurons]
            data.raw(role, i, f"proxy{formats.guess}", rows, len(rows), w.shape[1])
    elif predictor is not None:
        data.raw("guess_b", i, "q4", predictor.b[i], predictor.rank, inputs)
        for role, a in (("guess_gate", predictor.gate[i]), ("guess_up", predictor.up[i])):
            data.raw(role, i, "q4", a[neurons], len(a), predictor.rank)


def _check_down(formats: Formats) -> None:
    if formats.down not in ("columns", "rows"):
        raise UnsupportedError(f"down_proj by {formats.down!r}; there are columns and rows")
    if formats.down == "rows" and formats.guesses:
        raise UnsupportedError("guesses choose columns of down, which is by rows; choose one")


def _check_columns(spec: ModelSpec, formats: Formats) -> None:
    """Refuses columns that do not fit the model, and those of matrices that guesses choose from."""
    names = {m for line in formats.columns for m in line.split()}
    if formats.columns and (
        len(formats.columns) != spec.n_layers or not names or not names <= set(MATRICES)
    ):
        raise UnsupportedError(
            f"columns {formats.columns} are not a line of {', '.join(MATRICES)} for each of "
            f"{spec.n_layers} layers; leave them out where there are none"
        )
    if "r8" in (formats.attn, formats.ffn) and names:
        raise UnsupportedError(
            f"format r8 has no columns of {', '.join(sorted(names))}; a method that drops inputs "
            "takes q4 or q8"
        )
    if formats.guesses and names & {"gate", "up"}:
        raise UnsupportedError(
            "guesses choose rows of gate and up, which this image stores by columns; choose one"
        )


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
    rows = {m: ffn[m].rows(order) for m in ("gate", "up")}
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
    order: np.ndarray | None = None,
    predictor: Predictor | None = None,
    factors: Factors | None = None,
) -> None:
    """Quantizes ``model`` and writes the flash image; the file appears whole or not at all.

    order: int (layers, ffn), old numbers of the neurons in their new places, when the formats ask
    for one.
    predictor: chooses the neurons; the formats then say its rank, not its ``ahead`` and digest.
    factors: replace projections; the formats need not say so.
    """
    formats = formats or Formats()
    if formats.rank != (predictor.rank if predictor else 0) or (formats.guess and predictor):
        raise InputError(
            f"rank {formats.rank} needs its predictor, only it and no proxies of "
            f"{formats.guess} bits"
        )
    if predictor is not None:
        predictor.check(model.spec, "predictor")
        formats = replace(formats, ahead=predictor.ahead, predictor=predictor.digest)
    if factors is not None:
        ranks = factors.ranks(model.spec.n_layers)
        formats = replace(formats, ranks=ranks, factors=factors.digest)
        if formats.columns or formats.layout != "split":
            raise UnsupportedError(BY_ROWS)
    _check_columns(model.spec, formats)
    _check_down(formats)
    if formats.signs and model.spec.activation is not Activation.RELU:
        raise UnsupportedError(
            "signs choose the neurons of ReLU gates; take a proxy or a predictor"
        )
    if formats.guess not in (0, *BITS):
        raise UnsupportedError(f"proxies of {formats.guess} bits; there are {list(BITS)}")
    if (order is None) != (formats.order == "file"):
        raise InputError(f"neuron order {formats.order!r} needs its permutations, and only it")
    spec = model.spec
    check_device_support(spec)
    if spec.own_thresholds and not all(formats.by_columns(i, "gate") for i in range(spec.n_layers)):
        raise UnsupportedError(
            "thresholds on the inputs of gate need gate by columns in every layer; choose such "
            "formats"
        )
    meta = {
        "name": model.name,
        "source": model.source,
        "spec": asdict(spec),
        "formats": asdict(formats),
    }
    vectors: list[np.ndarray] = []
    thetas: list[np.ndarray] = []
    for i, layer in enumerate(model.layers):
        for name, size in vector_layout(spec):
            v = _vector(layer, name)
            if v is None or v.size != size:
                raise InputError(f"layer {i}: {name} should hold {size} values")
            vectors.append(np.asarray(v, dtype="<f4").reshape(-1))
        thetas.append(_rope_increments(spec.layers[i], spec.head_dim))
    vectors.append(np.asarray(model.final_norm, dtype="<f4"))
    sections = {
        Section.META: json.dumps(meta, sort_keys=True, ensure_ascii=False).encode(),
        Section.TOKENS: _token_table(model),
        Section.VECTORS: np.concatenate(vectors).tobytes(),
        Section.ROPE: np.concatenate(thetas).astype("<u4").tobytes(),
    }
    data = _Data()
    embed = quantize(model.embed, formats.embed, "embed")
    data.matrix("embed", 0, embed)
    rows = embed
    if model.head is not None:
        data.align()
        rows = quantize(model.head, formats.embed, "head")
        data.matrix("head", 0, rows)
    if formats.head_proxy:
        data.align()
        data.matrix("head_proxy", 0, proxy_of(rows))
    for i, layer in enumerate(model.layers):
        _lay_layer(data, layer, i, formats, order, predictor, factors, spec)
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


def _spec_from_meta(d: dict[str, Any]) -> ModelSpec:
    d = dict(d)
    d["layers"] = tuple(LayerSpec(**x) for x in d["layers"])
    d["eos_ids"] = tuple(d["eos_ids"])
    d["activation"] = Activation(d["activation"])
    d["norm"] = Norm(d["norm"])
    d["position"] = Position(d["position"])
    return ModelSpec(**d)


class Image:
    """A checked flash image; arrays are views of the mapped file.

    Raises:
        InputError: the file is missing, truncated, damaged or of another version.
    """

    def __init__(self, path: Path, verify: bool = True) -> None:
        self.path = path
        try:
            self._data = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as e:
            raise InputError(f"{path}: cannot be read as a flash image ({e}); pack it again") from e
        size = self._data.size
        if size < HEADER.size + DIMS.size:
            raise InputError(f"{path}: {size} bytes are too few for a flash image; pack it again")
        magic, version, header, flags, count, total, table, _, sha = HEADER.unpack(
            self._data[: HEADER.size].tobytes()
        )
        if magic != MAGIC:
            raise InputError(f"{path}: not a Sparseflash image (no SFM1 magic); pack the model")
        if version != VERSION or header != HEADER.size or flags:
            raise InputError(
                f"{path}: image version {version}, flags {flags:#x}; this tool reads version "
                f"{VERSION}, flags 0: pack it again"
            )
        if total != size:
            raise InputError(f"{path}: {size} bytes where the header says {total}; pack it again")
        if table != HEADER.size + DIMS.size or table + ENTRY.size * count > size:
            raise InputError(f"{path}: the section table lies outside the file; pack it again")
        self.sha256: bytes = sha
        if verify and hashlib.sha256(self._data[HEADER.size :].data).digest() != sha:
            raise InputError(f"{path}: SHA-256 does not match, the file is damaged; pack it again")
        self.sections: dict[Section, tuple[int, int]] = {}
        for i in range(count):
            kind, layer, offset, length, crc, _ = ENTRY.unpack(
                self._data[table + ENTRY.size * i : table + ENTRY.size * (i + 1)].tobytes()
            )
            if offset + length > size or offset < table + ENTRY.size * count:
                raise InputError(f"{path}: section {i} lies outside the file; pack it again")
            if kind not in [s.value for s in Section] or layer or kind in self.sections:
                raise InputError(
                    f"{path}: section {i} is of unknown kind {kind}, or twice there; pack it again"
                )
            if verify and zlib.crc32(self._data[offset : offset + length].data) != crc:
                raise InputError(f"{path}: section {i} is damaged (CRC-32); pack it again")
            self.sections[Section(kind)] = (offset, length)
        try:
            meta = json.loads(self.section(Section.META).tobytes())
            self.spec = _spec_from_meta(meta["spec"])
            formats = meta["formats"]
            formats["columns"] = tuple(formats["columns"])
            formats["guessed"] = tuple(formats.get("guessed", ()))
            formats["ranks"] = tuple(tuple(r) for r in formats["ranks"])
            self.formats = Formats(**formats)
            self.name: str = meta["name"]
            self.source: dict[str, str] = meta["source"]
        except (KeyError, TypeError, ValueError) as e:
            raise InputError(f"{path}: the metadata cannot be read ({e}); pack it again") from e
        start, length = self._place(Section.DATA)
        self.weights = read_table(
            self.section(Section.WEIGHTS).tobytes(), str(path), start, start + length
        )

    @property
    def size(self) -> int:
        return int(self._data.size)

    def section_bytes(self) -> np.ndarray:
        """The whole image, uint8 (size,)."""
        return self._data

    def _place(self, kind: Section) -> tuple[int, int]:
        try:
            return self.sections[kind]
        except KeyError:
            raise InputError(
                f"{self.path}: section {kind.name} is missing; pack it again"
            ) from None

    def offset(self, kind: Section) -> int:
        return self._place(kind)[0]

    def section(self, kind: Section) -> np.ndarray:
        """Bytes of a section, uint8 (n,)."""
        offset, length = self._place(kind)
        return self._data[offset : offset + length]

    def has(self, role: str, layer: int = 0) -> bool:
        return (layer, role) in self.weights

    def weight(self, role: str, layer: int = 0) -> Weight:
        """A row of the table.

        Raises:
            InputError: the image does not have it.
        """
        try:
            return self.weights[layer, role]
        except KeyError:
            raise InputError(
                f"{self.path}: weight {role} of layer {layer} is missing; pack it again"
            ) from None

    @property
    def predictor_grid(self) -> str:
        """Of what chooses neurons before they are read: ``proxy3``, ``signs``, ``q4`` of a
        low-rank predictor; empty without one."""
        found = {w.grid for w in self.weights.values() if w.role == "guess_gate"}
        return found.pop() if found else ""

    @property
    def rank(self) -> int:
        """Of the low-rank predictor; 0 without one."""
        return max((w.count for w in self.weights.values() if w.role == "guess_b"), default=0)

    @property
    def ranks(self) -> list[int]:
        """Of the projections in factors."""
        return [
            w.count for w in self.weights.values() if w.role.endswith("_b") and w.role != "guess_b"
        ]

    def items(self, w: Weight) -> np.ndarray:
        """Its rows or columns, uint8 (count, size)."""
        view = np.lib.stride_tricks.as_strided(
            self._data[w.at :], (w.count, w.size), (w.stride, 1), writeable=False
        )
        return np.ascontiguousarray(view)

    def blocks(self, role: str, layer: int = 0) -> Blocks:
        """The matrix of a role; A of one in factors. Inputs are filled up to whole groups."""
        w = self.weight(role, layer)
        items = self.items(w)
        found: Blocks
        if w.grid.startswith("proxy"):
            return unpack_proxy(items, w.inputs, int(w.grid.removeprefix("proxy")))
        if not w.columns:
            found = grid(w.grid).unpack_rows(items, w.inputs)
            return found
        items = np.pad(items, ((0, padded(w.count) - w.count), (0, 0)))
        g, tables = grid(w.grid), items
        if g.tables(1):
            tables = self.items(self.weight(f"{role}_scales", layer))
        found = g.unpack_columns(items, tables, w.outputs)
        return found

    def embed(self) -> Blocks:
        return self.blocks("embed")

    def head(self) -> Blocks:
        return self.embed() if self.spec.tied_head else self.blocks("head")

    def head_proxy(self) -> Blocks:
        return self.blocks("head_proxy")

    def attention(self, layer: int) -> tuple[Blocks, Blocks, Blocks, Blocks]:
        """q, k, v and o projections; A of those in factors."""
        q, k, v, o = (self.blocks(m, layer) for m in "qkvo")
        return q, k, v, o

    def ffn(self, layer: int) -> tuple[Blocks, Blocks, Blocks]:
        """gate_proj, up_proj (ffn, dim) and down_proj (dim, ffn padded to 32); A (ffn, rank) of
        gate and up in factors."""
        gate, up, down = (self.blocks(m, layer) for m in ("gate", "up", "down"))
        return gate, up, down

    def factors(self, layer: int, name: str) -> tuple[Blocks, Blocks] | None:
        """B (rank, in) and A (out, rank) of a projection, None for a whole one."""
        if not self.has(f"{name}_b", layer):
            return None
        return self.blocks(f"{name}_b", layer), self.blocks(name, layer)

    def guess(self, layer: int) -> tuple[Blocks, Blocks]:
        """Proxies of gate_proj and up_proj, (ffn, dim) each."""
        return self.blocks("guess_gate", layer), self.blocks("guess_up", layer)

    def signs(self, layer: int) -> np.ndarray:
        """Signs of gate_proj, uint8 (ffn, dim/8) of ``proxy.pack_signs``."""
        return self.items(self.weight("guess_gate", layer))

    def predictor(self, layer: int) -> tuple[Blocks, Blocks, Blocks]:
        """B (rank, dim), A_gate and A_up (ffn, rank) of the low-rank predictor."""
        b, gate, up = (self.blocks(f"guess_{part}", layer) for part in ("b", "gate", "up"))
        return b, gate, up

    def vectors(self) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
        """Float vectors of every layer by name, and the final norm."""
        data = self.section(Section.VECTORS).view("<f4")
        at = 0
        layers = []
        for _ in range(self.spec.n_layers):
            one = {}
            for name, size in vector_layout(self.spec):
                one[name] = data[at : at + size]
                at += size
            layers.append(one)
        return layers, data[at : at + self.spec.dim]

    def rope(self) -> np.ndarray:
        """Phase increments, uint32 (layers, head_dim/2)."""
        return self.section(Section.ROPE).view("<u4").reshape(self.spec.n_layers, -1)
