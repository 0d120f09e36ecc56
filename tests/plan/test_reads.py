"""Expected reads against the rule itself, row by row."""

from __future__ import annotations

import numpy as np
import pytest

from sparseflash.plan.reads import Reading


def read(reading: Reading, size: int, picked: np.ndarray) -> int:
    """Bytes that stream.c reads for the rows ``picked`` of one part."""
    most = (reading.pick_bytes - 2 * reading.align) // size
    total, k = 0, 0
    while k < len(picked):
        first = last = picked[k]
        while k < len(picked):
            row = picked[k]
            if row - first >= most or (row - last - 1) * size > reading.gap:
                break
            last = row
            k += 1
        start = first * size // reading.align * reading.align
        end = -(-((last + 1) * size) // reading.align) * reading.align
        total += end - start
    return total


@pytest.mark.parametrize(
    ("align", "gap", "size"),
    [(4, 0, 360), (4, 1000, 288), (512, 0, 360), (512, 2048, 100), (4096, 16384, 360)],
)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_as_streamed(align: int, gap: int, size: int, share: float) -> None:
    reading = Reading(align, gap, 65536)
    rng = np.random.default_rng(1)
    rows, runs = 4096, 40
    found = [read(reading, size, np.flatnonzero(rng.random(rows) < share)) for _ in range(runs)]
    assert reading.share(size, share) == pytest.approx(np.mean(found) / (rows * size), rel=0.05)


def test_whole_parts_are_read_as_they_lie() -> None:
    assert Reading(4096, 16384, 65536).share(360, np.array([1.0, 0.0])).tolist()[0] == 1.0
    assert Reading(4, 0, 4096).share(360, 0.0) == pytest.approx(0.0, abs=1e-6)
