"""Artefacts appear whole or not at all: written to a temporary name, then renamed."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def root() -> Path:
    """The checkout: SPARSEFLASH_ROOT, or found from this file's place."""
    return Path(os.environ.get("SPARSEFLASH_ROOT") or Path(__file__).resolve().parents[3])


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name to write to: becomes ``path`` at the end, is removed on an exception.

    The name is the process's own, so that two that make the same file do not meet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    with whole(path) as temporary:
        temporary.write_bytes(data)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An .npz."""
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    write_bytes(path, data.getvalue())


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
