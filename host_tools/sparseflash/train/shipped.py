"""The story model as it is shipped: ``config.json``, ``model.safetensors``, ``tokenizer.json``.

Tensors: ``embed.q`` int8 (vocab, dim) with ``embed.d`` (vocab, dim/32); for each layer ``q``,
``k``, ``v``, ``o``, ``gate``, ``up`` as nibbles ``.q`` uint8 (out, in/2) with halves ``.d``
(out, in/32), ``downT`` likewise with a neuron's column as a row (ffn, dim); norms float32.
Thresholds are folded in: a neuron is active where its gate is at least 1.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sparseflash.base.nibbles import GROUP
from sparseflash.train import grid
from sparseflash.train.story import MATRICES, Shape, Story

MODEL_TYPE = "sparseflash_story"
_FILE = {"down": "downT"}


def config_of(shape: Shape, end: int = 0) -> dict[str, Any]:
    """``config.json``: Hugging Face names where they exist."""
    return {
        "model_type": MODEL_TYPE,
        "vocab_size": shape.vocab,
        "hidden_size": shape.dim,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.theta,
        "rms_norm_eps": shape.eps,
        "hidden_act": "relu" if shape.kind == "split" else "silu",
        "gate_inputs": shape.gate_inputs,
        "act_threshold": 1.0 if shape.kind == "split" else 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
    }


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape of a ``config.json`` of ours."""
    return Shape(
        kind="split" if config["act_threshold"] else "dense",
        vocab=config["vocab_size"],
        dim=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        ffn=config["intermediate_size"],
        gate_inputs=config["gate_inputs"],
        context=config["max_position_embeddings"],
        theta=config["rope_theta"],
        eps=config["rms_norm_eps"],
    )


@torch.no_grad()
def save(model: Story, folder: Path) -> None:
    """Writes ``config.json`` and ``model.safetensors``; a file appears whole or not at all."""
    shape = model.shape
    if shape.kind == "blocks" or shape.table_shapes():
        raise ValueError(f"a model of kind {shape.kind} with flash tables has no file")
    w = {k: v.detach().float().cpu() for k, v in model.weights(False).items()}
    out: dict[str, torch.Tensor] = {"embed.d": grid.q8_scales(w["embed"])}
    out["embed.q"] = grid.q8_codes(w["embed"], out["embed.d"])
    out["final_norm"] = w["final_norm"].contiguous()
    for i in range(shape.layers):
        for name in ("attn_norm", "ffn_norm"):
            out[f"layers.{i}.{name}"] = w[name][i].contiguous()
        for name in MATRICES:
            if name not in w:
                continue
            d = grid.s4_scales(w[name][i])
            key = f"layers.{i}.{_FILE.get(name, name)}"
            out[key + ".q"] = grid.pack_nibbles(grid.s4_codes(w[name][i], d))
            out[key + ".d"] = d
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "model.safetensors.new"
    save_file({k: v.contiguous() for k, v in sorted(out.items())}, str(temporary))
    os.replace(temporary, folder / "model.safetensors")
    text = json.dumps(config_of(shape), indent=1) + "\n"
    (folder / "config.json.new").write_text(text, encoding="utf-8")
    os.replace(folder / "config.json.new", folder / "config.json")


@torch.no_grad()
def weights(folder: Path, device: str = "cpu") -> tuple[Story, dict[str, torch.Tensor]]:
    """A model of the file's shape and the file's values, for ``measure`` and ``tell``."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = shape_of(config)
    t = load_file(str(folder / "model.safetensors"), device=device)

    def scaled(q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        g = q.float().reshape(*d.shape, GROUP) * d.float().unsqueeze(-1)
        return g.reshape(q.shape)

    w = {"embed": scaled(t["embed.q"], t["embed.d"]), "final_norm": t["final_norm"]}
    for name in ("attn_norm", "ffn_norm"):
        w[name] = torch.stack([t[f"layers.{i}.{name}"] for i in range(shape.layers)])
    for name in shape.matrices():
        keys = [f"layers.{i}.{_FILE.get(name, name)}" for i in range(shape.layers)]
        w[name] = torch.stack([scaled(grid.unpack_nibbles(t[k + ".q"]), t[k + ".d"]) for k in keys])
    return Story(shape, device), w


def describe(shape: Shape) -> dict[str, Any]:
    """The shape, bytes by part as they lie in the image, and the number of weights."""
    m = {k: grid.s4_bytes(*v) for k, v in shape.matrices().items()}
    ffn = sum(v for k, v in m.items() if k in ("gate", "up", "down", "router"))
    embedding = shape.vocab * shape.dim // GROUP * 34
    whole = sum(m.values()) + embedding
    return {
        **asdict(shape),
        "ffn_bytes": ffn,
        "attention_bytes": sum(m.values()) - ffn,
        "embedding_bytes": embedding,
        "bytes": whole,
        "table_bytes": shape.table_bytes(),
        "ffn_share": ffn / whole,
        "weights": shape.weights(),
    }
