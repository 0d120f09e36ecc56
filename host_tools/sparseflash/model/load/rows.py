"""Row orders of q and k: interleaved RoPE pairs to Hugging Face's half-split."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from sparseflash.base.files import file_sha256
from sparseflash.model.spec import Matrix


def half_split_index(heads: int, head_dim: int) -> np.ndarray:
    """Row i of the half-split matrix is row index[i] of the interleaved one."""
    one = np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])
    return np.concatenate([h * head_dim + one for h in range(heads)])


def partial_index(heads: int, head_dim: int, dims: int) -> np.ndarray:
    """Row order in which the turning dimensions 0 to ``dims`` of each head pair up as (i, i +
    head_dim/2), the others filling the halves. The same order for q and k keeps their products."""
    half, turn = head_dim // 2, dims // 2
    still = np.arange(dims, head_dim)
    first = np.concatenate([np.arange(turn), still[: half - turn]])
    second = np.concatenate([np.arange(turn, dims), still[half - turn :]])
    one = np.concatenate([first, second])
    return np.concatenate([h * head_dim + one for h in range(heads)])


def take_rows(matrix: Matrix, index: np.ndarray) -> Matrix:
    if isinstance(matrix, np.ndarray):
        return np.ascontiguousarray(matrix[index])
    return matrix.rows(index)


def files_sha256(files: list[Path]) -> str:
    """Digest of the one file, or of the digests of several in the given order."""
    if len(files) == 1:
        return file_sha256(files[0])
    return hashlib.sha256("\n".join(file_sha256(f) for f in files).encode()).hexdigest()
