"""What ``--model`` takes: a recipe's name, a file, a folder or a hub id.

A GGUF file, a safetensors folder, a llama2.c ``.bin`` and a hub id get a recipe of their own under
``build/models/<name>/recipe.yaml``. The tool chooses what a recipe would say: grids by size, KV
length and windows by the model's context, texts by whether it has a tokenizer. A recipe of
``models/`` always wins over a file of its name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparseflash.base.errors import InputError, UnsupportedError, UsageError
from sparseflash.base.files import write_text
from sparseflash.model import recipes
from sparseflash.model.checkpoint import HUB_ID, hub_path, weight_files

SMALL = 30_000_000
"""Models with fewer weights keep 8 bits: four cost them much and save little."""
MOST_KV = 1024


@dataclass(frozen=True)
class _Shape:
    """The few numbers that defaults depend on."""

    weights: int
    context: int
    tokenizer: bool
    grid: str = ""
    """The grid that most of the file's weights are on, if any."""


def resolve(model: str, tokenizer: str | None = None) -> str:
    """The name of the recipe of ``model``, written first if it has none.

    tokenizer: a llama2.c tokenizer file; later calls for the same model remember it.

    Raises:
        UsageError: neither a recipe, nor a file, nor a hub id.
        InputError: the file or checkpoint is not readable, or the hub does not answer.
        UnsupportedError: another kind of file.
    """
    if model in recipes.recipe_names() or recipes.own_recipe_path(model).is_file():
        if tokenizer is not None:
            raise UsageError("--tokenizer goes with a llama2.c .bin; a recipe names its own")
        return model
    path = Path(model).expanduser()
    if path.exists():
        source = {"kind": "path", "path": str(path.resolve())}
        label = path.resolve().name
    elif HUB_ID.fullmatch(model):
        path = hub_path(model)
        source, label = {"kind": "hub", "path": model}, model.replace("/", "--")
    else:
        raise UsageError(
            f"no model {model!r}: it is no recipe ({', '.join(recipes.recipe_names())}), no file "
            "or folder here, and no hub id like org/name"
        )
    place = json.dumps(source, sort_keys=True)
    stem = re.sub(r"[^a-z0-9]+", "-", label.lower().removesuffix(".gguf").removesuffix(".bin"))
    name = f"{stem.strip('-')[:40] or 'model'}-{hashlib.sha256(place.encode()).hexdigest()[:6]}"
    file = recipes.own_recipe_path(name)
    old = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    beside = tokenizer and str(Path(tokenizer).expanduser().resolve())
    if beside is None and isinstance(old, dict):
        beside = (old.get("tokenizer") or {}).get("path")
    stamp = _stamp(path)
    if isinstance(old, dict) and old.get("stamp") == stamp and not tokenizer:
        return name
    if beside and path.suffix != ".bin":
        raise UsageError("--tokenizer goes with a llama2.c .bin; other models carry their own")
    entry = _defaults(name, label, source, _shape_of(path, bool(beside)), stamp)
    if beside:
        entry["tokenizer"] = {"kind": "path", "path": beside}
    write_text(file, yaml.safe_dump(entry, sort_keys=False))
    return name


def _stamp(path: Path) -> str:
    """Changes when the model's files do."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    seen = [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files]
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]


def _defaults(
    name: str, label: str, source: dict[str, str], shape: _Shape, stamp: str
) -> dict[str, Any]:
    grid = shape.grid or ("q8" if shape.weights < SMALL else "q4")
    calibration: dict[str, Any] = {"texts": ["random"], "tokens": 1024}
    entry: dict[str, Any] = {
        "name": name,
        "title": f"{label}, {shape.weights / 1e6:.3g} M weights",
        "licence": "its owner's",
        "source": source,
        "stamp": stamp,
        "formats": {"attn": grid, "ffn": grid, "embed": "q8"},
        "kv_len": min(shape.context, MOST_KV),
    }
    if shape.tokenizer:
        calibration = {"texts": ["wiki", "c4", "tiny"], "tokens": 16384}
        text = recipes.evaluation_text()
        if text:
            window = min(shape.context, 1024)
            entry["evaluation"] = {"text": text, "tokens": 40960, "window": window}
    entry["calibration"] = {**calibration, "window": min(shape.context, 512), "seed": 1}
    return entry


def _shape_of(path: Path, tokenizer: bool) -> _Shape:
    if path.is_dir():
        return _folder_shape(path)
    if path.suffix == ".gguf":
        return _gguf_shape(path)
    if path.suffix == ".bin":
        return _bin_shape(path, tokenizer)
    raise UnsupportedError(
        f"{path}: unknown kind of model file {path.suffix!r}; give a .gguf, a llama2.c .bin or a "
        "folder with config.json and model.safetensors"
    )


def _folder_shape(path: Path) -> _Shape:
    from safetensors import safe_open

    from sparseflash.model.load.hf_dir import spec_of

    spec = spec_of(path)
    weights = 0
    for file in weight_files(path)[0]:
        try:
            with safe_open(file, framework="np") as f:
                weights += sum(math.prod(f.get_slice(k).get_shape()) for k in f.keys())  # noqa: SIM118
        except Exception as e:  # the safetensors package has its own, and OSError
            raise InputError(f"{file}: missing, truncated or damaged; download it again") from e
    return _Shape(weights, spec.context, (path / "tokenizer.json").is_file())


def _gguf_shape(path: Path) -> _Shape:
    from sparseflash.model.load.gguf_file import outline

    weights, context, tokens, kinds = outline(path)
    most = max(kinds, key=lambda k: kinds[k])
    grid = {"Q4_0": "q4", "Q4_1": "q4", "Q4_K": "q4", "Q8_0": "q8"}.get(most, "")
    return _Shape(weights, context, tokens, grid)


def _bin_shape(path: Path, tokenizer: bool) -> _Shape:
    with path.open("rb") as f:
        head = f.read(28)
    if len(head) < 28:
        raise InputError(f"{path}: {len(head)} bytes are too few for a llama2.c model")
    *_, vocab, context = struct.unpack("<7i", head)
    if context <= 0:
        raise InputError(f"{path}: its header is not one of llama2.c version 0")
    beside = [path.with_name(n) for n in (f"tok{abs(vocab)}.bin", "tokenizer.bin")]
    has = tokenizer or any(p.is_file() for p in beside)
    return _Shape(path.stat().st_size // 4, context, has)
