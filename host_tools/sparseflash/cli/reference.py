"""docs/CLI.md, written from the verbs themselves: ``python -m sparseflash.cli.reference``."""

from __future__ import annotations

from typing import Any

import typer

from sparseflash.base.files import root, write_text
from sparseflash.cli.app import ALIASES, VERBS, app

START = """# Command line

`sparseflash VERB --help` says the same. This page is written by `make reference`.

Every verb has three options beside its own:

- `--json` prints its figures as JSON on the standard output, and nothing else there.
- `--quiet` leaves out progress and sentences. Figures, warnings and errors stay.
- `--verbose` shows the commands of compilers and flash programs, and where an error arose.

Piped output is plain text. `NO_COLOR=1` leaves out colours. Progress goes to the standard error: at
a terminal a line that changes, elsewhere a line every five seconds. It says the time that is left
where the length of the work is known. `sparseflash --install-completion` sets up completion in your
shell. [Exit codes](EXIT_CODES.md) are stable.
"""
COMMON = ("json", "quiet", "verbose", "help")


def page() -> str:
    """The text of docs/CLI.md."""
    group = typer.main.get_group(app)
    context = typer.Context(group, info_name="sparseflash")
    parts = [START]
    for name in VERBS:
        command = group.get_command(context, name)
        assert command is not None
        parts.append(_verb(name, command))
    return "\n".join(parts)


def _verb(name: str, command: Any) -> str:
    also = [alias for alias, verb in ALIASES.items() if verb == name]
    title = f"## {name}" + (f" (or {', '.join(also)})" if also else "")
    lines = [title, "", *_text(command.help)]
    rows = [_row(p) for p in command.params if not {o.strip("-") for o in p.opts} & {*COMMON}]
    if rows:
        lines += ["", "| option | what it says | default |", "|---|---|---|", *rows]
    shown = [line.strip() for line in (command.epilog or "").splitlines() if "sparseflash" in line]
    if shown:
        lines += ["", "```", *shown, "```"]
    return "\n".join([*lines, ""])


def _text(text: str) -> list[str]:
    import inspect

    return inspect.cleandoc(text or "").splitlines()


def _row(option: Any) -> str:
    names = ", ".join(f"`{o}`" for o in [*option.opts, *option.secondary_opts])
    if not names.startswith("`-"):
        names = f"`{option.name.upper()}`"
    default = option.default
    default = "" if default in (None, "", False) or option.required else f"`{default}`"
    default = "needed" if option.required else default
    said = (getattr(option, "help", None) or "").replace("|", "\\|")
    return f"| {names} | {said} | {default} |"


if __name__ == "__main__":
    write_text(root() / "docs" / "CLI.md", page())
