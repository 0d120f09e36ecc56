"""A device under the commands of MLPerf Tiny's runner, for a language model.

The runner of MLPerf Tiny speaks to a device by lines that end with ``%`` and reads answers that
begin with ``m-`` (results) or ``e-`` (errors); ``m-ready`` says that the next command may come. The
commands are its own: ``name``, ``profile``, ``timestamp``, ``db load``, ``db``, ``infer``,
``results`` and ``help``. An input is a prompt, its token ids as 32-bit numbers, little-endian and
hexadecimal. Where MLPerf Tiny has one figure for an inference, a language model has two: prefill
and decode.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from sparseflash.base.errors import SparseflashError, UsageError
from sparseflash.device.bench import TIMES, bench
from sparseflash.device.link.client import Device

PROFILE = "sparseflash-language-1"
MOST_BYTES = 1 << 20
"""Of a prompt."""
HELP = (
    "name", "profile", "timestamp", "db load BYTES", "db HEX", "infer ITERATIONS [WARMUPS]",
    "results", "help",
)  # fmt: skip


class Profile:
    """Answers commands; keeps the prompt and the figures of the last ``infer``."""

    def __init__(self, device: Device, tokens: int, time_model: str) -> None:
        """tokens: decoded in an iteration. time_model: a key of ``bench.TIMES``."""
        self._device = device
        self._tokens = tokens
        self._time = time_model
        self._wanted = 0
        self._data = b""
        self._results: dict[str, Any] = {}

    def answers(self, command: str) -> Iterator[str]:
        """Lines of the answer, the last one ``m-ready``; ``command`` is without its ``%``."""
        word, *rest = command.split() or [""]
        try:
            handler = getattr(self, f"_do_{word}", None)
            if handler is None:
                raise UsageError(f"no command {word!r}; there are {', '.join(HELP)}")
            yield from handler(*rest)
        except (SparseflashError, ValueError, TypeError) as e:
            yield f"e-[{' '.join(str(e).split())}]"
        yield "m-ready"

    def _do_help(self) -> Iterator[str]:
        for line in HELP:
            yield f"m-help-[{line}%]"

    def _do_name(self) -> Iterator[str]:
        yield f"m-name-dut-[{self._device.info().board}]"

    def _do_profile(self) -> Iterator[str]:
        yield f"m-profile-[{PROFILE}]"
        yield f"m-model-[{self._device.info().model}]"
        yield f"m-time-[{TIMES[self._time]}]"

    def _do_timestamp(self) -> Iterator[str]:
        yield f"m-lap-us-{time.monotonic_ns() // 1000}"

    def _do_db(self, word: str, *rest: str) -> Iterator[str]:
        if word == "load":
            (count,) = rest
            wanted = int(count)
            if not 0 < wanted <= MOST_BYTES or wanted % 4:
                raise UsageError(f"db load {wanted}: give a multiple of 4 up to {MOST_BYTES}")
            self._wanted, self._data = wanted, b""
            yield f"m-[expecting {wanted} bytes]"
            return
        more = bytes.fromhex(word)
        if len(self._data) + len(more) > self._wanted:
            raise UsageError(f"db: more than the {self._wanted} bytes of db load")
        self._data += more
        if len(self._data) == self._wanted:
            yield "m-load-done"

    def _prompt(self) -> list[int]:
        if not self._data or len(self._data) != self._wanted:
            raise UsageError("no prompt is loaded; give db load and db first")
        ids = [int.from_bytes(self._data[i : i + 4], "little") for i in range(0, self._wanted, 4)]
        vocab = self._device.info().vocab
        if max(ids) >= vocab:
            raise UsageError(f"token {max(ids)} is outside the vocabulary of {vocab}")
        return ids

    def _do_infer(self, iterations: str, warmups: str = "0") -> Iterator[str]:
        count, warm, prompt = int(iterations), int(warmups), self._prompt()
        if count < 1 or warm < 0:
            raise UsageError("infer wants one iteration or more, and no negative warm-ups")
        if warm:
            yield f"m-warmup-start-{warm}"
            bench(self._device, prompt, self._tokens, warm, self._time)
            yield "m-warmup-done"
        yield f"m-infer-start-{count}"
        yield f"m-lap-us-{time.monotonic_ns() // 1000}"
        self._results = bench(self._device, prompt, self._tokens, count, self._time)
        yield f"m-lap-us-{time.monotonic_ns() // 1000}"
        yield "m-infer-done"
        yield from self._do_results()

    def _do_results(self) -> Iterator[str]:
        r = self._results
        if not r:
            raise UsageError("nothing was measured yet; give infer first")
        for kind, tokens in (("prefill", r["prefill_tokens"]), ("decode", r["tokens"])):
            yield f"m-{kind}-tokens-{tokens}"
            if r[f"{kind}_ns"]:  # of the device's own clock, the median of the iterations
                yield f"m-{kind}-us-{statistics.median(r[f'{kind}_ns']) / 1000:.0f}"
        for name in ("cycles", "instructions"):
            if r[f"{name}_per_token"]:
                yield f"m-{name}-per-token-{r[f'{name}_per_token']:.0f}"
        yield f"m-bytes-per-token-{r['bytes_per_token']:.0f}"
        yield f"m-flash-bytes-per-token-{r['flash_bytes_per_token']:.0f}"
        yield "m-energy-uj-[]"  # a meter between runner and board fills it
        yield f"m-results-[{r['digest']}]"
