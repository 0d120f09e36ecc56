"""The models that lie in the repository: their files, and the story model in C."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sparseflash.base.files import root
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.reference import Reference
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.recipes import file_sha256, load_recipe
from sparseflash.pipeline.stages import open_model
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan

FOLDER = root() / "models"


def test_files_have_their_hashes() -> None:
    story = load_recipe("story")
    assert file_sha256(root() / story.source.path) == story.source.sha256
    card = (FOLDER / "story" / "README.md").read_text(encoding="utf-8")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert file_sha256(FOLDER / "story" / name) in card
    sparse = FOLDER / "smollm2-135m-sparse"
    said = file_sha256(sparse / "model.delta")
    assert said in (sparse / "README.md").read_text(encoding="utf-8")
    assert said in (FOLDER / "smollm2-135m-sparse.yaml").read_text(encoding="utf-8")
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) < 25e6


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Image:
    recipe, path = load_recipe("story"), tmp_path_factory.mktemp("story") / "model.sfm"
    f = recipe.formats
    pack(open_model(recipe), path, Formats(f["attn"], f["ffn"], f["embed"]))
    return Image(path)


def test_story_in_c(story: Image, host: Board, tmp_path: Path) -> None:
    """Bits of the reference, the card's greedy story, at most a quarter of the FFN's bytes."""
    generate(make_plan(story, host, dense_thresholds(story), kv_len=64), tmp_path / "gen")
    engine = Engine(build_library(tmp_path / "gen", tmp_path / "story.so", flags=["-O1"]), story)
    model = open_model(load_recipe("story"))
    assert model.tokenizer is not None
    start = "Once there was a brave"
    ids = np.array(model.tokenizer.chat([{"role": "user", "content": start}]))
    want = Reference(story).run(ids)
    engine.trace(True)
    for p, token in enumerate(ids):
        logits = engine.step(int(token))
        assert logits is not None
        assert np.array_equal(engine.hashes(), want.hashes()[p])
        assert np.array_equal(logits.view(np.uint32), want.logits[p].view(np.uint32))
    assert engine.counters(clear=True)["neurons"] == want.neurons
    said = []
    for _ in range(40):  # it goes on by itself
        said.append(int(logits.argmax()))
        logits = engine.step(said[-1])
        assert logits is not None
    card = (FOLDER / "story" / "README.md").read_text(encoding="utf-8")
    assert f"> {start}{model.tokenizer.decode(said).splitlines()[0]}" in card
    whole = sum(w.size * w.count for w in story.weights.values() if w.is_ffn)
    assert engine.counters()["bytes_ffn"] <= 0.25 * whole * 40


def test_the_card_says_the_shape() -> None:
    config = json.loads((FOLDER / "story" / "config.json").read_text())
    spec = open_model(load_recipe("story")).spec
    assert spec.gate_inputs == config["gate_inputs"] == 32
    assert spec.act_threshold == 1.0 and 0 < spec.active_share < 0.25
