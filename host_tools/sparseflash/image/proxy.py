"""k-bit copies of gate_proj and up_proj that predict h before a row is read (docs/SPEC.md).

Prox, arXiv 2607.27591: neurons are chosen by a low-bit proxy, survivors are computed exactly. A
weight is d*q in groups of 32 with a binary16 d; q is -1 or 1 with 1 bit, and within
2^(bits-1) - 1 of 0 with 2 to 4. With 1 bit d is the mean magnitude of the group, else the one of a
few tried that has the least squared error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sparseflash.base.errors import UnsupportedError
from sparseflash.image.bfp import GROUP
from sparseflash.image.formats import BITS
from sparseflash.model.spec import Activation, Layer, ModelSpec, Q8Blocks, as_float32

SCALES = tuple(np.float32(1.0 - 0.05 * i) for i in range(11))
"""Shares of the largest magnitude that are tried as the end of the grid."""


def proxy_blocks(w: np.ndarray, bits: int) -> Q8Blocks:
    """float32 (out, in) on the proxy's grid, ``in`` a multiple of 32; its integers are int8."""
    rows, cols = w.shape
    x = np.asarray(w, np.float32).reshape(rows, cols // GROUP, GROUP)
    if bits == 1:
        d = np.abs(x).mean(-1, dtype=np.float64).astype(np.float16)
        return Q8Blocks(np.where(x < 0, -1, 1).astype(np.int8).reshape(rows, cols), d)
    top = 2 ** (bits - 1) - 1
    largest = np.abs(x).max(-1)
    d = np.zeros(largest.shape, np.float16)
    q = np.zeros(x.shape, np.int8)
    least = np.full(largest.shape, np.inf, np.float32)
    for share in SCALES:
        tried = (largest * share / np.float32(top)).astype(np.float16)
        step = tried.astype(np.float32)[..., None]
        inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
        y = np.clip(np.rint(x * inverse), -top, top)
        error = ((x - y * step) ** 2).sum(-1)
        better = error < least
        least = np.where(better, error, least)
        d = np.where(better, tried, d)
        q = np.where(better[..., None], y.astype(np.int8), q)
    return Q8Blocks(q.reshape(rows, cols), d)


def proxy_row_bytes(cols: int, bits: int) -> int:
    """Bytes of a stored row of ``cols`` weights."""
    groups = -(-cols // GROUP)
    return -(-groups * (4 * bits + 2) // 4) * 4


def _offset(bits: int) -> tuple[int, int]:
    """q = factor*u - less for the stored u of ``bits`` bits."""
    return (2, 1) if bits == 1 else (1, 2 ** (bits - 1) - 1)


BLOCK = 8
"""Groups whose words lie side by side in a stored row."""
EACH = tuple(range(8))
PLANES: dict[int, tuple[tuple[tuple[int, ...], int], ...]] = {
    1: ((EACH, 0),),
    2: (((0, 1, 4, 5), 0), ((2, 3, 6, 7), 0)),
    3: (((0, 1, 4, 5), 0), ((2, 3, 6, 7), 0), (EACH, 2)),
    4: (((0, 4), 0), ((1, 5), 0), ((2, 6), 0), ((3, 7), 0)),
}
"""By bits of a proxy, for each word of a group: which fours of weights it holds, from the lowest
bits of a byte up, and the lowest bit of these weights. A byte has a weight of each of its fours."""


def _words(u: np.ndarray, bits: int) -> np.ndarray:
    """Stored words (..., bits, 4 bytes) of the u (..., 32) of groups."""
    fours = u.reshape(*u.shape[:-1], BLOCK, 4)
    out = np.zeros((*u.shape[:-1], bits, 4), np.uint8)
    for j, (held, low) in enumerate(PLANES[bits]):
        wide = 8 // len(held)
        for i, s in enumerate(held):
            out[..., j, :] |= ((fours[..., s, :] >> low) & (2**wide - 1)) << (wide * i)
    return out


def _weights(words: np.ndarray, bits: int) -> np.ndarray:
    """Inverse of :func:`_words`."""
    fours = np.zeros((*words.shape[:-2], BLOCK, 4), np.uint8)
    for j, (held, low) in enumerate(PLANES[bits]):
        wide = 8 // len(held)
        for i, s in enumerate(held):
            fours[..., s, :] |= ((words[..., j, :] >> (wide * i)) & (2**wide - 1)) << low
    return fours.reshape(*words.shape[:-2], GROUP)


def pack_proxy(blocks: Q8Blocks, bits: int) -> np.ndarray:
    """Stored rows, uint8 (out, row bytes): words of blocks of eight groups; then d."""
    rows, cols = blocks.q.shape
    factor, less = _offset(bits)
    u = ((blocks.q.astype(np.int16) + less) // factor).astype(np.uint8).reshape(rows, -1, GROUP)
    words = _words(u, bits)  # (rows, groups, bits, 4)
    planes = [
        words[:, g : g + BLOCK].swapaxes(1, 2).reshape(rows, -1)
        for g in range(0, u.shape[1], BLOCK)
    ]
    d = np.ascontiguousarray(blocks.d.astype("<f2")).view(np.uint8).reshape(rows, -1)
    data = np.concatenate([*planes, d], axis=1)
    return np.pad(data, ((0, 0), (0, proxy_row_bytes(cols, bits) - data.shape[1])))


def unpack_proxy(data: np.ndarray, cols: int, bits: int) -> Q8Blocks:
    """Inverse of :func:`pack_proxy`, from uint8 (out, row bytes)."""
    rows, groups = data.shape[0], cols // GROUP
    factor, less = _offset(bits)
    size = 4 * bits
    words = [
        data[:, g * size : min(g + BLOCK, groups) * size].reshape(rows, bits, -1, 4).swapaxes(1, 2)
        for g in range(0, groups, BLOCK)
    ]
    u = _weights(np.concatenate(words, axis=1), bits).astype(np.int16)
    d = np.ascontiguousarray(data[:, groups * size : groups * (size + 2)]).view("<f2")
    return Q8Blocks((factor * u - less).astype(np.int8).reshape(rows, cols), d)


def pack_signs(w: np.ndarray) -> np.ndarray:
    """Signs of float32 (out, in), uint8 (out, in/8): a word a group, a bit set below zero."""
    return np.packbits(w < 0, axis=-1, bitorder="little")


def agreeing_signs(signs: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How many signs of each row are those of x: float32 (T, out).

    signs: uint8 (out, in/8) of :func:`pack_signs`; x: float32 (T, in). Zero is not below zero.
    """
    w = np.unpackbits(signs, axis=-1, bitorder="little").astype(np.float32) * -2 + 1
    v = np.where(x < 0, np.float32(-1), np.float32(1))
    return np.asarray((v @ w.T + np.float32(x.shape[-1])) / 2, np.float32)


@dataclass(frozen=True)
class Proxies:
    """Copies of gate and up of 1 to 4 bits as an image stores them."""

    bits: int
    ahead = False

    @property
    def digest(self) -> str:
        return f"proxy{self.bits}"

    def check(self, spec: ModelSpec, where: str) -> None:
        """Raises UnsupportedError for a width that there is not."""
        if self.bits not in BITS:
            raise UnsupportedError(f"{where}: proxies of {self.bits} bits; there are {list(BITS)}")

    def parts(self, layer: Layer, i: int) -> Iterator[tuple[str, str, np.ndarray, int]]:
        """Role, grid, stored rows and inputs."""
        for role, w in (("gate", layer.gate_proj), ("up", layer.up_proj)):
            if w is None:
                continue
            rows = pack_proxy(proxy_blocks(as_float32(w), self.bits), self.bits)
            yield f"predictor_{role}", self.digest, rows, w.shape[1]


@dataclass(frozen=True)
class Signs:
    """Signs of gate as an image stores them."""

    digest = "signs"
    ahead = False

    def check(self, spec: ModelSpec, where: str) -> None:
        """Raises UnsupportedError for a gate that is not ReLU."""
        if spec.activation is not Activation.RELU:
            raise UnsupportedError(
                "signs choose the neurons of ReLU gates; take a proxy or a predictor"
            )

    def parts(self, layer: Layer, i: int) -> Iterator[tuple[str, str, np.ndarray, int]]:
        """Role, grid, stored rows and inputs."""
        gated = layer.gate_proj is not None
        w = layer.gate_proj if layer.gate_proj is not None else layer.up_proj
        role = "predictor_gate" if gated else "predictor_up"
        yield role, self.digest, pack_signs(as_float32(w)), w.shape[1]
