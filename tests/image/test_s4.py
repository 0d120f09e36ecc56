"""Grid s4: round trips, and the C kernels against the reference."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from sparseflash.base.errors import UnsupportedError
from sparseflash.base.files import root
from sparseflash.base.programs import run
from sparseflash.codegen.build import STRICT, includes
from sparseflash.image.bfp import quantize_bfp
from sparseflash.image.grids import grid, linear
from sparseflash.model.spec import Q8Blocks, S4Columns

S4 = grid("s4")


def matrix(rows: int, cols: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, cols)) * np.exp(rng.standard_normal((rows, 1)))
    w[:, 3] = 0
    return w.astype(np.float32)


def vector(n: int, kind: int) -> np.ndarray:
    rng = np.random.default_rng(kind)
    x = rng.standard_normal(n).astype(np.float32)
    if kind == 1:
        x *= np.exp(4 * rng.standard_normal(n)).astype(np.float32)
    if kind == 2:
        x[rng.random(n) < 0.9] = 0
    return x[None]


def test_round_trips() -> None:
    w = matrix(70, 96)
    rows, columns = S4.by_rows(w), S4.by_columns(w)
    assert S4.pack_rows(rows).shape == (70, S4.row_bytes(96)) == (70, 56)
    assert S4.pack_columns(columns).shape == (96, S4.row_bytes(70))
    back = S4.unpack_rows(S4.pack_rows(rows), 96)
    assert np.array_equal(back.q, rows.q) and np.array_equal(back.d, rows.d)
    again = S4.unpack_columns(S4.pack_columns(columns), np.zeros((0, 0)), 70)
    assert np.array_equal(again.q, columns.q) and np.array_equal(again.d, columns.d)
    for found in (rows.float32(), columns.float32()):
        assert np.linalg.norm(found - w) < 0.15 * np.linalg.norm(w)


def test_products() -> None:
    """By rows as any symmetric grid; by columns within the rounding of 15 bits of the same sum."""
    w = matrix(70, 96)
    rows, columns = S4.by_rows(w), S4.by_columns(w)
    for kind in range(3):
        v = quantize_bfp(vector(96, kind))
        symmetric = Q8Blocks(rows.q, rows.d)
        assert np.array_equal(linear(rows)(v), linear(symmetric)(v))
        scale = 2.0 ** -(v.s[0] + 12)
        x = (v.q.astype(np.float64) * 2.0 ** v.k[..., None]).reshape(1, -1) * scale
        exact = x @ columns.float32().astype(np.float64).T
        error = np.abs(linear(columns)(v) - exact)
        assert error.max() <= 96 * 8 * 2.0 ** (S4.shift(columns) - 24) * scale
        assert error.max() < 1e-3 * np.abs(exact).max() or kind == 2


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("s4") / "s4.so"
    source = root() / "firmware" / "kernels" / "plain" / "s4.c"
    flags = ["-O2", "-shared", "-fPIC", *STRICT, *includes("plain")]
    run(["cc", *flags, str(source), "-o", str(library)])
    return ctypes.CDLL(str(library))


class CBfp(ctypes.Structure):
    _fields_ = [
        ("q", ctypes.c_void_p),
        ("sum", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("groups", ctypes.c_uint32),
        ("s", ctypes.c_int32),
    ]


def pointers(items: np.ndarray) -> ctypes.Array[ctypes.c_void_p]:
    first, step = items.ctypes.data, items.strides[0]
    return (ctypes.c_void_p * len(items))(*(first + i * step for i in range(len(items))))


@pytest.mark.parametrize("kind", range(3))
def test_rows_in_c(kernels: ctypes.CDLL, kind: int) -> None:
    rows = S4.by_rows(matrix(13, 160, kind))
    v = quantize_bfp(vector(160, kind))
    packed, out = S4.pack_rows(rows), np.zeros(13, np.float32)
    q, k = np.ascontiguousarray(v.q), v.k.astype(np.uint8)
    total = v.sum.astype(np.int32)
    x = CBfp(q.ctypes.data, total.ctypes.data, k.ctypes.data, 5, int(v.s[0]))
    kernels.sf_plain_dot_s4(
        pointers(packed), 13, ctypes.byref(x), out.ctypes.data_as(ctypes.c_void_p)
    )
    assert np.array_equal(out.view(np.uint32), linear(rows)(v)[0].view(np.uint32))


@pytest.mark.parametrize("kind", range(3))
def test_columns_in_c(kernels: ctypes.CDLL, kind: int) -> None:
    columns = S4.by_columns(matrix(70, 96, kind))
    v = quantize_bfp(vector(96, kind))
    packed, acc = S4.pack_columns(columns), np.zeros(96, np.int32)
    a = (v.q.astype(np.int32) << v.k[..., None]).reshape(-1).astype(np.int32)
    shift = S4.shift(columns)
    order = np.random.default_rng(kind).permutation(96)
    for some in (order[:50], order[50:]):  # any order, any parts
        part, factors = np.ascontiguousarray(packed[some]), np.ascontiguousarray(a[some])
        kernels.sf_plain_axpy_s4(
            pointers(part),
            factors.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_uint32(len(some)),
            ctypes.c_uint32(96),
            ctypes.c_uint32(shift),
            acc.ctypes.data_as(ctypes.c_void_p),
        )
    scale = np.float32(2.0 ** (shift - 36 - int(v.s[0])))
    found = acc[:70].astype(np.float32) * scale
    assert np.array_equal(found.view(np.uint32), linear(columns)(v)[0].view(np.uint32))


def test_the_largest_values_fit() -> None:
    """Every activation and weight at its limit, as many inputs as are taken."""
    n = 8192
    q, d = np.full((32, n), -8, np.int8), np.full((1, n), np.float16(63.97))
    v = quantize_bfp(np.full((1, n), -127.0, np.float32))
    y = linear(S4Columns(q, d))(v)
    assert np.allclose(y, 8 * 63.97 * 127 * n, rtol=1e-3)
    with pytest.raises(UnsupportedError, match="8,193 inputs"):
        linear(S4Columns(np.zeros((32, n + 1), np.int8), np.zeros((1, n + 1), np.float16)))
