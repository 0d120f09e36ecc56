"""The flash image ``model.sfm``: writer and checked reader (docs/SPEC.md, "Flash image")."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from sparseflash.base.errors import InputError, UnsupportedError
from sparseflash.base.files import write_bytes
from sparseflash.image.columns import (
    column_bytes,
    matrix_bytes,
    of_columns,
    pack_columns,
    pack_integers,
    pack_tables,
    unpack_columns,
)
from sparseflash.image.factors import Factors
from sparseflash.image.formats import BY_ROWS, FACTORED, MATRICES, Formats, shape_of
from sparseflash.image.predictor import Predictor
from sparseflash.image.proxy import BITS, pack_proxy, pack_signs, proxy_blocks, unpack_proxy
from sparseflash.image.quantize import (
    GROUP,
    Blocks,
    pack_rows,
    quantize,
    row_bytes,
    unpack_rows,
)
from sparseflash.image.screen import proxy_of
from sparseflash.model.spec import (
    Activation,
    LayerSpec,
    Matrix,
    Model,
    ModelSpec,
    Norm,
    Position,
    as_float32,
)

MAGIC = b"SFM1"
VERSION = 1
HEADER = struct.Struct("<4sHHIIQII32s")  # 64 bytes
DIMS = struct.Struct("<16I")
ENTRY = struct.Struct("<IIQQII")
ALIGN = 64


class Section(IntEnum):
    META = 1
    TOKENS = 2
    EMBED = 3
    HEAD = 4
    VECTORS = 5
    ROPE = 6
    ATTN = 7
    RECORDS = 8
    SCALES = 9
    HEAD_PROXY = 10
    GUESS = 11
    FACTORS = 12


def _rope_increments(theta: float, scale: float, head_dim: int) -> np.ndarray:
    """Phase added for one position, in 2^-32 turns, for each pair: uint32 (head_dim/2,)."""
    i = np.arange(head_dim // 2, dtype=np.float64)
    turns = theta ** (-2.0 * i / head_dim) / scale / (2.0 * np.pi)
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
    return v


@dataclass(frozen=True)
class Plane:
    """Where item i (a row or a column) lies in RECORDS: at + i * stride, size bytes."""

    at: int
    stride: int
    size: int


def record_layout(spec: ModelSpec, formats: Formats, layer: int) -> tuple[Plane, Plane, Plane]:
    """Gate, up and down of a layer. Tables follow the columns of gate and up; projections in
    factors take nothing there. Down's items are columns, or its rows."""
    fmt, n = formats.ffn, spec.ffn_dim
    row, column = row_bytes(spec.dim, fmt), column_bytes(spec.dim, fmt)
    if formats.down == "rows":
        column = row_bytes(n, fmt)
    if formats.layout == "joint" and not _apart(formats, layer):
        stride = 2 * row + column
        return Plane(0, stride, row), Plane(row, stride, row), Plane(2 * row, stride, column)
    out, at = [], 0
    for name in ("gate", "up"):
        columns = formats.by_columns(layer, name)
        item = column_bytes(n, fmt) if columns else row
        out.append(Plane(at, item, item))
        if not formats.rank_of(layer, name):
            at += matrix_bytes(n, spec.dim, fmt) if columns else n * row
    return out[0], out[1], Plane(at, column, column)


def _apart(formats: Formats, layer: int) -> bool:
    """Gate or up by columns, or down by rows: no neuron is contiguous then."""
    return formats.down == "rows" or any(formats.by_columns(layer, m) for m in ("gate", "up"))


def _records(
    gate: Blocks, up: Blocks, down: Blocks, ffn: int, formats: Formats, layer: int
) -> bytes:
    """Gate, up and down, by neuron or one after the other."""
    body = pack_rows(down) if formats.down == "rows" else pack_integers(down)[:ffn]
    if formats.layout == "joint" and not _apart(formats, layer):
        return np.concatenate([pack_rows(gate), pack_rows(up), body], axis=1).tobytes()
    whole = [(n, m) for n, m in (("gate", gate), ("up", up)) if not formats.rank_of(layer, n)]
    return b"".join([*(_matrix(m, formats.by_columns(layer, n)) for n, m in whole), body.tobytes()])


def _matrix(blocks: Blocks, columns: bool) -> bytes:
    return pack_columns(blocks) if columns else pack_rows(blocks).tobytes()


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


def _reordered(gate: Blocks, up: Blocks, down: Blocks, order: np.ndarray) -> list[Blocks]:
    """The blocks with neuron order[i] of each in place i; ``order`` stays within groups of 32."""
    n = len(order)
    file = np.arange(n)
    if not np.array_equal(np.sort(order), file) or (order // GROUP != file // GROUP).any():
        raise InputError(
            "the neuron order leaves groups of 32 or names one twice; measure it again"
        )
    columns = np.concatenate([order, np.arange(n, down.q.shape[1])])
    return [gate.rows(order), up.rows(order), replace(down, q=down.q[:, columns])]


def _guess(
    gate: Matrix, up: Matrix, formats: Formats, layer: int, order: np.ndarray | None
) -> bytes:
    """Proxy rows of gate_proj, then of up_proj."""
    rows = []
    for w in (gate, up):
        data = pack_proxy(proxy_blocks(as_float32(w), formats.guess), formats.guess)
        rows.append(data if order is None else data[order[layer]])
    return np.concatenate(rows).tobytes()


def _predictor(p: Predictor, layer: int, order: np.ndarray | None) -> bytes:
    """Rows of B, then of A_gate, then of A_up."""
    a = [p.gate[layer], p.up[layer]]
    if order is not None:
        a = [rows[order[layer]] for rows in a]
    return b"".join(rows.tobytes() for rows in (p.b[layer], *a))


def _factors(f: Factors, layer: int, order: np.ndarray | None) -> bytes:
    """B, then A, of each projection in factors."""
    out = []
    for name in FACTORED:
        if f.rank(layer, name):
            b, a = f.rows[layer, name]
            moved = order is not None and name in ("gate", "up")
            out += [b.tobytes(), (a[order[layer]] if moved else a).tobytes()]  # type: ignore[index]
    return b"".join(out)


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
    sections: list[tuple[Section, int, bytes]] = []
    meta = {
        "name": model.name,
        "source": model.source,
        "spec": asdict(spec),
        "formats": asdict(formats),
    }
    sections.append(
        (Section.META, 0, json.dumps(meta, sort_keys=True, ensure_ascii=False).encode())
    )
    sections.append((Section.TOKENS, 0, _token_table(model)))
    embed = quantize(model.embed, formats.embed, "embed")
    sections.append((Section.EMBED, 0, pack_rows(embed).tobytes()))
    if model.head is not None:
        head = quantize(model.head, formats.embed, "head")
        sections.append((Section.HEAD, 0, pack_rows(head).tobytes()))
    if formats.head_proxy:
        rows = embed if model.head is None else head
        sections.append((Section.HEAD_PROXY, 0, pack_rows(proxy_of(rows)).tobytes()))
    vectors: list[np.ndarray] = []
    thetas: list[np.ndarray] = []
    for i, layer in enumerate(model.layers):
        for name, size in vector_layout(spec):
            v = getattr(layer, name)
            if v is None or v.size != size:
                raise InputError(f"layer {i}: {name} should hold {size} values")
            vectors.append(np.asarray(v, dtype="<f4").reshape(-1))
        ls = spec.layers[i]
        thetas.append(_rope_increments(ls.rope_theta, ls.rope_scale, spec.head_dim))
    vectors.append(np.asarray(model.final_norm, dtype="<f4"))
    sections.append((Section.VECTORS, 0, np.concatenate(vectors).tobytes()))
    sections.append((Section.ROPE, 0, np.concatenate(thetas).astype("<u4").tobytes()))
    for i, layer in enumerate(model.layers):
        attn = [
            _matrix(quantize(m, formats.attn, f"layer {i} {n}_proj"), formats.by_columns(i, group))
            for n, m, group in (
                ("q", layer.q_proj, "qkv"),
                ("k", layer.k_proj, "qkv"),
                ("v", layer.v_proj, "qkv"),
                ("o", layer.o_proj, "o"),
            )
            if not formats.rank_of(i, n)
        ]
        sections.append((Section.ATTN, i, b"".join(attn)))
        assert layer.gate_proj is not None
        gate = quantize(layer.gate_proj, formats.ffn, f"layer {i} gate_proj")
        up = quantize(layer.up_proj, formats.ffn, f"layer {i} up_proj")
        down = quantize(layer.down_proj, formats.ffn, f"layer {i} down_proj")
        if order is not None:
            gate, up, down = _reordered(gate, up, down, order[i])
        records = _records(gate, up, down, spec.ffn_dim, formats, i)
        sections.append((Section.RECORDS, i, records))
        if formats.down == "columns":
            sections.append((Section.SCALES, i, pack_tables(down).tobytes()))
        if factors is not None:
            sections.append((Section.FACTORS, i, _factors(factors, i, order)))
        if not formats.guesses_in(i):
            continue
        if formats.signs:
            signs = pack_signs(as_float32(layer.gate_proj))
            signs = signs if order is None else signs[order[i]]
            sections.append((Section.GUESS, i, signs.tobytes()))
        if formats.guess:
            sections.append(
                (Section.GUESS, i, _guess(layer.gate_proj, layer.up_proj, formats, i, order))
            )
        if predictor is not None:
            sections.append((Section.GUESS, i, _predictor(predictor, i, order)))
    _write(path, spec, formats, sections)  # whole, or not at all


def _dims(spec: ModelSpec, formats: Formats) -> bytes:
    bits = {"q4": 4, "q8": 8, "r8": 8}
    values = [
        spec.vocab,
        spec.dim,
        spec.ffn_dim,
        spec.n_layers,
        spec.n_heads,
        spec.n_kv_heads,
        spec.head_dim,
        spec.context,
        bits[formats.attn],
        bits[formats.ffn],
        bits[formats.embed],
        int(spec.tied_head),
    ]
    return DIMS.pack(*values, *([0] * (16 - len(values))))


def _write(
    path: Path, spec: ModelSpec, formats: Formats, sections: list[tuple[Section, int, bytes]]
) -> None:
    table_at = HEADER.size + DIMS.size
    offset = table_at + ENTRY.size * len(sections)
    entries = []
    chunks: list[bytes] = []
    for kind, layer, data in sections:
        pad = -offset % ALIGN
        chunks.append(b"\0" * pad + data)
        offset += pad
        entries.append(ENTRY.pack(kind, layer, offset, len(data), zlib.crc32(data), ALIGN))
        offset += len(data)
    body = _dims(spec, formats) + b"".join(entries) + b"".join(chunks)
    sha = hashlib.sha256(body).digest()
    header = HEADER.pack(
        MAGIC, VERSION, HEADER.size, 0, len(sections), HEADER.size + len(body), table_at, 0, sha
    )
    write_bytes(path, header + body)


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
        self.sections: dict[tuple[Section, int], tuple[int, int]] = {}
        for i in range(count):
            kind, layer, offset, length, _crc, _ = ENTRY.unpack(
                self._data[table + ENTRY.size * i : table + ENTRY.size * (i + 1)].tobytes()
            )
            if offset + length > size:
                raise InputError(f"{path}: section {i} ends outside the file; pack it again")
            try:
                self.sections[Section(kind), layer] = (offset, length)
            except ValueError:
                raise InputError(
                    f"{path}: section {i} is of unknown kind {kind}; pack it again"
                ) from None
        try:
            meta = json.loads(self.section(Section.META).tobytes())
            self.spec = _spec_from_meta(meta["spec"])
            formats = meta["formats"]
            if "down" not in formats and "r8" in formats.values():
                raise ValueError("rows of r8 as they were before they held sums of products")
            formats["columns"] = tuple(formats["columns"])
            formats["guessed"] = tuple(formats.get("guessed", ()))
            formats["ranks"] = tuple(tuple(r) for r in formats["ranks"])
            self.formats = Formats(**formats)
            self.name: str = meta["name"]
            self.source: dict[str, str] = meta["source"]
        except (KeyError, TypeError, ValueError) as e:
            raise InputError(f"{path}: the metadata cannot be read ({e}); pack it again") from e

    @property
    def size(self) -> int:
        return int(self._data.size)

    def section_bytes(self) -> np.ndarray:
        """The whole image, uint8 (size,)."""
        return self._data

    def offset(self, kind: Section, layer: int = 0) -> int:
        return self.sections[kind, layer][0]

    def section(self, kind: Section, layer: int = 0) -> np.ndarray:
        """Bytes of a section, uint8 (n,)."""
        try:
            offset, length = self.sections[kind, layer]
        except KeyError:
            raise InputError(
                f"{self.path}: section {kind.name} of layer {layer} is missing; pack it again"
            ) from None
        return self._data[offset : offset + length]

    def embed(self) -> Blocks:
        rows = self.section(Section.EMBED).reshape(self.spec.vocab, -1)
        return unpack_rows(rows, self.spec.dim, self.formats.embed)

    def head(self) -> Blocks:
        if self.spec.tied_head:
            return self.embed()
        rows = self.section(Section.HEAD).reshape(self.spec.vocab, -1)
        return unpack_rows(rows, self.spec.dim, self.formats.embed)

    def head_proxy(self) -> Blocks:
        rows = self.section(Section.HEAD_PROXY).reshape(self.spec.vocab, -1)
        return unpack_rows(rows, self.spec.dim, self.formats.head_proxy)

    def attention(self, layer: int) -> tuple[Blocks, Blocks, Blocks, Blocks]:
        """q, k, v and o projections; A of those in factors."""
        s, fmt = self.spec, self.formats.attn
        data = self.section(Section.ATTN, layer)
        out, at = [], 0
        for name in "qkvo":
            n, cols = shape_of(s, name)
            pair = self.factors(layer, name)
            if pair is not None:
                out.append(pair[1])
                continue
            if self.formats.by_columns(layer, "o" if name == "o" else "qkv"):
                size = matrix_bytes(n, cols, fmt)
                out.append(unpack_columns(data[at : at + size], n, cols, fmt))
            else:
                size = n * row_bytes(cols, fmt)
                out.append(unpack_rows(data[at : at + size].reshape(n, -1), cols, fmt))
            at += size
        return out[0], out[1], out[2], out[3]

    def ffn(self, layer: int) -> tuple[Blocks, Blocks, Blocks]:
        """gate_proj, up_proj (ffn, dim) and down_proj (dim, ffn padded to 32).

        A (ffn, rank) of gate and up in factors.
        """
        s, fmt = self.spec, self.formats.ffn
        gate, up, down = record_layout(s, self.formats, layer)
        data = self.section(Section.RECORDS, layer)

        def items(p: Plane, n: int = s.ffn_dim) -> np.ndarray:
            view = np.lib.stride_tricks.as_strided(
                data[p.at :], (n, p.size), (p.stride, 1), writeable=False
            )
            return np.ascontiguousarray(view)

        def matrix(name: str, p: Plane) -> Blocks:
            pair = self.factors(layer, name)
            if pair is not None:
                return pair[1]
            if self.formats.by_columns(layer, name):
                size = matrix_bytes(s.ffn_dim, s.dim, fmt)
                return unpack_columns(data[p.at : p.at + size], s.ffn_dim, s.dim, fmt)
            return unpack_rows(items(p), s.dim, fmt)

        blocks = -(-s.ffn_dim // GROUP)
        ours = matrix("gate", gate), matrix("up", up)
        if self.formats.down == "rows":
            return *ours, unpack_rows(items(down, s.dim), blocks * GROUP, fmt)
        body = np.pad(items(down), ((0, blocks * GROUP - s.ffn_dim), (0, 0)))
        scales = self.section(Section.SCALES, layer)
        return *ours, of_columns(body, scales, s.dim, fmt)

    def factor_offsets(self, layer: int) -> dict[str, tuple[int, int, int, int]]:
        """Places of B and A of the layer's projections in factors, and the bytes of their rows."""
        out, at = {}, 0
        for name in FACTORED:
            rank = self.formats.rank_of(layer, name)
            if rank:
                n, cols = shape_of(self.spec, name)
                fmt = self.formats.grid_of(name)
                wide, small = row_bytes(cols, fmt), row_bytes(rank, fmt)
                out[name] = (at, at + rank * wide, wide, small)
                at += rank * wide + n * small
        return out

    def factors(self, layer: int, name: str) -> tuple[Blocks, Blocks] | None:
        """B (rank, in) and A (out, rank) of a projection, None for a whole one."""
        places = self.factor_offsets(layer)
        if name not in places:
            return None
        b, a, wide, small = places[name]
        data = self.section(Section.FACTORS, layer)
        n, cols = shape_of(self.spec, name)
        fmt = self.formats.grid_of(name)
        return (
            unpack_rows(data[b:a].reshape(-1, wide), cols, fmt),
            unpack_rows(data[a : a + n * small].reshape(n, small), (a - b) // wide, fmt),
        )

    def guess(self, layer: int) -> tuple[Blocks, Blocks]:
        """Proxies of gate_proj and up_proj, (ffn, dim) each."""
        data = self.section(Section.GUESS, layer).reshape(2, self.spec.ffn_dim, -1)
        gate, up = (unpack_proxy(d, self.spec.dim, self.formats.guess) for d in data)
        return gate, up

    def signs(self, layer: int) -> np.ndarray:
        """Signs of gate_proj, uint8 (ffn, dim/8) of ``proxy.pack_signs``."""
        return self.section(Section.GUESS, layer).reshape(self.spec.ffn_dim, -1)

    def predictor(self, layer: int) -> tuple[Blocks, Blocks, Blocks]:
        """B (rank, dim), A_gate and A_up (ffn, rank) of the low-rank predictor."""
        s, rank = self.spec, self.formats.rank
        data = self.section(Section.GUESS, layer)
        wide, small = row_bytes(s.dim, "q4"), row_bytes(rank, "q4")
        a = data[rank * wide :].reshape(2, s.ffn_dim, small)
        return (
            unpack_rows(data[: rank * wide].reshape(rank, wide), s.dim, "q4"),
            unpack_rows(a[0], rank, "q4"),
            unpack_rows(a[1], rank, "q4"),
        )

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
