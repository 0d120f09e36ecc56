"""One exception type a user can meet, and the exit code of each kind.

Every message is one sentence: what is wrong, where, and what to do about it.
The codes are part of the interface; ``docs/EXIT_CODES.md`` lists them.
"""

from __future__ import annotations

import re
from enum import IntEnum


class Exit(IntEnum):
    """Process exit codes of the command line."""

    OK = 0
    FAILED = 1
    """A check ran and did not pass: validation found a difference."""
    USAGE = 2
    """Options that do not fit together, or a value out of range."""
    INPUT = 3
    """A file is missing, damaged, truncated or of an unknown kind."""
    UNSUPPORTED = 4
    """A well-formed model that this tool or this device cannot run."""
    TOO_SMALL = 5
    """The plan does not fit the board."""
    TOOL = 6
    """A compiler, emulator or flash program is missing or failed."""
    LINK = 7
    """The port is missing, silent, or something else answers on it."""
    MISMATCH = 8
    """The device runs another model or plan than the host expects."""
    FAULT = 70
    """A fault of the tool itself, that its makers want to hear of."""


class SparseflashError(Exception):
    """Base of every error shown to a user: one sentence and an exit code.

    A word of hundreds of characters, which only a damaged file brings, is cut.
    """

    code: Exit = Exit.FAILED

    def __init__(self, message: str = "") -> None:
        super().__init__(re.sub(r"\S{600,}", lambda word: word[0][:80] + "…", message))


class UsageError(SparseflashError):
    code = Exit.USAGE


class InputError(SparseflashError):
    code = Exit.INPUT


class UnsupportedError(SparseflashError):
    code = Exit.UNSUPPORTED


class TooSmallError(SparseflashError):
    code = Exit.TOO_SMALL


class ToolError(SparseflashError):
    code = Exit.TOOL


class LinkError(SparseflashError):
    code = Exit.LINK


class MismatchError(SparseflashError):
    code = Exit.MISMATCH
