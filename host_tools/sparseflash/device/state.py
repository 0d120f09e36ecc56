"""Kept state: the KV cache of a prompt in a file, so that the prompt need not run again.

A line of JSON (what it belongs to, the tokens, the SHA-256 of the rest), then the cache's bytes,
position by position.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sparseflash.base.errors import InputError, MismatchError, UsageError
from sparseflash.base.files import parse_json, write_bytes
from sparseflash.device.link.client import Device


def save(device: Device, tokens: list[int], path: Path) -> None:
    """What the device holds of its first positions, which are those of ``tokens``."""
    data = b"".join(device.read_state(p) for p in range(len(tokens)))
    info = device.info()
    about = {
        "sparseflash state": 1,
        "plan": info.plan_digest,
        "image": info.model_sha,
        "tokens": tokens,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    try:
        write_bytes(path, json.dumps(about).encode() + b"\n" + data)
    except OSError as e:
        raise UsageError(f"{path} cannot be written: {e.strerror}") from e


def load(device: Device, path: Path) -> list[int]:
    """Puts a kept state into the device, which is then behind its tokens; answers those.

    Raises:
        InputError: the file is no kept state, or damaged.
        MismatchError: it is of another plan or image.
    """
    try:
        head, _, data = path.read_bytes().partition(b"\n")
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}") from e
    try:
        about = parse_json(head)
        tokens = [int(t) for t in about["tokens"]]
        plan, image, sha = (str(about[k]) for k in ("plan", "image", "sha256"))
        version = about["sparseflash state"]
    except (ValueError, KeyError, TypeError):
        version = 0
    if version != 1:
        raise InputError(f"{path} is no state that chat --state kept; give another file")
    info, size = device.info(), device.state_bytes
    if (plan, image) != (info.plan_digest, info.model_sha):
        raise MismatchError(
            f"{path} is the state of another plan or model than {info.model} on {info.board}; "
            "delete it, or give another file"
        )
    good = len(data) == size * len(tokens) and hashlib.sha256(data).hexdigest() == sha
    if not good or len(tokens) > info.kv_len or any(not 0 <= t < info.vocab for t in tokens):
        raise InputError(f"{path} is damaged; delete it")
    device.reset()
    for i, token in enumerate(tokens):
        device.write_state(token, data[i * size : (i + 1) * size])
    return tokens
