"""A conversation with a device that keeps the history in its KV cache between turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sparseflash.base.errors import UsageError
from sparseflash.device.link.client import Device
from sparseflash.model.spec import Words


class Chat:
    """Turns of one conversation; the device runs only what each turn adds."""

    def __init__(
        self,
        device: Device,
        tokenizer: Words,
        eos_ids: Sequence[int],
        raw: bool = False,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """raw: messages go without the model's template, each by itself.

        warn: is told when the template leaves a message out.
        """
        self._options: dict[str, Any] = {"raw": True} if raw else {}
        if warn is not None:
            self._options["warn"] = warn
        self._device = device
        self._tokenizer = tokenizer
        self._eos = set(eos_ids)
        self._history: list[dict[str, str]] = []
        self._ran: list[int] = []

    def ask(
        self, text: str, most: int, temperature: float = 0.0, top_p: float = 0.9, seed: int = 1
    ) -> Iterator[bytes]:
        """Yields the answer's bytes as they come, without the end token.

        The oldest turns are forgotten when the conversation no longer fits the KV cache.

        Raises:
            UsageError: the message alone does not fit.
        """
        self._history.append({"role": "user", "content": text})
        ids = self._prompt()
        kept = self._kept(ids)
        if not kept:
            self._device.reset()
        self._ran = ids
        answer, last = b"", None
        stream = self._device.generate(ids[kept:], most, temperature, top_p, seed)
        for token, piece in stream:
            if last is not None:
                self._ran = [*self._ran, last]  # a token is run when the next one is wanted
            last = token
            if token not in self._eos:
                answer += piece
                yield piece
        self._history.append({"role": "assistant", "content": answer.decode("utf-8", "replace")})

    def _prompt(self) -> list[int]:
        room = self._device.info().kv_len
        while True:
            ids = self._tokenizer.chat(self._history, **self._options)
            if len(ids) < room:
                return ids
            if len(self._history) == 1:
                self._history.clear()
                raise UsageError(
                    f"the message takes {len(ids)} tokens and the device holds {room}; "
                    "write a shorter one"
                )
            del self._history[:2]

    def _kept(self, ids: list[int]) -> int:
        """Tokens at the start of ``ids`` that the device has run: all of its cache, or none."""
        n = len(self._ran)
        same = n < len(ids) and ids[:n] == self._ran and self._device.position == n
        return n if same else 0
