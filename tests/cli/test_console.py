"""The command line itself: start, help, version, interrupts, and output that is piped."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest

from sparseflash import __version__, cli
from sparseflash.base.files import root
from sparseflash.base.progress import each
from sparseflash.cli import app as commands
from sparseflash.cli import chat as chat_verb
from sparseflash.cli import console
from sparseflash.cli.device import bench_figure
from sparseflash.device.chat import Turn

HEAVY = {"numpy", "torch", "yaml", "jinja2", "tokenizers", "matplotlib", "serial", "gguf"}
HEAVY |= {"pydantic", "rich", "prompt_toolkit"}


def run(code: str, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """A Python process with the tool on its path and these arguments."""
    environment = {**os.environ, "PYTHONPATH": str(root() / "host_tools")}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, input=stdin, check=False
    )


def test_version_and_help() -> None:
    code = "from sparseflash.cli import main; main()"
    done = run(code, "--version")
    assert (done.returncode, done.stdout) == (0, f"sparseflash {__version__}\n")
    done = run(code, "--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in commands.VERBS)
    unknown = run(code, "gener")
    assert unknown.returncode == 2
    assert unknown.stderr == (
        "error: No such command 'gener'; sparseflash --help says what there is\n"
    )
    alone = run(code)
    assert alone.returncode == 2 and alone.stderr.startswith("Usage: sparseflash")


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["--version"], HEAVY | {"typer"}),
        (["--help"], HEAVY),
        (["generate", "--help"], HEAVY - {"pydantic"}),  # typer has its own use of it
        (["boards"], HEAVY - {"yaml", "pydantic"}),
        (["models"], HEAVY - {"yaml", "pydantic"}),
        (["info", "--model", "story"], {"torch", "matplotlib"}),
        (["plan", "--model", "story"], {"torch", "matplotlib"}),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_start_imports_little(arguments: list[str], unneeded: set[str]) -> None:
    """What takes time to import waits until a verb needs it."""
    code = f"""
import sys
from sparseflash.cli import main
try:
    main()
except SystemExit as e:
    assert not e.code
sys.exit(",".join({unneeded!r} & {{*sys.modules}}) or 0)
"""
    if "story" in arguments:
        assert run(code.replace(repr(unneeded), "set()"), *arguments).returncode == 0  # reads it
    done = run(code, *arguments)
    assert done.returncode == 0, done.stderr


def test_every_verb_is_in_its_file() -> None:
    group = commands.typer.main.get_group(commands.app)
    for verb in commands.VERBS:
        assert group.get_command(None, verb).name == verb
    assert group.get_command(None, "nothing") is None


def test_keyboard_interrupt_is_130() -> None:
    """Ctrl-C while a verb runs; the code is documented."""
    code = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from sparseflash.cli import main
sys.argv = ["sparseflash", "boards"]
from sparseflash.plan import boards
def wait():
    print("waiting", flush=True)
    time.sleep(60)
boards.board_ids = wait
main()
"""
    environment = {**os.environ, "PYTHONPATH": str(root() / "host_tools")}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in said
    assert "| 130 |" in (root() / "docs" / "EXIT_CODES.md").read_text()


def test_names_command_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Of models, files and devices: what a terminal would obey is replaced."""
    name = "m\x1b]0;title\x07\x9b2J\x00\r.gguf"
    for tell in (console.say, console.warn, console.fail):
        tell(f"{name}: two\nlines")
    console.table(["model"], [[name]], "title")
    out, error = capsys.readouterr()
    assert not set("\x1b\x07\x9b\x00\r") & set(out + error) and "two\nlines" in out


class Talk:
    """A conversation that answers in capitals."""

    def __init__(self, *_: object) -> None:
        pass

    def ask(self, text: str, *_: object) -> list[bytes]:
        return [text.upper().encode()]

    last = Turn()

    def figures(self) -> dict[str, str]:
        return {}

    plan: ClassVar = {"model": {"eos_ids": []}}

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    device = None


@pytest.mark.parametrize(
    ("lines", "answers"),
    [
        ("one\ntwo\n", "ONE\nTWO\n"),
        ("/help\none\n", f"{chat_verb.HELP}\nONE\n"),
        ("one\n/quit\ntwo\n", "ONE\n"),
    ],
)
def test_end_of_piped_input_is_no_error(
    lines: str,
    answers: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Lines with a slash are commands here as at a terminal."""
    said = tmp_path / "said"
    said.write_text(lines)
    monkeypatch.setattr("sparseflash.device.chat.Chat", Talk)
    monkeypatch.setattr("sparseflash.pipeline.device.open_tokenizer", lambda _: Talk())
    monkeypatch.setattr("sparseflash.pipeline.device.session", lambda *_: Talk())
    monkeypatch.setattr(sys, "argv", ["sparseflash", "chat"])
    with said.open() as f, pytest.raises(SystemExit) as stopped:
        monkeypatch.setattr(sys, "stdin", f)
        cli.main()
    assert stopped.value.code == 0
    assert capfd.readouterr().out == answers
    assert chat_verb.app.registered_commands


def test_piped_tables_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("board", "SRAM"), [("a-long-name", "1"), ("b", "20,000")], "boards")
    assert (
        capsys.readouterr().out
        == "boards\nboard        SRAM\na-long-name  1\nb            20,000\n"
    )


def test_table_in_a_terminal() -> None:
    """Within 80 columns, with a frame."""
    master, slave = pty.openpty()
    code = "from sparseflash.cli import console; console.table(('a', 'b'), [('x' * 70, 'y' * 70)])"
    environment = {**os.environ, "PYTHONPATH": str(root() / "host_tools"), "COLUMNS": "80"}
    environment |= {"TERM": "xterm", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=slave, env=environment, check=True, stdin=slave
    )
    os.close(slave)
    text = b""
    while chunk := _read(master):
        text += chunk
    assert done.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;]*m|\r", "", text.decode())
    lines = plain.splitlines()
    assert len(lines) > 4 and max(map(len, lines)) <= 80 and "┃" in lines[1]
    assert plain.count("x") == plain.count("y") == 70


def test_names_and_numbers_stay_whole_in_a_narrow_terminal() -> None:
    master, slave = pty.openpty()
    code = "from sparseflash.cli import console; "
    code += "console.table(('a', 'b', 'c'), [('nucleo-h743zi2', '1,073,741,824', 'word ' * 30)])"
    environment = {**os.environ, "PYTHONPATH": str(root() / "host_tools"), "COLUMNS": "60"}
    environment |= {"TERM": "xterm", "NO_COLOR": "1"}
    subprocess.run(
        [sys.executable, "-c", code], stdout=slave, env=environment, check=True, stdin=slave
    )
    os.close(slave)
    text = b""
    while chunk := _read(master):
        text += chunk
    assert b" nucleo-h743zi2 " in text and b" 1,073,741,824 " in text


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # the other end is closed
        return b""


def test_progress_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line every few seconds, whether the work reports or not, with the time that is left."""
    monkeypatch.setattr(console, "EVERY", 0.1)
    with console.bar("packing", 10) as progress:
        time.sleep(0.15)
        progress(5)
        time.sleep(0.1)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "packing (0 s)" and second == "packing: 50 %, 0 s left"
    with console.doing("reading the model"):
        for i in each("reading layers", range(4)):
            if i == 1:
                time.sleep(0.15)
        time.sleep(0.15)
    layers, then = capsys.readouterr().err.splitlines()[:2]
    assert layers == "reading layers: 25 %, 0 s left" and then == "reading the model (0 s)"
    with console.doing("reading") as say:
        time.sleep(0.15)
        say("planning")
        time.sleep(0.1)
    assert capsys.readouterr().err.splitlines()[:2] == ["reading (0 s)", "planning (0 s)"]


def test_quiet_says_nothing_of_how_it_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "EVERY", 0.02)
    monkeypatch.setattr(console.asked, "quiet", True)
    with console.doing("reading"), console.bar("packing", 2):
        time.sleep(0.1)
    console.say("done")
    console.table(("figure",), [("1",)])
    said = capsys.readouterr()
    assert said.err == "" and said.out == "figure\n1\n"


def test_shell_completion() -> None:
    """The library's own: verbs, options, and names of boards and models."""
    code = "import sys; sys.argv = ['sparseflash']; from sparseflash.cli import main; main()"

    def completed(words: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
        monkeypatch.setenv("_SPARSEFLASH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
        return set(run(code).stdout.split())

    with pytest.MonkeyPatch.context() as patch:
        assert {"bench", "boards", "build"} <= completed("sparseflash b", patch)
        assert "--kv-len" in completed("sparseflash plan --kv", patch)
        assert completed("sparseflash plan --board pic", patch) == {"pico", "pico2"}
        assert "story" in completed("sparseflash plan --model st", patch)


def test_figures_of_a_bench_are_readable() -> None:
    shown = [bench_figure(v) for v in (96436836.75, 32226650, 22.914, 0.0, "clock", "0a" * 32)]
    assert shown == ["96,436,837", "32,226,650", "22.91", "0", "clock", f"{'0a' * 8}…"]
