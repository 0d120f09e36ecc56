"""The command line: thin verbs, one file a group of them, imported when they are asked for."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from sparseflash import __version__
from sparseflash.base.errors import Exit, SparseflashError
from sparseflash.cli import console

VERBS = {
    "demo": "demo",
    "fetch": "model",
    "calibrate": "model",
    "generate": "build",
    "build": "build",
    "flash": "build",
    "size": "build",
    "stack": "build",
    "validate": "device",
    "bench": "device",
    "chat": "device",
    "flash-curve": "device",
    "perplexity": "measure",
    "sparsity": "measure",
    "prices": "measure",
    "train-predictor": "measure",
    "distill": "distill",
    "boards": "device",
    "models": "model",
    "export-gguf": "model",
}
"""Files of the verbs, in the order of the help."""


class Verbs(TyperGroup):
    """Finds a verb in its file."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        if cmd_name not in self.commands:
            verbs = import_module(f"sparseflash.cli.{VERBS[cmd_name]}").app
            self.commands.update(typer.main.get_group(verbs).commands)
        return self.commands[cmd_name]


app = typer.Typer(
    cls=Verbs, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True
)


def _version(asked: bool) -> None:
    if asked:
        console.say(f"sparseflash {__version__}")
        raise typer.Exit


@app.callback()
def sparseflash(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="and stop")
    ] = False,
) -> None:
    """Language models on microcontrollers, reading only the weights each token needs."""


def _stop(sentence: str, code: int) -> NoReturn:
    console.fail(sentence)
    sys.exit(code)


def main() -> None:
    """Entry point: errors become one sentence and their exit code (docs/EXIT_CODES.md)."""
    try:
        code = app(standalone_mode=False)
    except SparseflashError as e:
        _stop(str(e), int(e.code))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except typer.Exit as e:
        sys.exit(e.exit_code)
    except BrokenPipeError:
        console.drop_output()
        sys.exit(int(Exit.FAILED))
    except OSError as e:
        where = e.filename or "a file"
        _stop(
            f"{where}: {e.strerror or e}; check the path, its permissions and the disk", Exit.INPUT
        )
    except Exception as e:
        if hasattr(e, "format_message"):  # wrong options
            _stop(e.format_message(), Exit.USAGE)
        raise
    # Typer returns the code where a run was interrupted or asked for help.
    sys.exit(code if isinstance(code, int) else 0)
