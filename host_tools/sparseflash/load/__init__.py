"""Loaders: one function for every source of weights."""

from __future__ import annotations

from pathlib import Path

from sparseflash.errors import InputError, UnsupportedError
from sparseflash.spec import Model


def load_model(source: str | Path, tokenizer: str | Path | None = None) -> Model:
    """A model in memory from a GGUF file, a safetensors directory or a llama2.c ``.bin``.

    Raises:
        InputError: the source is missing, damaged or truncated.
        UnsupportedError: a kind or architecture that no loader reads.
    """
    path = Path(source)
    if path.is_dir():
        from sparseflash.load.hf_dir import load_directory

        return load_directory(path)
    if not path.exists():
        text = str(source)
        if text.count("/") == 1 and not text.startswith((".", "/")) and not path.suffix:
            raise InputError(
                f"{text}: hub ids are not downloaded; save the checkpoint to a folder and name it"
            )
        raise InputError(f"{path}: no such model file; `make fetch` brings the known ones")
    if path.suffix == ".gguf":
        from sparseflash.load.gguf_file import load_gguf

        return load_gguf(path)
    if path.suffix == ".bin":
        from sparseflash.load.llama2c import load_llama2c

        return load_llama2c(path, Path(tokenizer) if tokenizer else None)
    raise UnsupportedError(
        f"{path}: unknown kind of model file {path.suffix!r}; give a .gguf, a llama2.c .bin or a "
        "folder with config.json and *.safetensors"
    )
