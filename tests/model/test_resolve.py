"""``--model``: recipes, files, folders and hub ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tokenizers
import transformers
import yaml
from test_load import CONFIGS, gguf_of, peer, split_gguf, write_llama2c
from test_tokenizer import IM, llama2c_bytes

from conftest import make_workspace, random_model
from sparseflash.base.errors import InputError, UnsupportedError, UsageError
from sparseflash.model.load import load_model
from sparseflash.model.recipes import fetch, fetch_tokenizer, load_recipe, own_recipe_path
from sparseflash.model.resolve import resolve
from sparseflash.sparsity.texts import evaluation_text


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(make_workspace(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_checkpoint(folder: Path) -> None:
    """What transformers' save_pretrained writes for a tiny model with a tokenizer."""
    peer(CONFIGS["llama"]()).save_pretrained(folder, max_shard_size="60KB")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=small_tokenizer(), eos_token=IM[2], bos_token=IM[1]
    ).save_pretrained(folder)


def small_tokenizer() -> Any:
    """Of 160 tokens, as many as the tiny models have rows: single characters and a few words."""
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=IM[0]))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=160, special_tokens=list(IM), show_progress=False
    )
    text = "The quick brown fox jumps over the lazy dog. SPHINX of black quartz, judge my vow!\n"
    engine.train_from_iterator([text] * 4, trainer)
    return engine


def test_recipes_keep_their_names(place: Path) -> None:
    assert resolve("stories260k") == "stories260k"
    (place / "stories260k").mkdir()
    assert resolve("stories260k") == "stories260k"
    with pytest.raises(UsageError, match="--tokenizer"):
        resolve("stories260k", "tok.bin")


def test_a_folder_gets_a_recipe(place: Path) -> None:
    save_checkpoint(place / "My Model")
    name = resolve("My Model")
    assert name.startswith("my-model-") and resolve(str(place / "My Model")) == name
    assert resolve(name) == name
    recipe = load_recipe(name)
    assert recipe.formats == {"attn": "q8", "ffn": "q8", "embed": "q8"}
    assert recipe.kv_len == 64 and recipe.calibration["window"] == 64
    assert recipe.calibration["texts"] == ["wiki", "c4", "tiny"]
    model = load_model(fetch(name), fetch_tokenizer(name))
    assert model.tokenizer is not None and model.spec.n_layers == 2
    for p in (place / "My Model").glob("*.safetensors"):
        p.unlink()
    with pytest.raises(InputError, match="missing"):  # looked at again, for the files changed
        resolve("My Model")


def test_a_recipe_is_corrected_by_hand_until_the_model_changes(place: Path) -> None:
    gguf_of(place / "m.gguf", random_model(), "llama")
    name = resolve("m.gguf")
    file = own_recipe_path(name)
    raw = yaml.safe_load(file.read_text())
    assert raw["calibration"]["texts"] == ["random"] and "evaluation" not in raw
    file.write_text(yaml.safe_dump({**raw, "kv_len": 17}))
    assert load_recipe(resolve("m.gguf")).kv_len == 17
    gguf_of(place / "m.gguf", random_model(n_layers=3), "llama")
    assert load_recipe(resolve("m.gguf")).kv_len == 256


def test_a_text_that_is_not_here_has_a_stand_in(place: Path) -> None:
    """WikiText-2 lies beside a checkout or not; another comes from a package registry."""
    (place / "shared" / "data").unlink()
    recipe = load_recipe("story")
    assert evaluation_text(recipe, None) == "technical-test"
    assert evaluation_text(recipe, "wikitext2-test") == "wikitext2-test"  # asked for by name


def test_split_gguf_by_any_part(place: Path) -> None:
    for part in split_gguf(place, random_model()):
        assert load_model(fetch(resolve(str(part)))).spec.n_layers == 2


def test_llama2c_remembers_its_tokenizer(place: Path) -> None:
    write_llama2c(place / "m.bin", random_model(vocab=300))
    name = resolve("m.bin")
    assert fetch_tokenizer(name) is None
    (place / "words.bin").write_bytes(llama2c_bytes(300))
    assert resolve("m.bin", "words.bin") == name
    assert resolve("m.bin") == name
    assert fetch_tokenizer(name) == place / "words.bin"
    assert load_recipe(name).calibration["texts"] == ["wiki", "c4", "tiny"]
    gguf_of(place / "m.gguf", random_model(), "llama")
    with pytest.raises(UsageError, match="--tokenizer"):
        resolve("m.gguf", "words.bin")


def test_hub_ids(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the local cache without asking anybody; what is not there says so."""
    save_checkpoint(place / "snapshot")
    asked: list[bool] = []

    def snapshot(repo: str, local_files_only: bool, **_: Any) -> str:
        asked.append(local_files_only)
        if repo == "me/tiny":
            return str(place / "snapshot")
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    name = resolve("me/tiny")
    assert name.startswith("me-tiny-") and asked == [True]
    assert load_model(fetch(name)).spec.n_layers == 2
    assert asked == [True, True]
    with pytest.raises(InputError, match="not in the local hub cache") as e:
        resolve("me/other")
    assert "\n" not in str(e.value) and asked == [True, True, True, False]


def test_what_is_no_model(place: Path) -> None:
    with pytest.raises(UsageError, match="no recipe"):
        resolve("nothing")
    with pytest.raises(UsageError):
        resolve("../models/x.gguf")
    (place / "m.onnx").write_bytes(b"x")
    with pytest.raises(UnsupportedError, match="onnx"):
        resolve("m.onnx")
    (place / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="GGUF"):
        resolve("m.gguf")
    (place / "m.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="few"):
        resolve("m.bin")
    (place / "empty").mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        resolve("empty")
