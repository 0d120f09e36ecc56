"""A model whose files were read before: its weights wait, and no change of them is missed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from test_resolve import save_checkpoint

from conftest import make_workspace
from sparseflash.model import recipes
from sparseflash.model.resolve import resolve
from sparseflash.model.spec import Model, as_float32
from sparseflash.pipeline import stages
from sparseflash.pipeline.places import Places

Opened = Callable[[], tuple[Model, int]]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(make_workspace(tmp_path)))
    save_checkpoint(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def opened(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens the model; says how often the loader read it so far."""
    count, load = [0], stages.load_model

    def counted(*places: Path) -> Model:
        count[0] += 1
        return load(*places)

    monkeypatch.setattr(stages, "load_model", counted)

    def open_it() -> tuple[Model, int]:
        return stages.open_model(recipes.load_recipe(resolve(str(tiny)))), count[0]

    return open_it


def test_weights_wait_until_they_are_asked_for(opened: Opened) -> None:
    first, _ = opened()
    again, reads = opened()
    assert reads == 1 and again.spec == first.spec and again.source == first.source
    assert again.name == first.name
    assert first.tokenizer is not None and again.tokenizer is not None
    assert again.tokenizer.encode("a b") == first.tokenizer.encode("a b")
    recipe = recipes.load_recipe(first.name)
    assert stages.facts_of(again, recipe) == stages.facts_of(first, recipe)
    assert opened()[1] == 1
    assert np.array_equal(as_float32(again.embed), as_float32(first.embed))
    assert opened()[1] == 2, "the weights came from elsewhere"


@pytest.mark.parametrize("field", [f.name for f in fields(Model)])
def test_every_field_is_that_of_the_files(opened: Opened, field: str) -> None:
    first, again = opened()[0], opened()[0]
    copy = replace(opened()[0], name=first.name)
    assert type(copy) is Model and isinstance(again, Model)
    for model in (again, copy):
        value, right = getattr(model, field), getattr(first, field)
        if field == "tokenizer":
            value, right = value.kept(), right.kept()
        if field == "layers":
            value, right = pickle.dumps(value), pickle.dumps(right)
        np.testing.assert_array_equal(value, right)


@pytest.mark.parametrize("file", ["config.json", "*.safetensors", "tokenizer.json"])
def test_a_changed_file_is_read_anew(file: str, tiny: Path, opened: Opened) -> None:
    opened()
    place = next(tiny.glob(file))
    if place.suffix == ".json":
        place.write_text(json.dumps(json.loads(place.read_text()), indent=5))
    else:
        data = bytearray(place.read_bytes())
        data[-4] ^= 1  # the last digit of the last float
        place.write_bytes(data)
    assert opened()[1] == 2


def test_another_configuration_is_another_image(tiny: Path, opened: Opened) -> None:
    """The weights are the same, and the image was packed for other layers."""
    model = opened()[0]
    recipe = recipes.load_recipe(model.name)
    before = stages.pack_model(model, recipe).spec
    config = tiny / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-3}))
    after = stages.pack_model(opened()[0], recipe).spec
    assert after.norm_eps == 1e-3 != before.norm_eps


@pytest.mark.parametrize("damage", ["", "{}", "[", '{"digest": 1}'])
def test_a_damaged_note_is_written_anew(damage: str, opened: Opened) -> None:
    model = opened()[0]
    note = Places(model.name).known
    kept = note.read_text()
    note.write_text(damage)
    assert opened()[1] == 2 and note.read_text() == kept
