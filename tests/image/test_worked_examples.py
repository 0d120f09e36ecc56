"""The numbers of docs/number-formats.md, computed."""

from __future__ import annotations

import numpy as np
import pytest

from sparseflash.base.files import root
from sparseflash.image.bfp import half_units, quantize_bfp
from sparseflash.image.grids import linear, pack_rows, quantize

W = np.zeros((1, 32), np.float32)
W[0, :8] = [0.30, -0.15, 0.02, 0.45, -0.60, 0.10, 0.75, -0.30]
X = np.zeros((1, 32), np.float32)
X[0, :8] = [1.5, -0.75, 0.1, 2.0, 0.5, -1.0, 0.25, 3.0]


def row(*cells: object) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


@pytest.fixture(scope="module")
def page() -> str:
    return (root() / "docs" / "number-formats.md").read_text(encoding="utf-8")


def test_weights(page: str) -> None:
    q4, q8, r8 = (quantize(W, fmt) for fmt in ("q4", "q8", "r8"))
    assert row("q", *q4.q[0, :8]) in page
    assert row("d·q + m", *(f"{v:.3f}" for v in q4.float32()[0, :8])) in page
    assert row("q", *q8.q[0, :8]) in page
    assert np.array_equal(q8.q, r8.q)
    assert f"0.75 / 127 = {float(q8.d[0, 0]):.6f}" in page
    assert f"a 32-bit float, {r8.d[0]:.8f}" in page
    assert f"{pack_rows(q4).shape[1]} bytes" in page and "34 bytes" in page
    word = int(pack_rows(r8)[0, 4:6].view("<i2")[0])
    assert f"256·(-25) + 51 = {word}" in page


def test_inputs_and_product(page: str) -> None:
    v = quantize_bfp(X)
    assert v.s[0] == 5 and v.k[0, 0] == 12
    assert row("x·2^5, rounded", *v.q[0, 0, :8]) in page
    q4 = quantize(W, "q4")
    d, m = int(half_units(q4.d)[0, 0]), int(half_units(q4.m)[0, 0])  # type: ignore[union-attr]
    assert f"D = 2^24·d = {d} and M = 2^24·m = {m}" in page
    isum, total = int(q4.q[0].astype(int) @ v.q[0, 0].astype(int)), int(v.q.astype(int).sum())
    assert f"= {isum} and Σ x = {total}." in page
    assert f"= {(isum * d + total * m) << 12}." in page
    found = {fmt: float(linear(quantize(W, fmt))(v)[0, 0]) for fmt in ("q4", "q8", "r8")}
    assert f"2^-(36 + 5) = {found['q4']:.5f}" in page
    assert f"`q8` gives {found['q8']:.5f} and `r8` gives {found['r8']:.5f}" in page
    assert f"w·x is {float((W @ X.T)[0, 0]):.3f}" in page
