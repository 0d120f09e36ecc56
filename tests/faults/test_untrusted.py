"""Files and frames of strangers: read, or refused by an error of ours, in bounded time and memory.

A good file is changed at random: bytes of it, or values of its JSON and YAML by absurd ones.
`make test` runs a sample, `make faults` far more.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import signal
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import transformers
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_load import COMMON, write_gguf, write_llama2c
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers

from conftest import random_model
from sparseflash.base.errors import SparseflashError
from sparseflash.device.link import protocol
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.model import recipes
from sparseflash.model.load import load_model
from sparseflash.model.tokenizer import Tokenizer

ALL = os.environ.get("SPARSEFLASH_FAULTS") == "all"
FEW = settings(
    max_examples=3000 if ALL else 40,
    deadline=None,
    derandomize=not ALL,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SECONDS = 10
MEMORY = 6 << 30
DEEP = "[" * 100_000
NUMBERS = [-1, 0, 1, 3, 7, 2**31, 2**63, 10**400, -0.0, 0.5, 1e308, float("nan"), float("inf")]
OTHERS: list[Any] = [None, True, "", "\0", "\ud800", "x" * 100_000, "../../etc/passwd"]
ABSURD = st.sampled_from([*NUMBERS, *OTHERS, [], {}, [[]], {"a": 1}, [1, "x"]])


@contextmanager
def bounded() -> Iterator[None]:
    """Ends what takes too long, and makes absurd allocations fail, as on a small machine."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def ours(action: Callable[[], Any]) -> Any:
    """What it gives, or None after an error of ours, which is one line."""
    with bounded():
        try:
            return action()
        except SparseflashError as e:
            assert str(e) and "\n" not in str(e) and len(str(e)) < 2000, str(e)[:300]
            return None


@st.composite
def damage(draw: st.DrawFn, size: int, head: int) -> list[tuple[str, int, bytes]]:
    """Some changes: most of them in the first ``head`` bytes, where sizes and names are."""
    place = st.one_of(st.integers(0, head - 1), st.integers(0, head - 1), st.integers(0, size - 1))
    number = st.sampled_from([0, 1, 127, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
    value = st.one_of(st.binary(min_size=1, max_size=8), number.map(lambda n: struct.pack("<Q", n)))
    kind = st.sampled_from(["set", "set", "set", "cut", "insert"])
    return draw(st.lists(st.tuples(kind, place, value), min_size=1, max_size=4))


def damaged(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    out = bytearray(data)
    for kind, at, value in changes:
        if kind == "set":
            out[at : at + len(value)] = value
        elif kind == "insert":
            out[at:at] = value
        else:
            del out[at:]
    return bytes(out)


@st.composite
def twisted(draw: st.DrawFn, value: Any) -> Any:
    """A tree of JSON with a few of its values replaced, dropped or renamed."""
    tree = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        node = tree
        while isinstance(node, dict | list) and node:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = draw(st.sampled_from(keys[:300]))
            below = node[key]
            if isinstance(below, dict | list) and below and draw(st.booleans()):
                node = below
                continue
            if isinstance(node, dict) and draw(st.integers(0, 5)) == 0:
                del node[key]
            else:
                node[key] = draw(ABSURD)
            break
    return tree


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("untrusted")


def checked_bytes(path: Path, head: int, read: Callable[[], Any], count: Counter[str]) -> None:
    """``read`` of the file at ``path`` under damages of it; the good file is read."""
    good = path.read_bytes()
    assert ours(read) is not None

    @FEW
    @given(damage(len(good), min(head, len(good))))
    def check(changes: list[tuple[str, int, bytes]]) -> None:
        count["damaged files of strangers"] += 1
        path.write_bytes(damaged(good, changes))
        ours(read)

    check()


def checked_tree(
    path: Path, read: Callable[[], Any], write: Callable[[Any], str], count: Counter[str]
) -> None:
    """``read`` of the file at ``path`` with absurd values in it."""
    text = path.read_text(encoding="utf-8")
    good = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    assert ours(read) is not None

    @FEW
    @given(twisted(good))
    def check(tree: Any) -> None:
        count["damaged files of strangers"] += 1
        path.write_text(write(tree), encoding="utf-8", errors="replace")
        ours(read)

    check()
    for bad in (DEEP, '{"a":' * 100_000, "", "\0", "&a [*a]", "- " * 50_000):
        path.write_text(bad)
        assert ours(read) is None


def test_image(place: Path, count: Counter[str]) -> None:
    path = place / "model.sfm"
    pack(random_model(n_layers=1), path, Formats())

    def read() -> Image:
        image = Image(path, verify=False)  # the sums would find nearly everything
        for w in image.weights.values():
            image.items(w)
        return image

    checked_bytes(path, 3000, read, count)


def test_gguf(place: Path, count: Counter[str]) -> None:
    path = place / "m.gguf"
    write_gguf(path, random_model(n_layers=1, ffn_dim=96))
    checked_bytes(path, 2500, lambda: load_model(path), count)


def test_llama2c(place: Path, count: Counter[str]) -> None:
    path = place / "m.bin"
    write_llama2c(path, random_model(n_layers=1))
    checked_bytes(path, 40, lambda: load_model(path), count)


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON)).save_pretrained(place / "hf")
    return place / "hf"


def test_safetensors(folder: Path, count: Counter[str]) -> None:
    path = folder / "model.safetensors"
    good = path.read_bytes()
    checked_bytes(path, 1500, lambda: load_model(folder), count)
    path.write_bytes(good)


def test_config(folder: Path, count: Counter[str]) -> None:
    path = folder / "config.json"
    good = path.read_bytes()
    checked_tree(path, lambda: load_model(folder), json.dumps, count)
    path.write_bytes(good)


def test_tokenizer_json(place: Path, count: Counter[str]) -> None:
    engine = Engine(models.BPE({chr(97 + i): i for i in range(26)} | {"ab": 26}, [("a", "b")]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(["<end>"])
    path = place / "tokenizer.json"
    path.write_text(engine.to_str())

    def read() -> list[int]:
        t = Tokenizer.from_tokenizer_json(path)
        return t.encode("abc <end> déf")

    checked_tree(path, read, json.dumps, count)


def test_recipe(place: Path, monkeypatch: pytest.MonkeyPatch, count: Counter[str]) -> None:
    text = (recipes.root() / "models" / "stories260k.yaml").read_text(encoding="utf-8")
    monkeypatch.setattr(recipes, "root", lambda: place)
    (place / "models").mkdir()
    path = place / "models" / "stories260k.yaml"
    path.write_text(text, encoding="utf-8")

    def read() -> recipes.Recipe:
        r = recipes.load_recipe("stories260k")
        assert isinstance(r.title, str) and isinstance(r.licence, str)
        assert isinstance(r.calibration, dict) and isinstance(r.evaluation, dict)
        return r

    checked_tree(path, read, yaml.safe_dump, count)


def test_frames() -> None:
    """Any bytes on the line are split and refused; any payload is parsed or a ValueError."""
    parsers = [protocol.parse_hello, protocol.parse_stream, protocol.parse_counters]
    parsers += [protocol.parse_step, protocol.parse_error, protocol.parse_u32, protocol.parse_f32]

    @settings(FEW, max_examples=100_000 if ALL else 500)
    @given(st.binary(max_size=300), st.sampled_from(parsers))
    def check(data: bytes, parse: Callable[[bytes], Any]) -> None:
        splitter = protocol.Splitter()
        for wire in splitter.feed(data) + splitter.feed(b"\0"):
            frame = protocol.decode_frame(wire)
            assert frame is None or len(frame.payload) <= protocol.MAX_PAYLOAD
        with suppress(ValueError, struct.error):
            parse(data)

    check()
