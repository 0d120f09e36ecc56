"""Hugging Face checkpoints: a directory with ``config.json`` and ``*.safetensors``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from sparseflash.base.errors import InputError, SparseflashError, UnsupportedError
from sparseflash.base.progress import each
from sparseflash.model.checkpoint import read_json, weight_files
from sparseflash.model.load.check import check_model
from sparseflash.model.load.families import FAMILIES, Family
from sparseflash.model.load.rows import files_sha256, partial_index
from sparseflash.model.load.story import MODEL_TYPE, load_story
from sparseflash.model.spec import Layer, Model, ModelSpec
from sparseflash.model.tokenizer import TURN_ENDS, Tokenizer

MOST_LAYERS = 4096
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


_BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.bias|attention\.bias|masked_bias)")
"""Tables that older checkpoints carry and nobody reads."""


class _Tensors:
    """Tensors of all shards by name, as float32; names are tried without the prefix too."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder = folder
        self.prefix = prefix
        self.shards, index = weight_files(folder)
        self.where: dict[str, Any] = {}
        self.used: set[str] = set()
        for shard in self.shards:
            try:
                handle: Any = safe_open(shard, framework="pt")
            except (SafetensorError, OSError) as e:
                raise InputError(
                    f"{shard}: missing, truncated or damaged ({e}); download it again"
                ) from e
            for name in handle.keys():  # noqa: SIM118
                if index is None or index.get(name) == shard.name:
                    self.where[name] = (shard, handle)
        lost = sorted(set(index or ()) - set(self.where))
        if lost:
            raise InputError(f"{folder}: tensor {lost[0]} is not where the index says; fetch again")

    def left(self) -> list[str]:
        """Tensors that nobody has read, without the tables of old checkpoints."""
        return sorted(n for n in self.where if n not in self.used and not _BUFFERS.fullmatch(n))

    def name(self, short: str) -> str | None:
        return next((n for n in (self.prefix + short, short) if n in self.where), None)

    def get(self, short: str) -> np.ndarray:
        """float32 values of the tensor. Raises InputError when there is none."""
        name = self.name(short)
        if name is None:
            raise InputError(
                f"{self.folder}: tensor {self.prefix}{short} is missing; "
                "the weights do not belong to this config.json"
            )
        shard, handle = self.where[name]
        self.used.add(name)
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
    parts: dict[str, Any] = {"attn_norm": None, "ffn_norm": None}
    names = family.layer | (family.parallel if spec.parallel else {})
    biases = dict.fromkeys("qkv", spec.attn_bias) | {"o": spec.out_bias}
    biases |= {"gate": spec.ffn_bias and spec.gated, "up": spec.ffn_bias, "down": spec.ffn_bias}
    for field, template in names.items():
        if field.endswith("_bias") and not biases.get(field[: -len("_bias")], True):
            continue
        value: Any = tensors.get(template.format(i=i))
        if family.transposed and value.ndim == 2:
            value = np.ascontiguousarray(value.T)
        if family.norm_plus_one and field.endswith("_norm"):
            value = value + np.float32(1)
        parts[field] = value
    if family.fused is not None:
        at = family.block.format(i=i)
        parts |= family.fused(tensors.get, spec, at)
    dims = spec.layers[i].turning(spec.head_dim)
    if 0 < dims < spec.head_dim:
        for x, heads in (("q", spec.n_heads), ("k", spec.n_kv_heads)):
            index = partial_index(heads, spec.head_dim, dims)
            for field in (f"{x}_proj", f"{x}_bias"):
                rows = parts.get(field)
                if rows is None:
                    continue
                if len(rows) != len(index):
                    raise InputError(
                        f"{tensors.folder}: layer {i} {field} has shape {rows.shape} where the "
                        f"configuration asks for {len(index)} rows; export the checkpoint again"
                    )
                parts[field] = rows[index]
    return Layer(**parts)


def _chat_template(folder: Path) -> str:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(template, list):
        named = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def spec_of(folder: Path, config: dict[str, Any] | None = None) -> ModelSpec:
    """What config.json says, before the tensors and the tokenizer add to it.

    config: the file's contents, where they are read already.

    Raises:
        InputError: missing, damaged or contradictory. UnsupportedError: another ``model_type``,
            or an option no builder covers.
    """
    config = read_json(folder / "config.json") if config is None else config
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise UnsupportedError(
            f"{folder}: model_type {kind!r} is not supported; known are {', '.join(FAMILIES)}"
        )
    if config.get("quantization_config"):
        raise UnsupportedError(f"{folder}: the checkpoint is quantised; give the unquantised one")
    for key in ("num_hidden_layers", "n_layer"):
        if isinstance(config.get(key), int) and config[key] > MOST_LAYERS:
            raise InputError(f"{folder}: {config[key]} layers are not believable; correct {key}")
    try:
        return FAMILIES[kind].spec(config)
    except SparseflashError as e:
        raise type(e)(f"{folder}: {e}") from None
    except (TypeError, ValueError, ArithmeticError, AttributeError) as e:
        raise InputError(f"{folder}/config.json: a value has the wrong type ({e})") from e


def load_directory(folder: Path) -> Model:
    """Reads a checkpoint of a family in ``FAMILIES``; weights become float32.

    Raises:
        InputError: a file or tensor is missing, damaged or of the wrong shape.
        UnsupportedError: another ``model_type``, or an option no builder covers.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") == MODEL_TYPE:
        return load_story(folder, config)
    spec = spec_of(folder, config)
    kind = str(config["model_type"])
    family = FAMILIES[kind]
    tensors = _Tensors(folder, family.prefix)
    has_head = family.head in tensors.where
    tied = bool(config.get("tie_word_embeddings", family.tied_default or not has_head))

    eos = set(spec.eos_ids)
    generation = folder / "generation_config.json"
    if generation.is_file():
        more = read_json(generation).get("eos_token_id")
        eos |= {
            int(x) for x in (more if isinstance(more, list) else [] if more is None else [more])
        }
    spec = replace(spec, tied_head=tied, chat_template=_chat_template(folder))
    tokenizer = None
    named, pieces = folder / "tokenizer_config.json", folder / "tokenizer.model"
    said = read_json(named) if named.is_file() else {}
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_tokenizer_json(folder / "tokenizer.json", spec, said)
    elif pieces.is_file():
        tokenizer = Tokenizer.from_tokenizer_model(pieces, spec, said)
    if tokenizer is not None:
        if "eos_token" in tokenizer.names and tokenizer.eos_id >= 0:
            eos.add(tokenizer.eos_id)
        eos |= {i for t, i in tokenizer.special.items() if t in TURN_ENDS}
    spec = replace(spec, eos_ids=tuple(sorted(eos)))

    final_norm = tensors.get(family.final_norm)
    if family.norm_plus_one:
        final_norm = final_norm + np.float32(1)
    if family.logits_divisor:
        final_norm = final_norm / np.float32(config.get(family.logits_divisor, 1.0))
    final_bias = family.final_norm.replace(".weight", ".bias")
    head_bias = family.head.replace(".weight", ".bias")
    head, has_bias = None, tensors.name(head_bias) is not None
    spec = replace(spec, head_bias=has_bias)
    if tied:
        tensors.used.add(family.head)  # transformers takes the embedding whatever lies here
    else:
        head = tensors.get(family.head)
    model = Model(
        spec=spec,
        embed=tensors.get(family.embed),
        layers=[
            _layer(tensors, family, spec, i) for i in each("reading layers", range(spec.n_layers))
        ],
        final_norm=final_norm,
        head=head,
        head_bias=tensors.get(head_bias) if has_bias else None,
        final_norm_bias=tensors.get(final_bias) if tensors.name(final_bias) else None,
        positions=tensors.get(family.positions) if family.positions else None,
        tokenizer=tokenizer,
        name=folder.resolve().name,
        source={"kind": "hf", "file": folder.name, "sha256": files_sha256(tensors.shards)},
    )
    left = tensors.left()
    if left:
        raise UnsupportedError(
            f"{folder}: tensor {left[0]} belongs to a variant of {kind!r} that is not supported"
        )
    return check_model(model, folder)
