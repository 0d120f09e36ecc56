"""Chat as a person types it: a real terminal, a device on host, and what a pipe gets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from conftest import make_workspace
from sparseflash.base.files import root
from sparseflash.cli.console import EVERY

MODEL = "story"
SLOW = """
import time
from sparseflash.cli import main
from sparseflash.device import chat
ask = chat.Chat.ask
def slowly(*a):
    pieces = ask(*a)
    try:
        for piece in pieces:
            time.sleep(0.1)
            yield piece
    finally:
        pieces.close()
chat.Chat.ask = slowly
main()
"""
PROMPT = "\x1b[?2004h"
"""What prompt_toolkit writes before it waits for a line: from here pasted text is bracketed."""
PLAIN = "from sparseflash.cli import main; main()"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a checkout in which the story model is flashed on host."""
    source = root()
    base = make_workspace(tmp_path_factory.mktemp("chat"))
    environment = {**os.environ, "SPARSEFLASH_ROOT": str(base), "TERM": "xterm"}
    environment |= {"PYTHONPATH": str(source / "host_tools"), "PROMPT_TOOLKIT_NO_CPR": "1"}
    environment |= {"NO_COLOR": "1"}
    for verb in ("generate", "flash"):
        command = [sys.executable, "-m", "sparseflash.cli", verb, "--model", MODEL]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    yield environment


@pytest.fixture
def terminal(place: dict[str, str]) -> Iterator[Any]:
    """Starts a chat in a terminal; ends it."""
    opened: list[Any] = []

    def start(code: str = PLAIN, *more: str) -> Any:
        command = ["-c", code, "chat", "--model", MODEL, *more]
        child = pexpect.spawn(
            sys.executable, command, env=place, dimensions=(24, 80), encoding="utf-8", timeout=60
        )
        opened.append(child)
        return child

    yield start
    for child in opened:
        child.close(force=True)


def enter(chat: Any, keys: str) -> None:
    """Types when the chat waits for a line; what comes before that would be lost."""
    chat.expect_exact(PROMPT)
    chat.send(keys)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", text)


def test_a_conversation(terminal: Any, tmp_path: Path) -> None:
    chat = terminal(PLAIN, "--most", "20")
    enter(chat, "\r")  # an empty line
    enter(chat, "Once upon a time\r")
    chat.expect(r"\(20 tokens, first after [0-9.]+ s(, [0-9.]+ tokens/s)?\)")
    answer = plain(chat.before)
    assert "there was a little girl" in answer
    assert "(stopped after 20 tokens, as --most says)" in answer
    enter(chat, "/stats\r")
    chat.expect(r"all: 20 tokens, [0-9]+ of prompts")
    enter(chat, "/help\r")
    chat.expect_exact("Ctrl-C stops an answer")
    enter(chat, "/nonsense\r")
    chat.expect_exact("/nonsense is no command")
    enter(chat, f"/save {tmp_path / 'talk.txt'}\r")
    chat.expect_exact("saved 2 messages")
    saved = (tmp_path / "talk.txt").read_text()
    assert saved.startswith("user: Once upon a time\n\nassistant: ") and "little girl" in saved
    enter(chat, "/reset\r")
    chat.expect_exact("a new conversation")
    enter(chat, "/save\r")
    chat.expect_exact("/save wants the name of a file")
    enter(chat, "\x04")
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0 and "Traceback" not in chat.before


def test_arrow_keys_recall_a_line(terminal: Any) -> None:
    chat = terminal(PLAIN, "--most", "3")
    enter(chat, "Once upon a time\r")
    chat.expect(r"3 tokens, first")
    enter(chat, "\x1b[A\r")
    chat.expect(r"3 tokens, first")
    assert "there was" in plain(chat.before)


def test_interrupt_stops_the_answer_and_not_the_chat(terminal: Any) -> None:
    chat = terminal(SLOW, "--most", "200")
    enter(chat, "\x03")  # at the prompt: a new one
    for _ in range(2):
        enter(chat, "Once upon a time\r")
        chat.expect_exact("there was")
        chat.send("\x03")
        chat.expect_exact("(stopped)")
    enter(chat, "/stats\r")
    chat.expect(r"the last answer: ([0-9]+) tokens")
    assert int(chat.match[1]) < 150
    enter(chat, "\x04")
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0


def device_of(pid: int) -> int:
    """The device's process under a chat."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    names = {int(c): Path(f"/proc/{c}/cmdline").read_bytes() for c in children}
    return next(c for c, line in names.items() if b"firmware" in line)


def test_a_device_that_restarts(terminal: Any) -> None:
    chat = terminal(PLAIN, "--most", "5")
    enter(chat, "Once upon a time\r")
    chat.expect(r"5 tokens, first")
    os.kill(device_of(chat.pid), signal.SIGKILL)
    enter(chat, "Once upon a time\r")
    chat.expect_exact("the link broke")
    chat.expect_exact("connected again")
    chat.expect(r"5 tokens, first")
    assert "there was a little" in plain(chat.before)


def test_a_pipe_gets_the_answers_alone(place: dict[str, str]) -> None:
    command = [sys.executable, "-c", PLAIN, "chat", "--model", MODEL, "--most", "4"]
    said = "Once upon a time\n\nThe dog\n"
    done = subprocess.run(
        command, env=place, input=said, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 and "\x1b" not in done.stdout
    assert done.stdout.startswith(", there was a")
    one = subprocess.run(
        [*command, "Once upon a time"], env=place, text=True, capture_output=True, check=True
    )
    assert one.stdout == done.stdout.splitlines()[0] + "\n"


def test_verbs_that_print_figures_speak_json(place: dict[str, str]) -> None:
    """Whole and alone on the standard output; progress and warnings are elsewhere."""
    import json

    def run(*words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", PLAIN, *words, "--json"],
            env=place, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    model = ("--model", MODEL)
    bench = run("bench", *model, "--tokens", "4", "--repetitions", "2")
    assert [(b["n_prompt"], b["n_gen"]) for b in bench] == [(15, 0), (0, 4)]
    for entry in bench:
        assert len(entry["samples_ns"]) == 2 and entry["avg_ts"] > 0
        assert entry["energy_uj_per_token"] is None
    prompt, decode = (entry["bytes_per_token"] for entry in bench)
    assert decode > 1e6 > prompt > 0  # a prompt reads the weights once a block
    fit = run("plan", *model)
    assert fit["fits"] and fit["sram_used"] == sum(fit["sram"].values())
    assert fit["token"]["time"]["source"] == "bench.json of this plan"
    assert run("validate", *model, "--positions", "2")["equal"] is True
    assert run("info", *model)["layers"] == 8
    assert run("flash", *model)["image"].endswith("model.sfm")
    assert {b["board"] for b in run("boards")} >= {"host", "pico"}
    assert {m["model"] for m in run("models")} >= {MODEL}
    assert run("build", *model)["bytes"] > 1000
    (turn,) = run("chat", *model, "--most", "3", "Once upon a time")
    assert turn["answer"].startswith(", there") and turn["tokens"] == 3
    assert EVERY > 1
