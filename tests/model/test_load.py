"""Loaders against transformers, and the files they must refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from conftest import random_model
from small import VOCAB, write_tokenizer
from sparseflash.base.errors import InputError, UnsupportedError, UsageError
from sparseflash.base.files import root
from sparseflash.model.load import load_model
from sparseflash.model.load.gguf_file import INTERLEAVED, _matrix, _side_by_side
from sparseflash.model.spec import Layer, Model, Q4Blocks, Q8Blocks, as_float32
from sparseflash.model.torch_model import Hooks, TorchModel

COMMON: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**COMMON, tie_word_embeddings=True),
    "llama untied": lambda: transformers.LlamaConfig(
        **COMMON, rope_scaling={"rope_type": "linear", "factor": 2.0}
    ),
    "mistral": lambda: transformers.MistralConfig(**COMMON, sliding_window=8),
    "qwen2": lambda: transformers.Qwen2Config(**COMMON),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON, head_dim=32),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(
        **{**COMMON, "num_hidden_layers": 7, "num_key_value_heads": 1},
        head_dim=32,
        sliding_window=8,
        query_pre_attn_scalar=48,
    ),
    "llama3 rope": lambda: transformers.LlamaConfig(**COMMON, rope_scaling=LLAMA3),
    "yarn": lambda: transformers.Qwen2Config(
        **COMMON,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "smollm3": lambda: transformers.SmolLM3Config(
        **{**COMMON, "num_hidden_layers": 4}, tie_word_embeddings=True
    ),
    "granite": lambda: transformers.GraniteConfig(
        **COMMON,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.3,
        logits_scaling=0.5,
    ),
    "phi3": lambda: transformers.Phi3Config(**COMMON, sliding_window=8),
    "phi3 longrope": lambda: transformers.Phi3Config(
        **{**COMMON, "max_position_embeddings": 256},
        original_max_position_embeddings=64,
        partial_rotary_factor=1.0,
        rope_scaling={
            "type": "longrope",
            "short_factor": [1.0 + 0.1 * i for i in range(8)],
            "long_factor": [2.0 + i for i in range(8)],
        },
    ),
    "phi4 mini": lambda: transformers.Phi3Config(**COMMON, partial_rotary_factor=0.75),
    "olmo2": lambda: transformers.Olmo2Config(**COMMON),
    "stablelm": lambda: transformers.StableLmConfig(**COMMON, use_qkv_bias=True),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **COMMON,
        head_dim=16,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    ),
    "olmoe": lambda: transformers.OlmoeConfig(**COMMON, num_experts=4, num_experts_per_tok=3),
    "granitemoe": lambda: transformers.GraniteMoeConfig(
        **COMMON,
        num_local_experts=4,
        num_experts_per_tok=2,
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
        logits_scaling=0.5,
    ),
    "llama biases": lambda: transformers.LlamaConfig(**COMMON, attention_bias=True, mlp_bias=True),
    "stablelm parallel": lambda: transformers.StableLmConfig(
        **COMMON, use_parallel_residual=True, partial_rotary_factor=0.5
    ),
    "phi": lambda: transformers.PhiConfig(**{**COMMON, "num_key_value_heads": 4}),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**COMMON, rotary_pct=0.25, attention_bias=True),
    "gpt_neox in turn": lambda: transformers.GPTNeoXConfig(
        **COMMON, rotary_pct=1.0, rotary_emb_base=5000, use_parallel_residual=False
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=160,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=160,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=64,
    ),
}


def peer(config: Any, seed: int = 3) -> Any:
    """A transformers model whose norms and biases are random too."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.15 if p.ndim == 1 else 0.05))
    return model.eval()


def some_ids(vocab: int, length: int = 40, batch: int = 2) -> torch.Tensor:
    return torch.randint(3, vocab, (batch, length), generator=torch.Generator().manual_seed(5))


def decode_all(runner: TorchModel, ids: torch.Tensor) -> torch.Tensor:
    cache = runner.new_cache(len(ids))
    return torch.stack([runner.step(int(i), cache) for i in ids])


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    peer(CONFIGS["llama"]()).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_agree_with_transformers(name: str, tmp_path: Path) -> None:
    theirs = peer(CONFIGS[name]())
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    runner = TorchModel(model)
    ids = some_ids(160)
    ours = runner.forward(ids)
    with torch.no_grad():
        want = theirs(ids).logits
    assert float(want.std()) > 0.01
    torch.testing.assert_close(ours, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(decode_all(runner, ids[0]), ours[0], atol=1e-4, rtol=1e-4)
    assert model.source["kind"] == "hf"
    assert len(model.source["sha256"]) == 64


def test_sharded_bfloat16(tmp_path: Path) -> None:
    theirs = peer(CONFIGS["qwen3"]()).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = load_model(tmp_path)
    want = theirs.model.layers[1].mlp.down_proj.weight.detach().float().numpy()
    np.testing.assert_array_equal(as_float32(model.layers[1].down_proj), want)
    next(tmp_path.glob("*-of-*.safetensors")).unlink()
    with pytest.raises(InputError, match="missing"):
        load_model(tmp_path)


def test_end_ids_come_from_generation_config_too(llama_folder: Path) -> None:
    (llama_folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert load_model(llama_folder).spec.eos_ids == (2, 7, 9)


# Hooks ----------------------------------------------------------------------


def test_hooks_see_and_replace(llama_folder: Path) -> None:
    model = load_model(llama_folder)
    runner = TorchModel(model)
    ids = some_ids(160, 6, 1)

    class Look(Hooks):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def attn_in(self, layer: int, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(f"attn_in{layer}{tuple(x.shape)}")
            return x

        def attn_out(self, layer: int, heads: torch.Tensor) -> torch.Tensor:
            self.seen.append(f"attn_out{layer}{tuple(heads.shape)}")
            return heads

        def ffn_in(self, layer: int, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(f"ffn_in{layer}{tuple(x.shape)}")
            return x

        def ffn(
            self, layer: int, gate: torch.Tensor, up: torch.Tensor, h: torch.Tensor
        ) -> torch.Tensor:
            torch.testing.assert_close(h, torch.nn.functional.silu(gate) * up)
            self.seen.append(f"ffn{layer}{tuple(h.shape)}")
            return torch.zeros_like(h)

        def ffn_out(self, layer: int, o: torch.Tensor) -> torch.Tensor:
            assert not o.any()
            self.seen.append(f"ffn_out{layer}{tuple(o.shape)}")
            return o

    look = Look()
    masked = runner.forward(ids, look)
    sites = (("attn_in", 64), ("attn_out", 64), ("ffn_in", 64), ("ffn", 96), ("ffn_out", 64))
    assert look.seen == [f"{s}{i}{(1, 6, n)}" for i in range(2) for s, n in sites]
    for layer in model.layers:
        layer.down_proj = np.zeros_like(as_float32(layer.down_proj))
    torch.testing.assert_close(masked, TorchModel(model).forward(ids))


def test_positions_and_caches_have_ends(tmp_path: Path) -> None:
    peer(CONFIGS["gpt2"]()).save_pretrained(tmp_path)
    runner = TorchModel(load_model(tmp_path))
    with pytest.raises(UsageError, match="64 positions"):
        runner.forward(some_ids(160, 65, 1))
    cache = runner.new_cache(1)
    runner.step(3, cache)
    with pytest.raises(UsageError, match="full"):
        runner.step(3, cache)


# llama2.c -------------------------------------------------------------------


def write_llama2c(path: Path, model: Model, tied: bool = True) -> None:
    """The inverse of the loader, for a model with equal q and model dimensions."""
    s = model.spec

    def interleave(w: np.ndarray, heads: int) -> np.ndarray:
        return w.reshape(heads, 2, s.head_dim // 2, -1).swapaxes(1, 2).reshape(w.shape)

    def all_layers(get: Any) -> np.ndarray:
        return np.stack([get(layer) for layer in model.layers])

    header = [s.dim, s.ffn_dim, s.n_layers, s.n_heads, s.n_kv_heads]
    header += [s.vocab if tied else -s.vocab, s.context]
    parts = [
        model.embed,
        all_layers(lambda x: x.attn_norm),
        all_layers(lambda x: interleave(x.q_proj, s.n_heads)),
        all_layers(lambda x: interleave(x.k_proj, s.n_kv_heads)),
        *(all_layers(lambda x, n=n: getattr(x, n)) for n in ("v_proj", "o_proj", "ffn_norm")),
        *(all_layers(lambda x, n=n: getattr(x, n)) for n in ("gate_proj", "down_proj", "up_proj")),
        model.final_norm,
        np.zeros((s.context, s.head_dim), np.float32),
    ]
    if not tied:
        parts.append(model.head)
    data = np.array(header, "<i4").tobytes()
    path.write_bytes(data + b"".join(np.asarray(p, "<f4").tobytes() for p in parts))


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_round_trip(tied: bool, tmp_path: Path) -> None:
    model = random_model(tied_head=tied)
    write_llama2c(tmp_path / "m.bin", model, tied)
    back = load_model(tmp_path / "m.bin")
    assert back.spec.tied_head is tied
    assert back.tokenizer is None
    ids = some_ids(160, 12)
    torch.testing.assert_close(TorchModel(back).forward(ids), TorchModel(model).forward(ids))


def test_llama2c_agrees_with_transformers(tmp_path: Path) -> None:
    """One model as a llama2.c file and as a checkpoint of transformers, with a tokenizer beside."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    torch.manual_seed(2)
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (p.dim() == 1))
    theirs.save_pretrained(tmp_path / "hf")
    hf = load_model(tmp_path / "hf")
    write_llama2c(tmp_path / "m.bin", hf)
    write_tokenizer(tmp_path / "tok512.bin")
    model = load_model(tmp_path / "m.bin")
    assert model.tokenizer is not None
    ids = torch.tensor([model.tokenizer.encode("Once upon a time, there was a cat.", bos=True)])
    with torch.no_grad():
        want = theirs(ids).logits
    for ours in (model, hf):
        torch.testing.assert_close(TorchModel(ours).forward(ids), want, atol=1e-4, rtol=1e-4)
    assert model.spec.eos_ids == (1, 2)


# GGUF -----------------------------------------------------------------------

KINDS = {
    "F16": gguf.GGMLQuantizationType.F16,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
    "Q4_1": gguf.GGMLQuantizationType.Q4_1,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
}
PROJECTIONS = {
    "q_proj": ("attn_q", "Q4_1"),
    "k_proj": ("attn_k", "Q8_0"),
    "v_proj": ("attn_v", "Q4_0"),
    "o_proj": ("attn_output", "F16"),
    "gate_proj": ("ffn_gate", "Q4_1"),
    "up_proj": ("ffn_up", "Q4_0"),
    "down_proj": ("ffn_down", "Q8_0"),
}


def write_gguf(path: Path, model: Model, arch: str = "llama", extra: str = "") -> list[Layer]:
    """Writes the model with mixed tensor types; returns its layers as gguf dequantises them."""
    s = model.spec
    w = gguf.GGUFWriter(path, arch)
    w.add_block_count(s.n_layers)
    w.add_context_length(s.context)
    w.add_embedding_length(s.dim)
    w.add_feed_forward_length(s.ffn_dim)
    w.add_head_count(s.n_heads)
    w.add_head_count_kv(s.n_kv_heads)
    w.add_layer_norm_rms_eps(s.norm_eps)
    w.add_rope_freq_base(s.layers[0].rope_theta)

    def add(name: str, value: np.ndarray, kind: str) -> np.ndarray:
        raw = gguf.quantize(value, KINDS[kind])
        w.add_tensor(name, raw, raw_dtype=KINDS[kind])
        return np.asarray(gguf.dequantize(raw, KINDS[kind]), np.float32)

    add("token_embd.weight", as_float32(model.embed), "Q8_0")
    w.add_tensor("output_norm.weight", model.final_norm)
    if extra:
        w.add_tensor(extra, np.ones(8, np.float32))
    layers = []
    for i, layer in enumerate(model.layers):
        w.add_tensor(f"blk.{i}.attn_norm.weight", layer.attn_norm)
        w.add_tensor(f"blk.{i}.ffn_norm.weight", layer.ffn_norm)
        want: dict[str, Any] = {"attn_norm": layer.attn_norm, "ffn_norm": layer.ffn_norm}
        for field, (name, kind) in PROJECTIONS.items():
            value = as_float32(getattr(layer, field))
            heads = {"q_proj": s.n_heads, "k_proj": s.n_kv_heads}.get(field)
            if heads is None or arch != "llama":
                want[field] = add(f"blk.{i}.{name}.weight", value, kind)
                continue
            shape = (heads, 2, s.head_dim // 2, s.dim)
            mixed = np.ascontiguousarray(value.reshape(shape).swapaxes(1, 2)).reshape(value.shape)
            got = add(f"blk.{i}.{name}.weight", mixed, kind)
            shape = (heads, s.head_dim // 2, 2, s.dim)
            want[field] = got.reshape(shape).swapaxes(1, 2).reshape(value.shape)
        layers.append(Layer(**want))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return layers


def test_gguf_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    want = write_gguf(path, random_model(ffn_dim=96))
    model = load_model(path)
    first = model.layers[0]
    assert isinstance(first.q_proj, Q4Blocks)
    assert isinstance(first.up_proj, Q4Blocks)
    assert isinstance(first.down_proj, Q8Blocks)
    assert isinstance(first.o_proj, np.ndarray)
    assert isinstance(model.embed, Q8Blocks)
    assert int(first.q_proj.q.max()) <= 15
    for layer, expected in zip(model.layers, want):
        for field in PROJECTIONS:
            np.testing.assert_allclose(
                as_float32(getattr(layer, field)), getattr(expected, field), atol=1e-7, rtol=0
            )
        np.testing.assert_array_equal(layer.attn_norm, expected.attn_norm)
    assert model.source["file"] == "tiny.gguf"


def test_other_gguf_architectures_are_not_permuted(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    want = write_gguf(path, random_model(ffn_dim=96), "qwen2")
    k_proj = as_float32(load_model(path).layers[1].k_proj)
    np.testing.assert_allclose(k_proj, want[1].k_proj, atol=1e-7)


GGUF_NAMES = {
    **{field: f"{name}.weight" for field, (name, _) in PROJECTIONS.items()},
    **{f"{x}_bias": f"attn_{x}.bias" for x in "qkv"},
    **{f"{x}_norm": f"attn_{x}_norm.weight" for x in "qk"},
    "attn_norm": "attn_norm.weight",
    "ffn_norm": "ffn_norm.weight",
    "post_attn_norm": "post_attention_norm.weight",
    "post_ffn_norm": "post_ffw_norm.weight",
}


@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "gemma3"])
def test_gguf_families_agree_with_transformers(arch: str, tmp_path: Path) -> None:
    """The same float32 weights under GGUF names and metadata give the same logits."""
    config = CONFIGS[{"gemma3": "gemma3_text"}.get(arch, arch)]()
    if arch == "gemma3":
        config.query_pre_attn_scalar = config.head_dim  # as every size but the largest
    theirs = peer(config)
    theirs.save_pretrained(tmp_path / "hf")
    model = load_model(tmp_path / "hf")
    s = model.spec
    w = gguf.GGUFWriter(tmp_path / "m.gguf", arch)
    w.add_block_count(s.n_layers)
    w.add_context_length(s.context)
    w.add_embedding_length(s.dim)
    w.add_feed_forward_length(s.ffn_dim)
    w.add_head_count(s.n_heads)
    w.add_head_count_kv(s.n_kv_heads)
    w.add_key_length(s.head_dim)
    w.add_layer_norm_rms_eps(s.norm_eps)
    w.add_rope_freq_base(s.layers[-1].rope_theta if arch != "gemma3" else 1e6)
    if arch == "gemma3":
        w.add_sliding_window(s.layers[0].window)
    w.add_tensor("token_embd.weight", as_float32(model.embed))
    w.add_tensor("output_norm.weight", model.final_norm)
    if model.head is not None:
        w.add_tensor("output.weight", as_float32(model.head))
    for i, layer in enumerate(model.layers):
        for field, name in GGUF_NAMES.items():
            value = getattr(layer, field)
            if value is not None:
                w.add_tensor(f"blk.{i}.{name}", as_float32(value))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    ids = some_ids(160)
    with torch.no_grad():
        want = theirs(ids).logits
    ours = TorchModel(load_model(tmp_path / "m.gguf")).forward(ids)
    torch.testing.assert_close(ours, want, atol=1e-4, rtol=1e-4)


CONVERTED = {
    "phi": "phi2",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "gpt_neox in turn": "gptneox",
    "stablelm": "stablelm",
    "olmo2": "olmo2",
    "qwen3_moe": "qwen3moe",
    "olmoe": "olmoe",
    "granitemoe": "granitemoe",
}


def converted(tensors: dict[str, torch.Tensor], config: Any, arch: str) -> dict[str, np.ndarray]:
    """A state dict under GGUF names, laid out as llama.cpp's converter lays it out."""
    heads = config.num_attention_heads
    names = gguf.get_tensor_name_map(
        {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch], config.num_hidden_layers
    )
    out: dict[str, np.ndarray] = {}
    experts: dict[str, list[np.ndarray]] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().float().numpy()
        if arch == "gpt2" and re.search(r"(c_attn|c_proj|c_fc)\.weight$", name):
            value = value.T
        if arch == "gptneox" and "query_key_value" in name:
            value = value.reshape(heads, 3, -1, *value.shape[1:])
            value = np.concatenate(list(value.swapaxes(0, 1))).reshape(-1, *value.shape[3:])
        if arch == "granitemoe" and re.search(r"[qk]_proj\.weight$", name):
            count = heads if "q_proj" in name else config.num_key_value_heads
            pairs = value.reshape(count, 2, -1, value.shape[-1])
            value = pairs.swapaxes(1, 2).reshape(value.shape)
        if "input_linear" in name:
            gate, up = (np.ascontiguousarray(v) for v in np.split(value, 2, axis=1))
            at = f"blk.{name.split('.')[2]}.ffn"
            out[f"{at}_gate_exps.weight"], out[f"{at}_up_exps.weight"] = gate, up
            continue
        if m := re.fullmatch(r"(.*\.experts)\.\d+\.(\w+\.weight)", name):
            experts.setdefault(f"{m[1]}.{m[2]}", []).append(value)
            continue
        to = names.get_name(name, (".weight", ".bias"))
        assert to is not None, name
        out[to] = np.ascontiguousarray(value)
    for name, each in experts.items():
        to = names.get_name(name, (".weight",))
        assert to is not None, name
        out[to] = np.stack(each)
    return out


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_gguf_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    """The official names and layouts; what a family's GGUF does not say is the family's own."""
    arch, config = CONVERTED[name], CONFIGS[name]()
    theirs = peer(config)
    w = gguf.GGUFWriter(tmp_path / "m.gguf", arch)
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    neurons = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    w.add_feed_forward_length(neurons)
    w.add_head_count(config.num_attention_heads)
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    w.add_head_count_kv(config.num_attention_heads if arch == "gptneox" else heads)
    if arch in ("phi2", "gpt2", "gptneox", "stablelm"):
        eps = getattr(config, "layer_norm_eps", getattr(config, "layer_norm_epsilon", None))
        w.add_layer_norm_eps(eps)
    else:
        w.add_layer_norm_rms_eps(config.rms_norm_eps)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if part := getattr(config, "partial_rotary_factor", getattr(config, "rotary_pct", None)):
        w.add_rope_dimension_count(int(size * part))
    if arch == "gptneox":
        w.add_rope_freq_base(float(config.rotary_emb_base))
        w.add_parallel_residual(config.use_parallel_residual)
    if arch == "qwen3moe":
        w.add_key_length(size)
        w.add_value_length(size)
        w.add_expert_feed_forward_length(config.moe_intermediate_size)
    count = getattr(config, "num_experts", getattr(config, "num_local_experts", 0))
    if count:
        w.add_expert_count(count)
        w.add_expert_used_count(config.num_experts_per_tok)
    if arch == "granitemoe":
        w.add_attention_scale(config.attention_multiplier)
        w.add_embedding_scale(config.embedding_multiplier)
        w.add_residual_scale(config.residual_multiplier)
        w.add_logit_scale(config.logits_scaling)
    tied = config.tie_word_embeddings
    state = {k: v for k, v in theirs.state_dict().items() if not (tied and "lm_head" in k)}
    for tensor, value in converted(state, config, arch).items():
        w.add_tensor(tensor, value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    ids = some_ids(160)
    with torch.no_grad():
        want = theirs(ids).logits
    ours = TorchModel(load_model(tmp_path / "m.gguf")).forward(ids)
    torch.testing.assert_close(ours, want, atol=1e-4, rtol=1e-4)


def test_quantised_experts_of_a_gguf_keep_their_integers(tmp_path: Path) -> None:
    """Q4_1 and Q8_0 pass unchanged; down's experts come side by side."""
    model = random_model(ffn_dim=256, experts=4, experts_used=2)
    down = as_float32(model.layers[0].down_proj).reshape(64, 4, 64).swapaxes(0, 1)
    kind = KINDS["Q4_1"]
    raw = gguf.quantize(np.ascontiguousarray(down), kind)
    w = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    w.add_tensor("down", raw, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    (tensor,) = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    got = _side_by_side(_matrix(tensor, 4), 4)
    assert isinstance(got, Q4Blocks)
    want = np.asarray(gguf.dequantize(raw, kind)).swapaxes(0, 1).reshape(64, 256)
    np.testing.assert_allclose(got.float32(), want, atol=1e-7)


def gguf_of(path: Path, model: Model, arch: str, **keys: Any) -> None:
    """The model in float32 under GGUF names; ``keys`` are metadata of the architecture, with ``__``
    for dots."""
    s = model.spec
    w = gguf.GGUFWriter(path, arch)
    base = {
        "block_count": s.n_layers,
        "context_length": s.context,
        "embedding_length": s.dim,
        "feed_forward_length": s.ffn_dim,
        "attention.head_count": s.n_heads,
        "attention.head_count_kv": s.n_kv_heads,
        "attention.layer_norm_rms_epsilon": s.norm_eps,
        "rope.freq_base": s.layers[0].rope_theta,
    }
    tensors = keys.pop("tensors", {})
    for key, value in (base | {k.replace("__", "."): v for k, v in keys.items()}).items():
        name = f"{arch}.{key}"
        if isinstance(value, list):
            w.add_array(name, value)
        elif isinstance(value, bool):
            w.add_bool(name, value)
        elif isinstance(value, str):
            w.add_string(name, value)
        elif isinstance(value, int):
            w.add_uint32(name, value)
        else:
            w.add_float32(name, value)
    w.add_tensor("token_embd.weight", as_float32(model.embed))
    w.add_tensor("output_norm.weight", tensors.pop("output_norm.weight", model.final_norm))
    if model.head is not None:
        w.add_tensor("output.weight", as_float32(model.head))
    for i, layer in enumerate(model.layers):
        for field, name in GGUF_NAMES.items():
            value = getattr(layer, field)
            if value is None:
                continue
            value = as_float32(value)
            heads = {"q_proj": s.n_heads, "k_proj": s.n_kv_heads}.get(field)
            if heads and arch in INTERLEAVED:
                shape = (heads, 2, s.head_dim // 2, s.dim)
                value = np.ascontiguousarray(value.reshape(shape).swapaxes(1, 2))
                value = value.reshape(heads * s.head_dim, s.dim)
            w.add_tensor(f"blk.{i}.{name}", value)
    for name, value in tensors.items():
        w.add_tensor(name, value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def llama3_table() -> np.ndarray:
    """What converters write as rope_freqs.weight, from transformers' own frequencies."""
    config = CONFIGS["llama3 rope"]()
    plain = 10000.0 ** (-np.arange(8) / 8)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    return (plain / scaled.numpy()).astype(np.float32)


GGUF_ROPES: dict[str, Any] = {
    "older key": ("llama untied", "llama", {"rope__scale_linear": 2.0}),
    "typed": (
        "llama untied",
        "llama",
        {"rope__scaling__type": "linear", "rope__scaling__factor": 2.0},
    ),
    "newer key wins": (
        "llama untied",
        "llama",
        {"rope__scaling__factor": 2.0, "rope__scale_linear": 7.0},
    ),
    "typed none": (
        "llama",
        "llama",
        {"rope__scaling__type": "none", "rope__scaling__factor": 2.0},
    ),
    "yarn": (
        "yarn",
        "qwen2",
        {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 16,
        },
    ),
    "llama3": ("llama3 rope", "llama", {"tensors": {"rope_freqs.weight": llama3_table}}),
    "same for each layer": (
        "llama",
        "llama",
        {"attention__head_count_kv": [2, 2], "feed_forward_length": [96, 96]},
    ),
    "layers without RoPE": ("smollm3", "smollm3", {}),
    "multipliers": (
        "granite",
        "granite",
        {
            "embedding_scale": 12.0,
            "residual_scale": 0.22,
            "attention__scale": 0.3,
            "logit_scale": 0.5,
        },
    ),
}


@pytest.mark.parametrize("name", GGUF_ROPES)
def test_gguf_keys_have_their_effect(name: str, tmp_path: Path) -> None:
    config, arch, keys = GGUF_ROPES[name]
    theirs = peer(CONFIGS[config]())
    theirs.save_pretrained(tmp_path / "hf")
    model = load_model(tmp_path / "hf")
    keys = {**keys, "tensors": {k: v() for k, v in keys.get("tensors", {}).items()}}
    if arch == "granite":  # the file has the plain norm and epsilon beside the multipliers
        keys["tensors"]["output_norm.weight"] = theirs.model.norm.weight.detach().numpy()
        keys["attention.layer_norm_rms_epsilon"] = theirs.config.rms_norm_eps
    gguf_of(tmp_path / "m.gguf", model, arch, **keys)
    ids = some_ids(160)
    with torch.no_grad():
        want = theirs(ids).logits
    ours = TorchModel(load_model(tmp_path / "m.gguf")).forward(ids)
    torch.testing.assert_close(ours, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"attention__head_count_kv": [4, 2]}, "head_count_kv differs between layers"),
        ({"feed_forward_length": [172, 160]}, "feed_forward_length differs between layers"),
        ({"rope__dimension_count": 4}, "rope.dimension_count = 4"),
        ({"rope__scaling__type": "su"}, "RoPE scaling 'su'"),
        ({"rope__new_trick": 2.0}, "rope.new_trick = 2.0"),
        ({"attention__value_length": 16}, "value_length = 16"),
        ({"attention__causal": False}, "causal = False"),
        ({"attention__max_alibi_bias": 8.0}, "max_alibi_bias"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ({"use_parallel_residual": True}, "use_parallel_residual"),
        ({"expert_count": 8}, "0 of 8 experts"),
        ({"expert_count": 4, "expert_used_count": 2, "expert_gating_func": 2}, "gating_func = 2"),
        ({"logit_scale": 2.0}, "logit_scale = 2.0"),
    ],
)
def test_gguf_keys_that_nobody_reads_are_refused(
    keys: dict[str, Any], word: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    gguf_of(path, random_model(), "llama", **keys)
    with pytest.raises(UnsupportedError, match=re.escape(word)) as e:
        load_model(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def split_gguf(folder: Path, model: Model) -> list[Path]:
    """Two files as llama.cpp's splitter writes them: metadata and the layers, then the rest."""
    gguf_of(folder / "whole.gguf", model, "llama")
    reader = gguf.GGUFReader(folder / "whole.gguf")
    first = [t for t in reader.tensors if t.name.startswith("blk.")]
    rest = [t for t in reader.tensors if not t.name.startswith("blk.")]
    paths = []
    for i, tensors in enumerate((first, rest)):
        path = folder / f"m-{i + 1:05d}-of-00002.gguf"
        w = gguf.GGUFWriter(path, "llama")
        if i == 0:
            for name, f in reader.fields.items():
                if name.startswith("llama."):
                    w.add_key_value(name, f.contents(), f.types[0])
        w.add_uint16("split.no", i)
        w.add_uint16("split.count", 2)
        w.add_int32("split.tensors.count", len(reader.tensors))
        for t in tensors:
            w.add_tensor(t.name, np.array(t.data))
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        paths.append(path)
    return paths


def test_split_gguf(tmp_path: Path) -> None:
    parts = split_gguf(tmp_path, random_model())
    whole = load_model(tmp_path / "whole.gguf")
    ids = some_ids(160)
    want = TorchModel(whole).forward(ids)
    for part in parts:
        model = load_model(part)
        assert torch.equal(TorchModel(model).forward(ids), want)
    assert load_model(parts[1]).source == load_model(parts[0]).source
    second = parts[1].rename(tmp_path / "other.gguf")
    with pytest.raises(InputError, match="part of the split GGUF is missing"):
        load_model(parts[0])
    with pytest.raises(InputError, match="part 2 of a GGUF split into 2"):
        load_model(second)


def test_weight_files_are_those_of_transformers(llama_folder: Path) -> None:
    """Leftovers beside the weights change nothing; a folder of leftovers is no model."""
    want = as_float32(load_model(llama_folder).embed)
    other = load_file(llama_folder / "model.safetensors")
    other = {k: v + 1 for k, v in other.items()}
    for name in ("zz-old.safetensors", "aa-00001-of-00001.safetensors"):
        save_file(other, llama_folder / name)
    (llama_folder / "._model.safetensors").write_bytes(b"\0\5\26\7Mac OS X")
    np.testing.assert_array_equal(as_float32(load_model(llama_folder).embed), want)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(llama_folder)
    np.testing.assert_array_equal(theirs.model.embed_tokens.weight.detach().numpy(), want)
    save_file(other, llama_folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {k: "model-00001-of-00001.safetensors" for k in other}}
    (llama_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(as_float32(load_model(llama_folder).embed), want)
    (llama_folder / "model.safetensors").unlink()
    np.testing.assert_array_equal(as_float32(load_model(llama_folder).embed), want + 1)
    index["weight_map"]["model.norm.weight"] = "../model.safetensors"
    (llama_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="outside its folder"):
        load_model(llama_folder)
    index["weight_map"] = {}
    (llama_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="no weight_map"):
        load_model(llama_folder)
    (llama_folder / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"aa-00001-of-00001\.safetensors is not named so"):
        load_model(llama_folder)
    for p in llama_folder.glob("*.safetensors"):
        p.unlink()
    (llama_folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="pickle"):
        load_model(llama_folder)
    (llama_folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="adapter"):
        load_model(llama_folder)


def test_tensors_that_nobody_reads_are_refused(llama_folder: Path) -> None:
    path = llama_folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, path, {"format": "pt"})
    load_model(llama_folder)
    tensors["model.layers.1.self_attn.q_proj.bias"] = torch.ones(64)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UnsupportedError, match=r"layers\.1\.self_attn\.q_proj\.bias"):
        load_model(llama_folder)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("kind", ["gguf", "bin", "hf"])
def test_truncated_files_are_refused(kind: str, keep: float, tmp_path: Path, request: Any) -> None:
    if kind == "hf":
        source = request.getfixturevalue("llama_folder")
        path = source / "model.safetensors"
    else:
        source = path = tmp_path / f"m.{kind}"
        model = random_model(ffn_dim=96)
        write_gguf(path, model) if kind == "gguf" else write_llama2c(path, model)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError) as caught:
        load_model(source)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_gguf_metadata_never_escapes_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, random_model(ffn_dim=96, n_layers=1))
    data = path.read_bytes()
    rng = np.random.default_rng(2)
    for _ in range(60):
        broken = bytearray(data)
        for at in rng.integers(0, 1500, 3):
            broken[at] = int(rng.integers(256))
        path.write_bytes(broken)
        try:
            load_model(path)
        except (InputError, UnsupportedError) as e:
            assert str(path) in str(e)


def test_values_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    model = random_model()
    model.layers[1].down_proj[3, 5] = np.nan
    write_llama2c(tmp_path / "m.bin", model)
    with pytest.raises(InputError, match="layer 1 down_proj"):
        load_model(tmp_path / "m.bin")


# Refusals -------------------------------------------------------------------


def test_unknown_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such model file"):
        load_model(tmp_path / "absent.gguf")
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(tmp_path)
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(UnsupportedError, match="onnx"):
        load_model(tmp_path / "m.onnx")

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HuggingFaceTB/SmolLM2-135M"):
        load_model("HuggingFaceTB/SmolLM2-135M")


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"model_type": "mamba"}, UnsupportedError, "mamba"),
        ({"hidden_act": "mish"}, UnsupportedError, "mish"),
        ({"attention_bias": True}, InputError, "q_proj.bias is missing"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4}}, UnsupportedError, "dynamic"),
        ({"rope_scaling": {"rope_type": "yarn"}}, InputError, "factor"),
        ({"num_key_value_heads": [2, 1]}, UnsupportedError, "each layer"),
        ({"eos_token_id": 160}, InputError, "end token is 160"),
        ({"bos_token_id": 999}, InputError, "start token is 999"),
        ({"num_hidden_layers": 2**31}, InputError, "not believable"),
        ({"quantization_config": {"bits": 4}}, UnsupportedError, "quantised"),
        ({"hidden_size": None}, InputError, "hidden_size"),
        ({"hidden_size": "wide"}, InputError, "wrong type"),
        ({"intermediate_size": 128}, InputError, "shape"),
        ({"num_hidden_layers": 3}, InputError, "missing"),
    ],
)
def test_configs_that_do_not_fit(
    change: dict[str, Any], error: type[Exception], word: str, llama_folder: Path
) -> None:
    path = llama_folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error, match=word):
        load_model(llama_folder)


def test_unknown_gguf_variants(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, random_model(ffn_dim=96), "mamba")
    with pytest.raises(UnsupportedError, match="mamba"):
        load_model(path)
    write_gguf(path, random_model(ffn_dim=96), extra="blk.0.attn_sinks.weight")
    with pytest.raises(UnsupportedError, match="attn_sinks"):
        load_model(path)
    write_gguf(path, random_model(ffn_dim=96), extra="rope_freqs.weight")
    with pytest.raises(InputError, match="8 RoPE factors for 4 pairs"):
        load_model(path)


def test_smollm2_gguf() -> None:
    path = root() / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.skip(f"no {path}; `make fetch` brings it")
    model = load_model(path)
    assert (model.spec.n_layers, model.spec.dim, model.spec.ffn_dim) == (30, 576, 1536)
    assert 2 in model.spec.eos_ids
    assert 1 not in model.spec.eos_ids
    assert model.tokenizer is not None
    text = "The capital of France is Paris. The capital of Italy is"
    ids = torch.tensor([model.tokenizer.encode(text)])
    logits = TorchModel(model).forward(ids)[0]
    assert model.tokenizer.decode([int(logits[-1].argmax())]) == " Rome"
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    assert float(loss) < 3.0
