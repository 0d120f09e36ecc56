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

import pytest

from sparseflash import __version__, cli
from sparseflash.base.files import root
from sparseflash.cli import console
from sparseflash.cli import device as device_verbs

HEAVY = {"numpy", "torch", "yaml", "jinja2", "tokenizers", "matplotlib", "serial", "gguf"}


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
    assert all(verb in done.stdout for verb in cli.VERBS)
    assert "No such command 'gener'" in run(code, "gener").stderr


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["generate", "--help"]])
def test_start_imports_little(arguments: list[str]) -> None:
    """What takes time to import waits until a verb needs it."""
    code = f"""
import sys
from sparseflash.cli import main
try:
    main()
except SystemExit as e:
    assert e.code == 0
    sys.exit(",".join({HEAVY!r} & {{*sys.modules}}) or 0)
"""
    done = run(code, *arguments)
    assert done.returncode == 0, done.stderr


def test_every_verb_is_in_its_file() -> None:
    group = cli.typer.main.get_group(cli.app)
    for verb in cli.VERBS:
        assert group.get_command(None, verb).name == verb
    assert group.get_command(None, "nothing") is None


def test_keyboard_interrupt_is_130() -> None:
    """Ctrl-C while a verb runs; the code is documented."""
    code = """
import sys, time
from sparseflash.cli import device, main
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


class Talk:
    """A conversation that answers in capitals."""

    def __init__(self, *_: object) -> None:
        pass

    def ask(self, text: str, *_: object) -> list[bytes]:
        return [text.upper().encode()]

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    device = None


def test_end_of_piped_input_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = tmp_path / "said"
    said.write_text("one\ntwo\n")
    monkeypatch.setattr("sparseflash.device.chat.Chat", Talk)
    monkeypatch.setattr("sparseflash.pipeline.stages.open_tokenizer", lambda _: (None, ()))
    monkeypatch.setattr("sparseflash.pipeline.stages.session", lambda *_: Talk())
    monkeypatch.setattr(sys, "argv", ["sparseflash", "chat"])
    with said.open() as f, pytest.raises(SystemExit) as stopped:
        monkeypatch.setattr(sys, "stdin", f)
        cli.main()
    assert stopped.value.code == 0
    assert capfd.readouterr().out == "ONE\nTWO\n"
    assert device_verbs.app.registered_commands


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


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # the other end is closed
        return b""


def test_progress_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line every few seconds, with the time that is left."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with console.bar("packing", 10) as progress:
        for done in range(1, 11):
            now[0] += 2
            progress(done)
    said = capsys.readouterr().err.splitlines()
    lines = ("3 of 10, 14 s left", "6 of 10, 8 s left", "9 of 10, 2 s left")
    assert said == [f"packing: {line}" for line in lines]
    with console.doing("reading") as say:
        for step in range(4):
            now[0] += 3
            say(f"step {step}")
    assert capsys.readouterr().err.splitlines() == ["step 1 (6 s)", "step 3 (12 s)"]
