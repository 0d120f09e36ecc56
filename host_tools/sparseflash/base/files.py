"""Artefacts appear whole or not at all: written to a temporary name, then renamed."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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

    The name is the thread's own, so that two that make the same file do not meet. What a process
    that was killed left beside it goes when the next one writes here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    own = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f"{path.name}.{own}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill: takes the place of ``path`` at the end, or is removed.

    A process that is killed meanwhile leaves the old folder, the new one or none, never a mixture;
    what it left beside them goes when the next one writes here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    new, old = (path.with_name(f"{path.name}.{k}{os.getpid()}.part") for k in ("", "old-"))
    try:
        new.mkdir()
        yield new
        for attempt in range(10):
            try:
                if path.exists():
                    path.rename(old)
                new.rename(path)
                return
            except OSError:  # another process put its own there
                if attempt == 9:
                    raise
                shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time is in here for a ``folder``; others wait until it leaves or ends."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _clear(path: Path) -> None:
    """Removes temporary files and folders of ``path`` whose processes ended."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        if not _runs(left.name.split(".")[-2]):
            shutil.rmtree(left, ignore_errors=True)
            with suppress(OSError):
                left.unlink()


def _runs(name: str) -> bool:
    """Whether the process that a temporary name belongs to is there."""
    number = name.removeprefix("old-").split("-")[0]
    try:
        os.kill(int(number), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


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


def no_nan(value: Any) -> Any:
    """Plain data in which what is no number is None: JSON has no word for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: no_nan(v) for k, v in value.items()}
    return [no_nan(v) for v in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(no_nan(value), indent=2, sort_keys=True, ensure_ascii=False)
    write_text(path, text + "\n")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows that have the keys of the first, which are the header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(no_nan(row) for row in rows)
    write_text(path, text.getvalue())


def parse_yaml(text: str) -> Any:
    """Plain data of YAML, by libyaml where it is there. Raises yaml.YAMLError."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):  # libyaml ends the process where it is too deep
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > 100:
            raise yaml.YAMLError("it is nested too deeply")
    try:
        return yaml.load(text, Loader=loader)
    except ValueError as e:  # a date or number that cannot be
        raise yaml.YAMLError(str(e)) from None


def parse_json(text: str | bytes) -> Any:
    """Plain data of JSON. Raises ValueError, also where lists in lists have no end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
