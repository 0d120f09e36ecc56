"""Windows of text for measurements."""

from __future__ import annotations

import numpy as np


def spread(ids: np.ndarray, rows: int) -> np.ndarray:
    """``rows`` windows spread evenly over the calibration windows."""
    rows = max(1, min(rows, len(ids)))
    return np.ascontiguousarray(ids[np.linspace(0, len(ids) - 1, rows).round().astype(int)])
