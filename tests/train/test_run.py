"""A whole distillation from texts to a delta, in two runs, alone and by two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparseflash.base.errors import InputError, UnsupportedError, UsageError
from sparseflash.base.files import root
from sparseflash.model.load.delta import apply_delta
from sparseflash.model.spec import Layer, LayerSpec, Model, ModelSpec
from sparseflash.train.run import ASKED, Time, chat_openings, distill, read_texts, settings_for
from sparseflash.train.student import Student, base_of
from sparseflash.train.write import write_text

DIM, FFN, LAYERS, VOCAB = 64, 96, 2, 128


class Bytes:
    """A tokenizer whose ids are bytes."""

    special: dict[str, int] = {}  # noqa: RUF012
    vocab_size = VOCAB

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])

    def encode(self, text: str, bos: bool = False) -> list[int]:
        return [b % VOCAB for b in text.encode()]

    def decode(self, ids: object) -> str:
        return ""

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        return self.encode(messages[0]["content"])


class Turns(Bytes):
    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        return self.encode("<user>" + messages[0]["content"] + "<model>")


def tiny() -> Model:
    g = np.random.default_rng(0)

    def r(*size: int) -> np.ndarray:
        return (g.standard_normal(size) * 0.25).astype(np.float32)

    spec = ModelSpec("llama", VOCAB, DIM, FFN, LAYERS, 4, 2, 16, 64, (LayerSpec(),) * LAYERS)
    spec = replace(spec, eos_ids=(0,))
    one = np.ones(DIM, np.float32)
    layers = [
        Layer(one, r(64, DIM), r(32, DIM), r(32, DIM), r(DIM, 64), one, r(FFN, DIM), r(DIM, FFN))
        for _ in range(LAYERS)
    ]
    for y in layers:
        y.gate_proj = r(FFN, DIM)
    source = {"file": "tiny", "sha256": "ab"}
    return Model(spec, r(VOCAB, DIM), layers, one, tokenizer=Bytes(), name="tiny", source=source)


def texts(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    words = ["the sun", "a fox", "went home", "in the wood", "and slept", "said he"]
    g = np.random.default_rng(1)
    for name in ("one", "two"):
        body = [" ".join(g.choice(words, 40)) + "." for _ in range(30)]
        (folder / f"{name}.txt").write_text("\n<|endoftext|>\n".join(body))
    return folder


SETTINGS = settings_for([60, 45], windows=4, window=32, lr=3e-3, seed=1)


def test_two_runs_make_a_delta_that_loads(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model, said = tiny(), []
    found = read_texts(model, texts(tmp_path / "t"), {}, tmp_path, said.append)
    assert sum("tokens" in s for s in said) == 2 and found["one"][0][-1] == 0
    tests = {"test": found["two"][0][:128].reshape(4, 32)}
    distill(model, found, tests, tmp_path, SETTINGS, Time(steps=10), "cpu", said.append)
    kept = tmp_path / "kept.delta"
    kept.write_bytes((tmp_path / "model.delta").read_bytes())
    first = json.loads((tmp_path / "figures.json").read_text())
    figures = distill(model, found, tests, tmp_path, SETTINGS, Time(steps=30), "cpu", said.append)
    assert any("goes on from step 10" in s for s in said)
    assert first["run"]["step"] == 10 and figures["run"]["step"] == 30
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert len(json.loads((tmp_path / "curve.json").read_text())) >= 2
    assert (tmp_path / "model.delta").stat().st_size == figures["delta_bytes"]
    assert figures["table"]["45"]["test"]["bytes"] < figures["table"]["60"]["test"]["bytes"] < 0.65
    made = apply_delta(model, tmp_path / "model.delta", 45)
    assert made.spec.own_thresholds and made.layers[1].thresholds is not None
    on = replace(SETTINGS, ramp=0.0, quantise_from=0.0)
    fresh = tmp_path / "on"
    distill(model, found, tests, fresh, on, Time(steps=2), "cpu", said.append, kept)
    after = json.loads((fresh / "figures.json").read_text())
    assert after["run"]["step"] == 2 and after["run"]["quantised"]
    with pytest.raises(InputError, match="other budgets"):
        other = settings_for([50], 4, 32, 3e-3, 1)
        distill(model, found, tests, tmp_path, other, Time(steps=31), "cpu", said.append)


def test_model_writes_text_for_itself(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model, said = tiny(), []
    found = read_texts(model, texts(tmp_path / "t"), {}, tmp_path, said.append)
    time = Time(steps=2, write_seconds=1.0)
    distill(model, found, {}, tmp_path, SETTINGS, time, "cpu", said.append)
    with np.load(tmp_path / "written.0.npz") as z:
        ids = z["text"]
        assert "chat" not in z.files  # no chat template
    # It wrote more than it was given, and only ids of the vocabulary.
    assert len(ids) % 32 == 0 and ids.max() < VOCAB and len(set(ids.tolist())) > 20
    assert any("wrote" in s for s in said)


def test_conversations_begin_in_many_ways() -> None:
    model = tiny()
    assert chat_openings(model) == []
    model.spec = replace(model.spec, chat_template="x")
    model.tokenizer = Turns()
    found = chat_openings(model)
    empty = list(b"<user>")
    assert found[0] == empty and len(found) == 1 + len(ASKED)
    assert all(o[: len(empty)] == empty and len(o) > len(empty) for o in found[1:])
    assert len({tuple(o) for o in found}) == len(found)
    prompts: list[torch.Tensor] = []

    class Spy:
        rows, length = 3, 64

        def __init__(self) -> None:
            self.student = Student(base_of(tiny()), 1, "cpu", torch.float32)

        def write(self, prompt: torch.Tensor, t: torch.Tensor, forbid: object = ()) -> torch.Tensor:
            prompts.append(prompt)
            return torch.zeros(3, 64, dtype=torch.long)

    begin = torch.zeros(3, 8, dtype=torch.long)
    write_text(Spy(), 0, lambda n, k: begin, found, [], print, batches=8)  # type: ignore[arg-type]
    chats = prompts[::2]
    assert all(p.tolist() == [empty] * 3 for p in chats[::2])
    assert all(row in found for p in chats for row in p.tolist())


def test_two_processes_agree(tmp_path: Path) -> None:
    """torchrun with two processes on the CPU: one model, twice the tokens."""
    texts(tmp_path / "t")
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "torch.set_num_threads(1)\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_run as t\n"
        "from sparseflash.train import run\n"
        f"f = Path({str(tmp_path)!r})\n"
        "m = t.tiny()\n"
        "x = run.read_texts(m, f / 't', {}, f, lambda s: None)\n"
        "d = {}\n"
        "old = run.Distiller.run\n"
        "def keep(self, *a):\n"
        "    old(self, *a)\n"
        "    torch.save({n: c.detach() for n, c in self.student.change.items()},"
        " f / f'change.{self.rank}.pt')\n"
        "run.Distiller.run = keep\n"
        "r = run.distill(m, x, {}, f / 'out', t.SETTINGS, run.Time(steps=6), 'cpu', print)\n"
    )
    (tmp_path / "out").mkdir()
    env = os.environ | {"PYTHONPATH": str(root() / "host_tools"), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node", "2", str(script)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = (torch.load(tmp_path / f"change.{i}.pt", weights_only=True) for i in (0, 1))
    assert all(torch.equal(a[n], b[n]) and a[n].abs().max() > 0 for n in a)
    run = json.loads((tmp_path / "out" / "figures.json").read_text())["run"]
    assert run["tokens"] == 2 * 6 * 4 * 32


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    model = tiny()
    with pytest.raises(InputError, match="no text to train on"):
        read_texts(model, tmp_path, {}, tmp_path, print)
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="no UTF-8 text"):
        read_texts(model, tmp_path, {}, tmp_path, print)
    for bad in ([], [50.5], [0], [100]):
        with pytest.raises(UsageError, match="whole percents"):
            settings_for(bad, 4, 32, 1e-3, 1)
    with pytest.raises(UsageError, match="at least 5 windows"):
        settings_for([60, 50, 40, 30, 20], 4, 32, 1e-3, 1)
    model.spec = replace(model.spec, qk_norm=True)
    with pytest.raises(UnsupportedError, match="something else"):
        base_of(model)
