"""Artefacts appear whole or not at all: written to a temporary name, then renamed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def root() -> Path:
    """Where templates, firmware and recipes lie: SPARSEFLASH_ROOT, the checkout, or the package."""
    if given := os.environ.get("SPARSEFLASH_ROOT"):
        return Path(given)
    here = Path(__file__).resolve()
    checkout = here.parents[3]
    return checkout if (checkout / "codegen_templates").is_dir() else here.parents[1] / "data"


def emulators() -> Path:
    """Emulators and models of boards that are ours, one folder each."""
    here = Path(__file__).resolve()
    checkout = here.parents[2] / "emulators"
    return checkout if checkout.is_dir() else here.parents[1] / "data" / "emulators"


def work() -> Path:
    """Where build/ and .cache/ are written: beside the sources in a checkout, else in the current
    folder."""
    place = root()
    return Path.cwd() if place.is_relative_to(Path(__file__).resolve().parents[1]) else place


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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    with whole(path) as temporary:
        temporary.write_bytes(data)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An .npz, compressed."""
    import numpy as np

    data = io.BytesIO()
    np.savez_compressed(data, **arrays)  # type: ignore[arg-type]
    write_bytes(path, data.getvalue())


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows that have the keys of the first, which are the header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def parse_yaml(text: str) -> Any:
    """Plain data of YAML, by libyaml where it is there. Raises yaml.YAMLError."""
    import yaml

    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
