"""Checkpoints of the Hugging Face hub: from its local cache, else from the network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sparseflash.base.errors import InputError, SparseflashError

HUB_ID = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*(/[\w./-]+\.gguf)?(?<!\.bin)")
"""org/name, or org/name/file.gguf for a repository of GGUF files."""
_FILES = ["*.json", "*.jinja", "model*.safetensors"]


def _whole(folder: Path) -> bool:
    """Whether the weights of a snapshot are all there."""
    from sparseflash.model.load.hf_dir import weight_files

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
            f"{hub_id}: it is no file here, not in the local hub cache, and the hub cannot be asked "
            f"or does not give it ({type(e).__name__}); download it to a folder and name that"
        ) from e
