"""Sizes as people write them: 70000000, 512K, 70M, 1.5G. Decimal, as all printed sizes are."""

from __future__ import annotations

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
