"""Documents: the page of the command line is current, and commands of the guides are real ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from conftest import make_workspace
from sparseflash.base.files import root
from sparseflash.cli import main
from sparseflash.cli.app import ALIASES, VERBS, app
from sparseflash.cli.reference import page

GUIDES = ("README.md", "docs/TUTORIAL.md", "docs/HOWTO.md", "docs/CLI.md")


def test_page_is_current() -> None:
    assert (root() / "docs" / "CLI.md").read_text() == page(), "run make reference"


def test_every_verb_has_help_with_examples() -> None:
    group = typer.main.get_group(app)
    for verb in VERBS:
        command = group.get_command(None, verb)  # type: ignore[arg-type]
        assert command and command.help and "sparseflash " in (command.epilog or ""), verb
        short = command.get_short_help_str(57)
        assert not short.endswith("..."), f"{verb}: {short} is too long for the list of verbs"
        for option in command.params:
            assert getattr(option, "help", ""), f"{verb} {option.opts} says nothing"


def commands(page: str) -> list[str]:
    """Lines of the code blocks that call sparseflash."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (root() / page).read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"\s*(sparseflash|make) ", line)]


@pytest.mark.parametrize("guide", GUIDES)
def test_options_of_commands_exist(guide: str) -> None:
    group = typer.main.get_group(app)
    for line in commands(guide):
        words = shlex.split(line.split("|")[0], comments=True)
        if words[0] != "sparseflash" or words[1].startswith("-"):
            continue
        command = group.get_command(None, words[1])  # type: ignore[arg-type]
        assert command, f"{guide}: {line}"
        known = {o for p in command.params for o in [*p.opts, *p.secondary_opts]}
        for word in words[2:]:
            if word.startswith("--"):
                assert word.split("=")[0] in known, f"{guide}: {line} has no option {word}"


@pytest.mark.parametrize("guide", GUIDES)
def test_targets_of_commands_exist(guide: str) -> None:
    makefile = (root() / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    variables = set(re.findall(r"\$\(([A-Z_]+)\)", makefile)) | set(
        re.findall(r"^([A-Z_]+) [?:]?=", makefile, re.M)
    )
    for line in commands(guide):
        words = shlex.split(line, comments=True)
        for word in words[1:] if words[0] == "make" else ():
            name, is_set, _ = word.partition("=")
            assert name in (variables if is_set else targets), f"{guide}: {line}"


def test_the_readme_shows_what_plan_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where `story` fits: the lines of the README are among those of the verb."""
    text = (root() / "README.md").read_text()
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(make_workspace(tmp_path)))
    command = "sparseflash plan --model story --boards"
    monkeypatch.setattr("sys.argv", shlex.split(command))
    with pytest.raises(SystemExit):
        main()
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = text.partition(f"$ {command}\n")[2].partition("```")[0].splitlines()
    assert len(shown) > 3
    for line in shown:
        assert line.split() in printed, line


def test_aliases_are_words_of_the_makefile() -> None:
    makefile = Path(root() / "Makefile").read_text()
    assert all(f"\n{word}: " in makefile for word in ALIASES)
