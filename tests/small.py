"""A small model with words and random weights, of the shape of llama2.c's stories260K.

Nothing of it is a file: the tool draws the weights from a seed, as those of ``random-8m``, and the
tokenizer is cut from that of the model ``story``.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import yaml

from sparseflash.base.files import file_sha256, root
from sparseflash.model.recipes import Recipe, load_recipe

NAME = "small"
VOCAB = 512
SHAPE = {"dim": 64, "ffn_dim": 172, "layers": 5, "heads": 8, "kv_heads": 4, "vocab": VOCAB}


def pieces() -> list[str]:
    """The pieces of the tokenizer after its 259 special ones: merged ones first, best first."""
    story = json.loads((root() / "models" / "story" / "tokenizer.json").read_text())
    letters = [chr(c) for c in range(32, 127)]
    merged = ("".join(pair).replace("\u0120", " ") for pair in story["model"]["merges"])
    return [*list(merged)[: VOCAB - 259 - len(letters)], *letters]


def write_tokenizer(path: Path) -> None:
    """llama2.c's ``tok512.bin`` with these pieces."""
    special = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % b for b in range(256))]
    entries = [(0.0, p) for p in special]
    entries += [(-float(i), p.encode()) for i, p in enumerate(pieces())]
    body = b"".join(struct.pack("<fi", score, len(p)) + p for score, p in entries)
    path.write_bytes(struct.pack("<i", max(len(p) for _, p in entries)) + body)


def add_small(base: Path, grid: str = "q8") -> Recipe:
    """Adds the recipe of the model to a checkout of a test, and its tokenizer."""
    words = base / "models" / "tok512.bin"
    write_tokenizer(words)
    recipe = {
        "name": NAME,
        "title": "random weights with words",
        "licence": "MIT",
        "source": {
            "kind": "random",
            "seed": 3,
            "shape": {**SHAPE, "context": 512},
            "sha256": "01c194c488724e8199f335176c79c9b893fefb1d47f527f4bb8dbae14e6980ed",
            "bytes": 1056540,
        },
        "tokenizer": {
            "kind": "file",
            "path": "models/tok512.bin",
            "sha256": file_sha256(words),
            "bytes": words.stat().st_size,
        },
        "formats": dict.fromkeys(("attn", "ffn", "embed"), grid),
        "kv_len": 512,
        "calibration": {"texts": ["tiny"], "tokens": 4096, "window": 256, "seed": 1},
        "evaluation": {"text": "technical-test", "tokens": 40960, "window": 512},
    }
    path = base / "models" / f"{NAME}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return load_recipe(NAME)
