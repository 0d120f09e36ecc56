"""The cost of a read by its size: what decides when two rows share one.

A read of n bytes is taken to cost a + b*n; a gap of fewer than a/b bytes is cheaper to read through
than to start another read for. Measured on the image as it lies on this machine's disk, with the
queue depth of the board's rings.
"""

from __future__ import annotations

import mmap
import os
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from sparseflash.base.errors import InputError
from sparseflash.base.progress import each

SIZES = tuple(1 << k for k in range(12, 21))


def _reads(fd: int, size: int, count: int, depth: int, blocks: int) -> float:
    """Seconds a read, ``depth`` of them in flight at random places."""
    each = max(1, count // depth)
    spots = [[random.randrange(blocks) * 4096 for _ in range(each)] for _ in range(depth)]

    def walk(mine: list[int]) -> None:
        with mmap.mmap(-1, size) as buffer:
            for at in mine:
                os.preadv(fd, [buffer], at)

    threads = [threading.Thread(target=walk, args=(s,)) for s in spots]
    start = time.perf_counter()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return (time.perf_counter() - start) / (each * depth)


def measure(path: Path, depth: int, repetitions: int = 3) -> dict[str, Any]:
    """Medians by size, the fitted a (seconds) and b (seconds a byte), and the gap a/b in bytes.

    Raises:
        InputError: the file system reads no file past the page cache, or the file is too small.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as e:
        raise InputError(f"{path}: cannot be read past the page cache ({e.strerror})") from e
    try:
        blocks = os.fstat(fd).st_size // 4096 - SIZES[-1] // 4096
        if blocks < 64:
            raise InputError(f"{path}: too small to measure; generate a larger model")
        seconds = []
        for size in each("reading blocks of many sizes", SIZES):
            count = max(32, min(512, (16 << 20) // size))
            runs = [_reads(fd, size, count, depth, blocks) for _ in range(repetitions)]
            seconds.append(statistics.median(runs))
    finally:
        os.close(fd)
    x, y = np.array(SIZES, float), np.array(seconds)
    # Relative errors count alike at every size.
    b, a = np.polyfit(x, y, 1, w=1 / y)
    a, b = max(float(a), 0.0), float(b)
    return {
        "depth": depth,
        "bytes": list(SIZES),
        "seconds": seconds,
        "start_seconds": a,
        "seconds_per_byte": b,
        "gap": int(a / b) if b > 0 else SIZES[-1],
    }
