"""Stored rows of proxies: words by hand, round trips, and the C against the integers."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from sparseflash.base.files import root
from sparseflash.base.programs import run
from sparseflash.codegen.build import STRICT, includes
from sparseflash.image.bfp import quantize_bfp
from sparseflash.image.grids import linear
from sparseflash.image.proxy import pack_proxy, proxy_row_bytes, unpack_proxy
from sparseflash.model.spec import Q8Blocks


def blocks_of(u: np.ndarray, bits: int) -> Q8Blocks:
    """Weights whose stored numbers are u (out, in); scales are 1, 2 and so on."""
    q = 2 * u.astype(int) - 1 if bits == 1 else u.astype(int) - (2 ** (bits - 1) - 1)
    groups = u.shape[1] // 32
    d = np.tile(np.arange(1, groups + 1, dtype=np.float16), (len(u), 1))
    return Q8Blocks(q.astype(np.int8), d)


@pytest.mark.parametrize(
    ("bits", "stored", "words"),
    [
        (1, (1, 1, 0, 1), [0x80000201]),
        (2, (1, 2, 1, 2), [0x00001801, 0x80000000]),
        (3, (5, 6, 3, 4), [0x00003801, 0, 0x80000201]),
        (4, (9, 14, 3, 12), [0x00003009, 0x00000E00, 0, 0xC0000000]),
    ],
)
def test_words_of_a_group(bits: int, stored: tuple[int, ...], words: list[int]) -> None:
    """Weights 0, 5, 17 and 31 of a group alone; the others are stored as 0."""
    u = np.zeros((1, 32), np.uint8)
    u[0, [0, 5, 17, 31]] = stored
    packed = pack_proxy(blocks_of(u, bits), bits)[0]
    assert packed[: 4 * bits].view("<u4").tolist() == words
    assert packed[4 * bits :].tolist() == [0x00, 0x3C, 0, 0]  # the scale, and what fills up


@pytest.mark.parametrize("groups", [8, 10])
def test_words_of_blocks(groups: int) -> None:
    """Eight groups have each plane side by side, and so have the two that are left."""
    first = [g % 7 for g in range(groups)]
    later = [(g + 1) % 7 for g in range(groups)]
    u = np.zeros((1, groups, 32), np.uint8)
    u[0, :, 0], u[0, :, 16] = first, later
    packed = pack_proxy(blocks_of(u.reshape(1, -1), 3), 3)[0]
    words: list[int] = []
    for at in range(0, groups, 8):
        a, b = first[at : at + 8], later[at : at + 8]
        both = list(zip(a, b, strict=True))
        words += [v & 3 | (w & 3) << 4 for v, w in both] + [0] * len(a)
        words += [v >> 2 | w >> 2 << 4 for v, w in both]
    assert packed[: 12 * groups].view("<u4").tolist() == words
    assert packed[12 * groups :].view("<f2").tolist() == list(range(1, groups + 1))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("groups", [1, 3, 8, 10, 23])
def test_round_trips(bits: int, groups: int) -> None:
    rng = np.random.default_rng(groups)
    blocks = blocks_of(rng.integers(0, 2**bits, (5, 32 * groups)), bits)
    packed = pack_proxy(blocks, bits)
    assert packed.shape == (5, proxy_row_bytes(32 * groups, bits)) and packed.dtype == np.uint8
    back = unpack_proxy(packed, 32 * groups, bits)
    assert np.array_equal(back.q, blocks.q) and np.array_equal(back.d, blocks.d)


class CBfp(ctypes.Structure):
    _fields_ = [
        ("q", ctypes.c_void_p),
        ("sum", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("groups", ctypes.c_uint32),
        ("s", ctypes.c_int32),
    ]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library: Path = tmp_path_factory.mktemp("proxy") / "proxy.so"
    source = root() / "firmware" / "kernels" / "plain" / "dot_proxy.c"
    flags = ["-O2", "-shared", "-fPIC", *STRICT, *includes("plain")]
    run(["cc", *flags, str(source), "-o", str(library)])
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("groups", [2, 8, 10])
def test_rows_in_c(kernels: ctypes.CDLL, bits: int, groups: int) -> None:
    rng = np.random.default_rng(bits)
    blocks = blocks_of(rng.integers(0, 2**bits, (13, 32 * groups)), bits)
    v = quantize_bfp(np.exp(rng.standard_normal((1, 32 * groups))).astype(np.float32))
    packed, out = pack_proxy(blocks, bits), np.zeros(13, np.float32)
    q, k, total = np.ascontiguousarray(v.q), v.k.astype(np.uint8), v.sum.astype(np.int32)
    x = CBfp(q.ctypes.data, total.ctypes.data, k.ctypes.data, groups, int(v.s[0]))
    rows = (ctypes.c_void_p * 13)(*(row.ctypes.data for row in packed))
    kernels.sf_plain_dot_proxy(rows, 13, bits, ctypes.byref(x), out.ctypes.data_as(ctypes.c_void_p))
    assert np.array_equal(out.view(np.uint32), linear(blocks)(v)[0].view(np.uint32))
