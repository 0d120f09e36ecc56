"""Loaders: one function for every source of weights."""

from __future__ import annotations

import re
from pathlib import Path

from sparseflash.base.errors import InputError, UnsupportedError
from sparseflash.model.spec import Model

_HUB_ID = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*(?<!\.bin)(?<!\.gguf)")


def _snapshot(hub_id: str) -> Path:
    """Folder of a hub checkpoint, from the cache or the network."""
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(hub_id, allow_patterns=["*.json", "*.jinja", "*.safetensors"])
        )
    except Exception as e:  # offline, unknown id, gated: the caller needs one sentence
        raise InputError(
            f"{hub_id}: neither a file here nor a checkpoint the hub gave ({type(e).__name__}); "
            "download it to a folder and name that"
        ) from e


def load_model(source: str | Path, tokenizer: str | Path | None = None) -> Model:
    """A model in memory from a GGUF file, a safetensors directory or a llama2.c ``.bin``.

    ``org/name`` that is no path is a hub id. ``tokenizer`` is only for llama2.c,
    whose models do not carry one.

    Raises:
        InputError: the source is missing, damaged or truncated.
        UnsupportedError: a kind or architecture that no loader reads.
    """
    path = Path(source)
    if path.is_dir():
        from sparseflash.model.load.hf_dir import load_directory

        return load_directory(path)
    if not path.exists():
        if _HUB_ID.fullmatch(str(source)):
            from sparseflash.model.load.hf_dir import load_directory

            return load_directory(_snapshot(str(source)))
        raise InputError(f"{path}: no such model file; `make fetch` brings the known ones")
    if path.suffix == ".gguf":
        from sparseflash.model.load.gguf_file import load_gguf

        return load_gguf(path)
    if path.suffix == ".bin":
        from sparseflash.model.load.llama2c import load_llama2c

        return load_llama2c(path, Path(tokenizer) if tokenizer else None)
    raise UnsupportedError(
        f"{path}: unknown kind of model file {path.suffix!r}; give a .gguf, a llama2.c .bin or a "
        "folder with config.json and *.safetensors"
    )
