"""Checkpoints of Hugging Face: which files of a folder are weights, and folders from the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sparseflash.base.errors import InputError, SparseflashError, UnsupportedError
from sparseflash.base.files import parse_json


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises InputError when there is none."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; give a folder with config.json") from None
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: not readable JSON ({e}); export the checkpoint again") from e
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object; export the checkpoint again")
    return value


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files that transformers would load, and which tensor lies where if an index says so.

    ``model.safetensors`` alone, else what ``model.safetensors.index.json`` lists. Other files
    (leftovers, ``._`` twins of a file manager, adapters) are not weights of the model.

    Raises:
        InputError: neither is there. UnsupportedError: only other kinds of weights are.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single], None
    if index.is_file():
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise InputError(f"{index}: it has no weight_map; download it again")
        names = sorted({str(v) for v in where.values()})
        outside = [n for n in names if Path(n).name != n]
        if outside:
            raise InputError(f"{index}: it names {outside[0]!r}, outside its folder; fetch again")
        return [folder / n for n in names], {str(k): str(v) for k, v in where.items()}
    if (folder / "adapter_config.json").is_file():
        raise UnsupportedError(f"{folder}: it holds an adapter; merge it into its model first")
    old = sorted(p.name for p in folder.glob("pytorch_model*.bin"))
    if old:
        raise UnsupportedError(
            f"{folder}: {old[0]} is a pickle, which is not read; save the model as safetensors"
        )
    other = sorted(p.name for p in folder.glob("*.safetensors") if not p.name.startswith("."))
    beside = f" ({other[0]} is not named so)" if other else ""
    raise InputError(
        f"{folder}: neither model.safetensors nor model.safetensors.index.json is there{beside}; "
        "save the checkpoint there"
    )


_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def parts_of(path: Path) -> list[Path]:
    """All files of a split GGUF by their names, or the one file.

    Raises:
        InputError: a part is missing.
    """
    m = _PART.fullmatch(path.name)
    if not m:
        return [path]
    count = int(m[3])
    parts = [path.with_name(f"{m[1]}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    for p in parts:
        if not p.is_file():
            raise InputError(f"{p}: this part of the split GGUF is missing; put all parts together")
    return parts


HUB_ID = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*(/[\w./-]+\.gguf)?(?<!\.bin)")
"""org/name, or org/name/file.gguf for a repository of GGUF files."""
_FILES = ["*.json", "*.jinja", "model*.safetensors"]


def _whole(folder: Path) -> bool:
    """Whether the weights of a snapshot are all there."""
    try:
        return all(f.is_file() for f in weight_files(folder)[0])
    except SparseflashError:
        return False


def hub_path(hub_id: str) -> Path:
    """The folder (or GGUF file) of a hub id; asks the network only for what the cache lacks.

    Raises:
        InputError: it is not in the cache, and the hub does not give it.
    """
    import huggingface_hub

    org, name, *file = hub_id.split("/", 2)

    def get(offline: bool) -> Path:
        more: dict[str, Any] = {"local_files_only": offline}
        if file:
            return Path(huggingface_hub.hf_hub_download(f"{org}/{name}", file[0], **more))
        found = huggingface_hub.snapshot_download(f"{org}/{name}", allow_patterns=_FILES, **more)
        return Path(found)

    try:
        cached = get(offline=True)
        if file or _whole(cached):
            return cached
    except Exception:  # nothing of it is cached
        pass
    try:
        return get(offline=False)
    except Exception as e:  # no network, unknown id, gated: the caller needs one sentence
        raise InputError(
            f"{hub_id}: it is no file here, not in the local hub cache, and the hub cannot be "
            f"asked or does not give it ({type(e).__name__}); download it to a folder and name that"
        ) from e
