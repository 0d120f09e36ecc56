"""The flash image ``model.sfm``: its checked reader (docs/SPEC.md, "Flash image")."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from sparseflash.base.errors import InputError
from sparseflash.base.files import parse_json
from sparseflash.base.limits import unpack_limits
from sparseflash.image.formats import Formats, width_of
from sparseflash.image.grids import Blocks, grid, padded
from sparseflash.image.proxy import unpack_proxy
from sparseflash.image.weights import Weight, read_table
from sparseflash.model.spec import (
    ModelSpec,
    Norm,
)

MAGIC = b"SFM1"
VERSION = 3
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


def vector_layout(spec: ModelSpec, norms: Sequence[str] = ()) -> list[tuple[str, int]]:
    """Names and words of a layer's vectors, in image order; ``norms`` is of ``Needs``.

    A word is a float32. Thresholds have a word for all and a byte each (``base.limits``).
    """
    v: list[tuple[str, int]] = []
    before = ["attn_norm", "ffn_norm"] if spec.pre_norms else []
    biases = ("", "_bias") if spec.norm is Norm.LAYER else ("",)
    v += [(norm + part, spec.dim) for norm in before for part in biases]
    if spec.qk_norm:
        whole = spec.qk_norm_whole
        v += [("q_norm", spec.q_dim if whole else spec.head_dim)]
        v += [("k_norm", spec.kv_dim if whole else spec.head_dim)]
    if spec.sandwich_norms:
        v += [("post_attn_norm", spec.dim), ("post_ffn_norm", spec.dim)]
    if spec.attn_bias:
        v += [("q_bias", spec.q_dim), ("k_bias", spec.kv_dim), ("v_bias", spec.kv_dim)]
    if spec.out_bias:
        v += [("o_bias", spec.dim)]
    if spec.ffn_bias:
        v += [("gate_bias", spec.ffn_dim)] * spec.gated
        v += [("up_bias", spec.ffn_dim), ("down_bias", spec.dim)]
    if spec.own_thresholds:
        v += [("x_threshold", 1 + spec.dim // 4)]
        v += [(f"{site}_threshold", 1 + spec.ffn_dim // 4) for site in ("act", "h")]
    return v + [(f"{site}_column_norm", width_of(spec, site)) for site in norms]


def last_vectors(spec: ModelSpec) -> list[tuple[str, int]]:
    """Names and lengths of the float vectors behind those of the layers."""
    biases = [("final_norm_bias", spec.dim)] * (spec.norm is Norm.LAYER)
    return [("final_norm", spec.dim), *biases, *[("head_bias", spec.vocab)] * spec.head_bias]


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
            meta = parse_json(self.section(Section.META).tobytes())
            self.spec = ModelSpec.of_plain(meta["spec"])
            self.formats = Formats(**meta["formats"])
            self.needs: dict[str, Any] = meta["needs"]
            self.ahead = bool(self.needs["ahead"])
            self.norms = tuple(str(site) for site in self.needs.get("norms", ()))
            self.top_k = bool(self.needs.get("top_k"))
            self.name: str = meta["name"]
            self.source: dict[str, str] = meta["source"]
        except (KeyError, TypeError, ValueError) as e:
            raise InputError(f"{path}: the metadata cannot be read ({e}); pack it again") from e
        start, length = self._place(Section.DATA)
        self.weights = read_table(
            self.section(Section.WEIGHTS).tobytes(), str(path), start, start + length
        )

    @property
    def scored(self) -> bool:
        """Top-k or norms of columns choose what is dropped."""
        return self.top_k or bool(self.norms)

    @property
    def size(self) -> int:
        return int(self._data.size)

    @property
    def data_bytes(self) -> int:
        """Bytes that the weights take."""
        return self._place(Section.DATA)[1]

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
    def first_predictor(self) -> str:
        """Role of what every predictor has: its matrix before the activation."""
        return "predictor_gate" if self.spec.gated else "predictor_up"

    @property
    def predictor_grid(self) -> str:
        """Of what chooses neurons before they are read: ``proxy3``, ``signs``, ``q4`` of a
        low-rank predictor; empty without one."""
        found = {w.grid for w in self.weights.values() if w.role == self.first_predictor}
        return found.pop() if found else ""

    @property
    def rank(self) -> int:
        """Of the low-rank predictor; 0 without one."""
        return max((w.count for w in self.weights.values() if w.role == "predictor_b"), default=0)

    @property
    def ranks(self) -> list[int]:
        """Of the projections in factors."""
        return [
            w.count
            for w in self.weights.values()
            if w.role.endswith("_b") and w.role != "predictor_b"
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

    def ffn(self, layer: int) -> tuple[Blocks | None, Blocks, Blocks]:
        """gate_proj, up_proj (ffn, dim) and down_proj (dim, ffn padded to 32); A (ffn, rank) of
        gate and up in factors. None where there is no gate."""
        gate = self.blocks("gate", layer) if self.spec.gated else None
        return gate, self.blocks("up", layer), self.blocks("down", layer)

    def factors(self, layer: int, name: str) -> tuple[Blocks, Blocks] | None:
        """B (rank, in) and A (out, rank) of a projection, None for a whole one."""
        if not self.has(f"{name}_b", layer):
            return None
        return self.blocks(f"{name}_b", layer), self.blocks(name, layer)

    def proxies(self, layer: int) -> tuple[Blocks, Blocks]:
        """Proxies of gate_proj and up_proj, (ffn, dim) each."""
        return self.blocks("predictor_gate", layer), self.blocks("predictor_up", layer)

    def signs(self, layer: int) -> np.ndarray:
        """Signs of what is before the activation, uint8 (ffn, dim/8) of ``proxy.pack_signs``."""
        return self.items(self.weight(self.first_predictor, layer))

    def predictor(self, layer: int) -> tuple[Blocks, Blocks, Blocks]:
        """B (rank, dim), A_gate and A_up (ffn, rank) of the low-rank predictor."""
        b, gate, up = (self.blocks(f"predictor_{part}", layer) for part in ("b", "gate", "up"))
        return b, gate, up

    def vectors(self) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
        """Vectors of every layer by name, float32, and those behind the layers."""
        data = self.section(Section.VECTORS).view("<f4")
        at = 0
        layers = []
        for _ in range(self.spec.n_layers):
            one = {}
            for name, size in vector_layout(self.spec, self.norms):
                words = data[at : at + size]
                if name.endswith("_threshold"):
                    codes = words[1:].view(np.uint8)
                    one[name] = unpack_limits(int(words[:1].view("<u4")[0]), codes)
                else:
                    one[name] = words
                at += size
            layers.append(one)
        last = {}
        for name, size in last_vectors(self.spec):
            last[name] = data[at : at + size]
            at += size
        return layers, last

    def rope(self) -> np.ndarray:
        """Phase increments, uint32 (layers, head_dim/2)."""
        return self.section(Section.ROPE).view("<u4").reshape(self.spec.n_layers, -1)
