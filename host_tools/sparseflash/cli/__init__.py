"""The command line: thin verbs, one file a group of them (``app``)."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from sparseflash import __version__
from sparseflash.base.errors import Exit, SparseflashError
from sparseflash.cli import console


def _stop(sentence: str, code: int) -> NoReturn:
    if console.asked.verbose:
        import traceback

        traceback.print_exc()
    console.fail(sentence)
    sys.exit(code)


def _wrong_options(e: Any) -> NoReturn:
    """Of the library that reads the options: no verb at all gets the help, the rest a sentence."""
    said = e.format_message()
    if type(e).__name__ == "NoArgsIsHelpError":
        print(said, file=sys.stderr)
        sys.exit(int(Exit.USAGE))
    words = e.ctx.command_path if getattr(e, "ctx", None) else "sparseflash"
    _stop(f"{said.rstrip('.')}; {words} --help says what there is", Exit.USAGE)


def main() -> None:
    """Entry point: errors become one sentence and their exit code (docs/EXIT_CODES.md)."""
    try:
        _main()
    except KeyboardInterrupt:  # also while the library of the options is imported
        sys.exit(130)


def _main() -> None:
    if sys.argv[1:] == ["--version"]:  # without the half second that the options take
        print(f"sparseflash {__version__}")
        return
    console.begin()
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # the search for them takes its time
    import typer

    from sparseflash.cli.app import app

    try:
        code = app(standalone_mode=False, prog_name="sparseflash")
        console.flush_results()
    except SparseflashError as e:
        console.flush_results()
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
            _wrong_options(e)
        import traceback

        at = traceback.extract_tb(e.__traceback__)[-1]
        what = " ".join(str(e).split())
        _stop(
            f"a fault of sparseflash {__version__} itself: {type(e).__name__} ({what}) in "
            f"{at.filename.rpartition('/')[2]}:{at.lineno}; please report it with the output of "
            "the same command and --verbose",
            Exit.FAULT,
        )
    # Typer returns the code where a run was interrupted or asked for help.
    sys.exit(code if isinstance(code, int) else 0)
