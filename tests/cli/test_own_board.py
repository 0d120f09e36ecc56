"""docs/OWN_BOARD.md, followed literally in a checkout of its own; the verbs that come with it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from conftest import make_workspace
from sparseflash.base.files import root
from sparseflash.base.programs import missing
from sparseflash.cli import main
from sparseflash.cli.boards import NEW


def run(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command prints; it has to end with 0."""
    monkeypatch.setattr("sys.argv", shlex.split(line))
    with pytest.raises(SystemExit) as e:
        main()
    said = capsys.readouterr()
    assert e.value.code in (0, None), f"{line}: {said.out}{said.err}"
    return said.out


def test_the_guide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for absent in filter(None, map(missing, ("arm-none-eabi-gcc", "qemu-system-arm"))):
        pytest.skip(absent)
    text = (root() / "docs" / "OWN_BOARD.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 5 and all(line.startswith("sparseflash ") for line in lines)
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(make_workspace(tmp_path)))
    said = [run(line, capsys, monkeypatch) for line in lines]
    assert "CHECKLIST.md" in said[0] and "board mine conforms: 9 checks" in said[1]
    assert "bit-equal" in said[4]
    # What the guide says of the table of checks is what the verb prints.
    table = re.findall(r"^\| ([a-z][^|]*?) \|", text, re.M)
    assert [name for name in table if name != "check"] == re.findall(
        r"^passed  (.*?): ", said[1], re.M
    )
    said_of = run("sparseflash report --model conform --board mine", capsys, monkeypatch)
    assert "sparseflash perplexity --model conform" in said_of and "report.html" in said_of
    line = "sparseflash generate --model conform --board mine --method dense --package zephyr"
    place = Path(re.findall(r"^package (.*)$", run(line, capsys, monkeypatch), re.M)[0])
    assert (place / "zephyr" / "module.yml").is_file() and place.name == "sparseflash_conform"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "boards new",
            "a new board needs --cpu, --clock, --program, --sram, --image, --uart, a na",
        ),
        (f"{NEW.replace('16000000', '16')}", "--clock 16 is in Hz"),
        ("boards old", "no such action; there is boards new NAME"),
        ("conform --board nothere", "no board 'nothere'"),
        ("report --model story --board pico2", "nothing is generated for story on pico2"),
        ("generate --package ant --model story", "no package 'ant'; there are cmake"),
        ("generate --package zephyr --model story", "for microcontrollers"),
    ],
)
def test_one_sentence(
    line: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(make_workspace(tmp_path)))
    monkeypatch.setattr("sys.argv", ["sparseflash", *shlex.split(line)])
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
