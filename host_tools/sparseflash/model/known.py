"""What an earlier reading of a model's files told: its weights are read when they are asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from sparseflash.base.files import parse_json, write_text
from sparseflash.model.checkpoint import parts_of, weight_files
from sparseflash.model.spec import Model, ModelSpec

_FIELDS = frozenset(f.name for f in fields(Model))


def files_digest(path: Path, *more: Path | None) -> str:
    """SHA-256 of what makes a model: its files at ``path``, ``more`` files, and the readers' code.

    Raises:
        InputError: a folder without weights.
    """
    files = [path]
    if path.is_dir():
        beside = (p for p in path.iterdir() if p.suffix in (".json", ".jinja", ".model"))
        files = [*sorted(beside), *weight_files(path)[0]]
    elif path.suffix == ".gguf":
        files = parts_of(path)
    elif path.suffix == ".bin":
        files += sorted(path.parent.glob("tok*.bin"))
    files += [p for p in more if p is not None]
    files += sorted(Path(__file__).parent.rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as f:
            digest.update(f"{file.name}\0".encode() + hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


class _Known(Model):
    """A :class:`Model` that has spec, name and source; a look at its weights reads all of it."""

    def __init__(self, told: dict[str, Any], read: Callable[[], Model]) -> None:
        # A field that is set here is there without a reading; all others wait.
        self.name = ""
        self.spec = ModelSpec.of_plain(told["spec"])
        self.source: dict[str, str] = told["source"]
        self._kept: str = told["tokenizer"]
        self._read = read

    def __getattribute__(self, name: str) -> Any:
        if name in _FIELDS and name not in vars(self):
            self._fill(name)
        return object.__getattribute__(self, name)

    def _fill(self, name: str) -> None:
        if name == "tokenizer":
            from sparseflash.model.tokenizer import Tokenizer

            self.tokenizer = Tokenizer.from_kept(self._kept) if self._kept else None
            return
        model = self._read()
        vars(self).update({k: v for k, v in vars(model).items() if k not in vars(self)})
        # From here on it is like any other, and `replace` makes copies of that type.
        self.__class__ = Model  # type: ignore[assignment]


def known_model(path: Path, digest: str, read: Callable[[], Model]) -> Model:
    """The model that ``read`` reads: by what ``path`` tells of these files, else now.

    path: a file of ours, whole or absent. digest: of the model's files.
    """
    try:
        told = parse_json(path.read_text(encoding="utf-8"))
        if told["digest"] == digest:
            return _Known(told, read)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    model = read()
    told = {
        "digest": digest,
        "spec": asdict(model.spec),
        "source": model.source,
        "tokenizer": model.tokenizer.kept() if model.tokenizer is not None else "",
    }
    write_text(path, json.dumps(told))
    return model
