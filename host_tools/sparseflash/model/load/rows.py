"""Row orders of q and k: interleaved RoPE pairs to Hugging Face's half-split."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from sparseflash.model.spec import Matrix


def half_split_index(heads: int, head_dim: int) -> np.ndarray:
    """Row i of the half-split matrix is row index[i] of the interleaved one."""
    one = np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])
    return np.concatenate([h * head_dim + one for h in range(heads)])


def take_rows(matrix: Matrix, index: np.ndarray) -> Matrix:
    if isinstance(matrix, np.ndarray):
        return np.ascontiguousarray(matrix[index])
    return matrix.rows(index)


def file_sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
