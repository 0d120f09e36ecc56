"""Numbers as people write them: sizes (70000000, 512K, 70M, 1.5G, decimal as all printed ones are),
and values with their error."""

from __future__ import annotations

import math
import re

from sparseflash.base.errors import UsageError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMG]?)", re.ASCII)


def parse_size(option: str, text: str) -> int:
    """Bytes of ``text``, the value of ``option``.

    Raises:
        UsageError: it is no size, or less than a byte.
    """
    found = _SIZE.fullmatch(text.strip().upper())
    size = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if size < 1:
        raise UsageError(f"{option} {text!r} is not a size in bytes; write 70000000, 512K or 70M")
    return size


def with_error(value: float, error: float, digits: int) -> str:
    """A value and its standard error, of which one window has none."""
    plain = f"{value:.{digits}f}"
    return plain if math.isnan(error) else f"{plain} ± {error:.{digits}f}"


def in_units(size: int) -> str:
    """Bytes of a memory, whose K, M and G are those of its data sheet."""
    for power, unit in ((30, "GB"), (20, "MB"), (10, "KB")):
        if size >= 1 << power:
            return f"{size / (1 << power):.4g} {unit}"
    return f"{size} B"
