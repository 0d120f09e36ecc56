"""llama2.c's version 0 ``.bin``: seven int32, then float32 tensors in a fixed order."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from sparseflash.base.errors import InputError
from sparseflash.base.files import file_sha256
from sparseflash.model.load.check import check_model
from sparseflash.model.load.rows import half_split_index
from sparseflash.model.spec import Layer, LayerSpec, Model, ModelSpec
from sparseflash.model.tokenizer import Tokenizer


def load_llama2c(path: Path, tokenizer: Path | None = None) -> Model:
    """Reads the file whole; its size must be exactly what the header says.

    ``tokenizer`` defaults to ``tok<vocab>.bin`` or ``tokenizer.bin`` beside the model.

    Raises:
        InputError: the size or header does not fit, or a value is not finite.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror})") from e
    if len(data) < 28:
        raise InputError(f"{path}: {len(data)} bytes are too few for a llama2.c model")
    dim, ffn, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", data[:28])
    tied, vocab = vocab > 0, abs(vocab)
    sizes = (dim, ffn, layers, heads, kv_heads, vocab, context)
    if min(sizes) <= 0 or max(sizes) > 1 << 20 or dim % heads or heads % kv_heads:
        raise InputError(f"{path}: the header {sizes} is not a llama2.c version 0 header")
    hd = dim // heads
    kv = kv_heads * hd
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("embed", (vocab, dim)),
        ("attn_norm", (layers, dim)),
        ("q", (layers, dim, dim)),
        ("k", (layers, kv, dim)),
        ("v", (layers, kv, dim)),
        ("o", (layers, dim, dim)),
        ("ffn_norm", (layers, dim)),
        ("gate", (layers, ffn, dim)),
        ("down", (layers, dim, ffn)),
        ("up", (layers, ffn, dim)),
        ("final_norm", (dim,)),
        ("freq_real", (context, hd // 2)),
        ("freq_imag", (context, hd // 2)),
    ]
    if not tied:
        shapes.append(("head", (vocab, dim)))
    want = 28 + 4 * sum(int(np.prod(s)) for _, s in shapes)
    if want != len(data):
        raise InputError(
            f"{path}: {len(data):,} bytes where its header asks for {want:,}; download it again"
        )
    t: dict[str, np.ndarray] = {}
    at = 28
    for name, shape in shapes:
        count = int(np.prod(shape))
        t[name] = np.frombuffer(data, "<f4", count, at).reshape(shape)
        at += 4 * count
    q_index, k_index = half_split_index(heads, hd), half_split_index(kv_heads, hd)
    beside = [path.with_name(name) for name in (f"tok{vocab}.bin", "tokenizer.bin")]
    tok_path = tokenizer or next((p for p in beside if p.is_file()), None)
    tok = Tokenizer.from_llama2c(tok_path, vocab) if tok_path else None
    model = Model(
        spec=ModelSpec(
            family="llama",
            vocab=vocab,
            dim=dim,
            ffn_dim=ffn,
            n_layers=layers,
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=hd,
            context=context,
            layers=tuple(LayerSpec() for _ in range(layers)),
            tied_head=tied,
            bos_id=1,
            eos_ids=(1, 2),
        ),
        embed=t["embed"],
        layers=[
            Layer(
                attn_norm=t["attn_norm"][i],
                q_proj=t["q"][i][q_index],
                k_proj=t["k"][i][k_index],
                v_proj=t["v"][i],
                o_proj=t["o"][i],
                ffn_norm=t["ffn_norm"][i],
                gate_proj=t["gate"][i],
                up_proj=t["up"][i],
                down_proj=t["down"][i],
            )
            for i in range(layers)
        ],
        final_norm=t["final_norm"],
        head=None if tied else t["head"],
        tokenizer=tok,
        name=path.stem,
        source={"kind": "llama2c", "file": path.name, "sha256": file_sha256(path)},
    )
    return check_model(model, path)
