"""Loaders: one function for every source of weights."""

from __future__ import annotations

from pathlib import Path

from sparseflash.base.errors import InputError, UnsupportedError
from sparseflash.model.checkpoint import HUB_ID, hub_path
from sparseflash.model.spec import Model


def load_model(source: str | Path, tokenizer: str | Path | None = None) -> Model:
    """A model in memory from a GGUF file, a safetensors directory or a llama2.c ``.bin``.

    ``org/name`` that is no path is a hub id; a ``.safetensors`` file names its folder.
    ``tokenizer`` is only for llama2.c,
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
        if HUB_ID.fullmatch(str(source)):
            return load_model(hub_path(str(source)))
        raise InputError(f"{path}: no such model file; sparseflash load brings the known ones")
    if path.suffix == ".gguf":
        from sparseflash.model.load.gguf_file import load_gguf

        return load_gguf(path)
    if path.suffix == ".safetensors":
        from sparseflash.model.load.hf_dir import load_directory

        return load_directory(path.parent)
    if path.suffix == ".bin":
        from sparseflash.model.load.llama2c import load_llama2c

        return load_llama2c(path, Path(tokenizer) if tokenizer else None)
    raise UnsupportedError(
        f"{path}: unknown kind of model file {path.suffix!r}; give a .gguf, a llama2.c .bin or a "
        "folder with config.json and model.safetensors"
    )
