"""Hugging Face checkpoints: a directory with ``config.json`` and ``*.safetensors``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from sparseflash.base.errors import InputError, SparseflashError, UnsupportedError
from sparseflash.model.load.check import check_model
from sparseflash.model.load.families import FAMILIES, Family
from sparseflash.model.load.rows import file_sha256
from sparseflash.model.load.story import MODEL_TYPE, load_story
from sparseflash.model.spec import Layer, Model, ModelSpec
from sparseflash.model.tokenizer import TURN_ENDS, Tokenizer

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; give a folder with config.json") from None
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: not readable JSON ({e}); export the checkpoint again") from e
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object; export the checkpoint again")
    return value


class _Tensors:
    """Tensors of all shards by name, as float32; names are tried without the prefix too."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder = folder
        self.prefix = prefix
        self.shards = sorted(folder.glob("*.safetensors"))
        if not self.shards:
            raise InputError(
                f"{folder}: no *.safetensors file; save the checkpoint as safetensors there"
            )
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            listed = set(_read_json(index).get("weight_map", {}).values())
            self.shards = [folder / str(name) for name in sorted(listed)]
        self.where: dict[str, Any] = {}
        for shard in self.shards:
            try:
                handle: Any = safe_open(shard, framework="pt")
            except (SafetensorError, OSError) as e:
                raise InputError(
                    f"{shard}: missing, truncated or damaged ({e}); download it again"
                ) from e
            self.where |= {name: (shard, handle) for name in handle.keys()}  # noqa: SIM118

    def name(self, short: str) -> str | None:
        return next((n for n in (self.prefix + short, short) if n in self.where), None)

    def get(self, short: str) -> np.ndarray:
        """float32 values of the tensor. Raises InputError when there is none."""
        name = self.name(short)
        if name is None:
            raise InputError(
                f"{self.folder}: tensor {self.prefix + short} is missing; "
                "the weights do not belong to this config.json"
            )
        shard, handle = self.where[name]
        try:
            tensor = handle.get_tensor(name)
        except (SafetensorError, OSError) as e:
            raise InputError(f"{shard}: tensor {name} is damaged ({e}); download it again") from e
        if tensor.dtype not in _DTYPES:
            raise UnsupportedError(
                f"{shard}: tensor {name} is {tensor.dtype}; save the checkpoint unquantised"
            )
        return np.ascontiguousarray(tensor.to(torch.float32).numpy())


def _layer(tensors: _Tensors, family: Family, spec: ModelSpec, i: int) -> Layer:
    parts: dict[str, np.ndarray] = {}
    for field, template in family.layer.items():
        value = tensors.get(template.format(i=i))
        if family.transposed and value.ndim == 2:
            value = np.ascontiguousarray(value.T)
        if family.norm_plus_one and field.endswith("_norm"):
            value = value + np.float32(1)
        parts[field] = value
    if family.fused_qkv:
        base = family.fused_qkv.format(i=i)
        weight, bias = tensors.get(base + ".weight"), tensors.get(base + ".bias")
        if weight.shape != (spec.dim, 3 * spec.q_dim) or bias.shape != (3 * spec.q_dim,):
            raise InputError(f"{tensors.folder}: {base} has shape {weight.shape}, not q, k and v")
        for x, w, b in zip("qkv", np.split(weight, 3, axis=1), np.split(bias, 3)):
            parts[f"{x}_proj"], parts[f"{x}_bias"] = np.ascontiguousarray(w.T), b.copy()
    return Layer(**parts)


def _chat_template(folder: Path) -> str:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    template = _read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(template, list):
        named = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def _sha256(files: list[Path]) -> str:
    """Digest of the one file, or of the digests of several in order of name."""
    if len(files) == 1:
        return file_sha256(files[0])
    return hashlib.sha256("\n".join(file_sha256(f) for f in files).encode()).hexdigest()


def load_directory(folder: Path) -> Model:
    """Reads a checkpoint of a family in ``FAMILIES``; weights become float32.

    Raises:
        InputError: a file or tensor is missing, damaged or of the wrong shape.
        UnsupportedError: another ``model_type``, or an option no builder covers.
    """
    config = _read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind == MODEL_TYPE:
        return load_story(folder, config)
    if kind not in FAMILIES:
        raise UnsupportedError(
            f"{folder}: model_type {kind!r} is not supported; known are {', '.join(FAMILIES)}"
        )
    if config.get("quantization_config"):
        raise UnsupportedError(f"{folder}: the checkpoint is quantised; give the unquantised one")
    family = FAMILIES[kind]
    try:
        spec = family.spec(config)
    except SparseflashError as e:
        raise type(e)(f"{folder}: {e}") from None
    except (TypeError, ValueError, ArithmeticError) as e:
        raise InputError(f"{folder}/config.json: a value has the wrong type ({e})") from e
    tensors = _Tensors(folder, family.prefix)
    has_head = "lm_head.weight" in tensors.where
    tied = bool(config.get("tie_word_embeddings", family.tied_default or not has_head))

    eos = set(spec.eos_ids)
    generation = folder / "generation_config.json"
    if generation.is_file():
        more = _read_json(generation).get("eos_token_id")
        eos |= {
            int(x) for x in (more if isinstance(more, list) else [] if more is None else [more])
        }
    spec = replace(spec, tied_head=tied, chat_template=_chat_template(folder))
    tokenizer = None
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_tokenizer_json(folder / "tokenizer.json", spec)
        eos |= {i for t, i in tokenizer.special.items() if t in TURN_ENDS}
    spec = replace(spec, eos_ids=tuple(sorted(eos)))

    final_norm = tensors.get(family.final_norm)
    if family.norm_plus_one:
        final_norm = final_norm + np.float32(1)
    final_bias = family.final_norm.replace(".weight", ".bias")
    model = Model(
        spec=spec,
        embed=tensors.get(family.embed),
        layers=[_layer(tensors, family, spec, i) for i in range(spec.n_layers)],
        final_norm=final_norm,
        head=None if tied else tensors.get("lm_head.weight"),
        final_norm_bias=tensors.get(final_bias) if tensors.name(final_bias) else None,
        positions=tensors.get(family.positions) if family.positions else None,
        tokenizer=tokenizer,
        name=folder.resolve().name,
        source={"kind": "hf", "file": folder.name, "sha256": _sha256(tensors.shards)},
    )
    return check_model(model, folder)
