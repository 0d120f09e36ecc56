"""Our own models: ``config.json`` of type ``sparseflash_story``, packed ``model.safetensors``.

The weights lie there on the grids of the flash image, so nothing is rounded again:
``docs/SPEC.md`` has the grids, ``sparseflash.train.shipped`` writes the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sparseflash.base.errors import InputError
from sparseflash.base.files import file_sha256
from sparseflash.base.nibbles import GROUP, unpack_nibbles
from sparseflash.model.load.check import check_model
from sparseflash.model.spec import (
    Activation,
    Layer,
    LayerSpec,
    Model,
    ModelSpec,
    Q8Blocks,
    S4Blocks,
    S4Columns,
)
from sparseflash.model.tokenizer import Tokenizer

MODEL_TYPE = "sparseflash_story"


def _spec(config: dict[str, Any], folder: Path) -> ModelSpec:
    try:
        layers = int(config["num_hidden_layers"])
        theta = float(config["rope_theta"])
        return ModelSpec(
            family="story",
            vocab=int(config["vocab_size"]),
            dim=int(config["hidden_size"]),
            ffn_dim=int(config["intermediate_size"]),
            n_layers=layers,
            n_heads=int(config["num_attention_heads"]),
            n_kv_heads=int(config["num_key_value_heads"]),
            head_dim=int(config["head_dim"]),
            context=int(config["max_position_embeddings"]),
            layers=tuple(LayerSpec(rope_theta=theta) for _ in range(layers)),
            activation=Activation(str(config["hidden_act"])),
            norm_eps=float(config["rms_norm_eps"]),
            gate_inputs=int(config["gate_inputs"]),
            act_threshold=float(config["act_threshold"]),
            active_share=float(config.get("active_share", 1.0)),
            bos_id=int(config["bos_token_id"]),
            eos_ids=(int(config["eos_token_id"]),),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{folder}/config.json: {e} is missing or wrong; restore the file") from e


class _Packed:
    """Tensors of the file as blocks; each has the shape that the configuration asks for."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.safetensors"
        try:
            self.tensors = load_file(self.path)
        except (OSError, SafetensorError) as e:
            raise InputError(f"{self.path}: missing or damaged ({e}); restore the file") from e

    def get(self, name: str, dtype: type, *shape: int) -> np.ndarray:
        t = self.tensors.get(name)
        if t is None or t.dtype != dtype or t.shape != shape:
            have = "is missing" if t is None else f"is {t.dtype} {t.shape}"
            raise InputError(
                f"{self.path}: {name} {have}, the configuration asks for {np.dtype(dtype)} "
                f"{shape}; restore both files"
            )
        return np.ascontiguousarray(t)

    def _codes(self, name: str, out: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
        if cols % GROUP:
            raise InputError(f"{self.path}: {name} has rows of {cols}, not of whole groups")
        q = unpack_nibbles(self.get(name + ".q", np.uint8, out, cols // 2)).astype(np.int8)
        return q - np.int8(8), self.get(name + ".d", np.float16, out, cols // GROUP)

    def rows(self, name: str, out: int, cols: int) -> S4Blocks:
        return S4Blocks(*self._codes(name, out, cols))

    def columns(self, name: str, out: int, cols: int) -> S4Columns:
        """From ``name`` (cols, out): a column of the matrix is a row of the file."""
        q, d = self._codes(name, cols, out)
        return S4Columns(np.ascontiguousarray(q.T), np.ascontiguousarray(d.T))


def load_story(folder: Path, config: dict[str, Any]) -> Model:
    """Reads a model of type ``sparseflash_story``.

    Raises:
        InputError: a file or tensor is missing, damaged, or of another shape or type.
    """
    s = _spec(config, folder)
    t = _Packed(folder)
    layers = []
    for i in range(s.n_layers):
        n = f"layers.{i}."
        layers.append(
            Layer(
                attn_norm=t.get(n + "attn_norm", np.float32, s.dim),
                q_proj=t.rows(n + "q", s.q_dim, s.dim),
                k_proj=t.rows(n + "k", s.kv_dim, s.dim),
                v_proj=t.rows(n + "v", s.kv_dim, s.dim),
                o_proj=t.rows(n + "o", s.dim, s.q_dim),
                ffn_norm=t.get(n + "ffn_norm", np.float32, s.dim),
                gate_proj=t.rows(n + "gate", s.ffn_dim, s.gate_inputs or s.dim),
                up_proj=t.rows(n + "up", s.ffn_dim, s.dim - s.gate_inputs),
                down_proj=t.columns(n + "downT", s.dim, s.ffn_dim),
            )
        )
    embed = Q8Blocks(
        t.get("embed.q", np.int8, s.vocab, s.dim),
        t.get("embed.d", np.float16, s.vocab, s.dim // GROUP),
    )
    model = Model(
        spec=s,
        embed=embed,
        layers=layers,
        final_norm=t.get("final_norm", np.float32, s.dim),
        tokenizer=Tokenizer.from_tokenizer_json(folder / "tokenizer.json", s),
        name=folder.resolve().name,
        source={"kind": "story", "file": folder.name, "sha256": file_sha256(t.path)},
    )
    return check_model(model, folder)
