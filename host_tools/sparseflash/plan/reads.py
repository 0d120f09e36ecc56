"""What a board reads from flash for rows that a mask picks, as ``firmware/flash/stream.c`` reads.

Rows whose gap is at most ``gap`` bytes share a read, a read covers at most ``pick_bytes``, and its
ends are rounded to ``align``. Where blocks are larger than rows, a mask saves less than it drops,
or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Reading:
    """How a board reads: bytes a read is aligned to, gap that is read over, longest read."""

    align: int
    gap: int
    pick_bytes: int

    @classmethod
    def of(cls, stream: dict[str, Any]) -> Reading:
        """From ``stream`` of a board."""
        return cls(*(int(stream[k]) for k in ("align", "gap", "pick_bytes")))

    def share(self, size: int, picked: np.ndarray | float) -> np.ndarray:
        """Bytes read for each byte of a part whose rows have ``size`` bytes.

        picked: share of its rows that a token uses, each row as likely as the other; all of them
        are read as they lie.
        """
        p = np.clip(np.asarray(picked, float), 1e-9, 1.0)
        q, most = 1.0 - p, self.gap // size
        # After a picked row: rows read over, the chance that the gap ends its read, and that the
        # longest read does.
        over = q * (1 - (most + 1) * q**most + most * q ** (most + 1)) / p
        full = np.minimum((1 + over) / max((self.pick_bytes - 2 * self.align) // size, 1), 1.0)
        rounded = (q ** (most + 1) + full) * (self.align - gcd(self.align, size)) / size
        read = p * (1 + over * (1 - full) + rounded)
        return np.where(p >= 1.0, 1.0, read)
