"""A conversation with a device that keeps the history in its KV cache between turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflash.base.errors import LinkError, UsageError
from sparseflash.device.link.client import Device
from sparseflash.device.link.protocol import DeviceError
from sparseflash.device.state import load, save
from sparseflash.model.spec import Words

APART = 0.005
"""Seconds between tokens that did not come in one reply."""


@dataclass
class Turn:
    """What an answer took, and why it ended."""

    prompt_tokens: int = 0
    """Of the prompt that the device ran for this turn."""
    tokens: int = 0
    first_seconds: float = 0.0
    """From the question to the first token."""
    later: int = 0
    """Tokens behind those that came with the first: a fast device sends several at once."""
    seconds: float = 0.0
    """In which the later ones came."""
    ended: str = ""
    """Why, in words; empty when the model ended it."""
    position: int = 0
    """Positions of the KV cache that are taken."""
    together: float = 0.0
    """When the last of the first tokens came."""

    @property
    def tokens_per_second(self) -> float | None:
        """Of the later tokens; None when there are none."""
        return self.later / self.seconds if self.later and self.seconds > 0 else None

    def came(self, seconds: float) -> None:
        """A token, so many seconds after the question."""
        self.tokens += 1
        if self.tokens == 1:
            self.first_seconds = self.together = seconds
        elif self.later or seconds - self.together > APART:
            self.later += 1
            self.seconds = seconds - self.together
        else:
            self.together = seconds

    def __str__(self) -> str:
        rate = self.tokens_per_second
        said = f"{self.tokens} tokens, first after {self.first_seconds:.2f} s"
        return said + (f", {rate:.1f} tokens/s" if rate else "")


class ContextFullError(UsageError):
    """The conversation fills the KV cache."""


class Chat:
    """Turns of one conversation; the device runs only what each turn adds."""

    def __init__(
        self,
        device: Device,
        tokenizer: Words,
        eos_ids: Sequence[int],
        raw: bool = False,
        warn: Callable[[str], None] | None = None,
        system: str = "",
        slide: bool = True,
        tell: Callable[[str], None] = lambda _: None,
        state: Path | None = None,
    ) -> None:
        """raw: messages go without the model's template, each by itself.

        warn: is told when the template leaves a message out. system: what the model is told
        before the conversation. slide: forget the oldest turns when the KV cache is full, else
        raise. tell: is told when they are forgotten. state: file of the KV cache of a first prompt:
        what a prompt begins with in common is not run again; written where it is absent.
        """
        self._options: dict[str, Any] = {"raw": True} if raw else {}
        if warn is not None:
            self._options["warn"] = warn
        self._device = device
        self._tokenizer = tokenizer
        self._eos = set(eos_ids)
        self._system = [{"role": "system", "content": system}] if system else []
        self._slide, self._tell = slide, tell
        self._history: list[dict[str, str]] = []
        self._ran: list[int] = []
        self._state = state if state is not None and not state.exists() else None
        if state is not None and self._state is None:
            self._ran = load(device, state)
        self.last = Turn()
        """The last answer's figures."""
        self.total = Turn()
        """Tokens and seconds of all answers."""

    @property
    def history(self) -> list[dict[str, str]]:
        """The messages so far: ``role`` and ``content``."""
        return [*self._system, *self._history]

    def figures(self) -> dict[str, Any]:
        """The last answer and what it took, as plain data."""
        turn = self.last
        return {
            "answer": self._history[-1]["content"] if self._history else "",
            "prompt_tokens": turn.prompt_tokens,
            "tokens": turn.tokens,
            "first_seconds": turn.first_seconds,
            "tokens_per_second": turn.tokens_per_second,
            "ended": turn.ended,
        }

    def reset(self) -> None:
        """Begins a new conversation."""
        self._history.clear()

    def reconnected(self, device: Device) -> None:
        """Goes on with a device that has lost its cache; the next turn runs all again."""
        self._device, self._ran = device, []

    def ask(
        self, text: str, most: int, temperature: float = 0.0, top_p: float = 0.9, seed: int = 1
    ) -> Iterator[bytes]:
        """Yields the answer's bytes as they come, without the end token.

        A caller that stops early keeps what came as the answer. When the device fails, the turn
        is as if it had not been asked.

        Raises:
            UsageError: the message alone does not fit.
            ContextFullError: the conversation does not, and may not slide.
        """
        asked = time.monotonic()
        self._history.append({"role": "user", "content": text})
        ids = self._prompt()
        kept = self._kept(ids)
        if kept < self._device.position:
            self._device.rewind(kept)
        self._ran = ids
        self.last = turn = Turn(prompt_tokens=len(ids) - kept, ended="stopped")
        answer, last = b"", None
        try:
            stream = self._device.generate(ids[kept:], most, temperature, top_p, seed)
            for token, piece in stream:
                if last is not None:
                    self._ran = [*self._ran, last]  # a token is run when the next one is wanted
                last = token
                turn.came(time.monotonic() - asked)
                if token not in self._eos:
                    answer += piece
                    yield piece
            turn.ended = self._why(last, turn.tokens, most)
            if self._state is not None:
                save(self._device, ids, self._state)
                self._state = None
        except (LinkError, DeviceError):
            self._history.pop()
            self._ran = []
            raise
        except GeneratorExit:
            self._answered(answer)
            raise
        self._answered(answer)

    def _answered(self, answer: bytes) -> None:
        turn = self.last
        turn.position = len(self._ran)
        self.total.tokens += turn.tokens
        self.total.prompt_tokens += turn.prompt_tokens
        self._history.append({"role": "assistant", "content": answer.decode("utf-8", "replace")})

    def _why(self, last: int | None, count: int, most: int) -> str:
        if last in self._eos:
            return ""
        if count >= most:
            return f"stopped after {most} tokens, as --most says"
        return f"stopped: the KV cache of {self._device.info().kv_len} positions is full"

    def _prompt(self) -> list[int]:
        room, forgotten = self._device.info().kv_len, 0
        while True:
            ids = self._tokenizer.chat(self.history, **self._options)
            if len(ids) < room:
                if forgotten:
                    self._tell(
                        f"the KV cache of {room} positions is full: the oldest "
                        f"{'turn is' if forgotten == 1 else f'{forgotten} turns are'} forgotten"
                    )
                return ids
            if len(self._history) == 1:
                self._history.clear()
                raise UsageError(
                    f"the message takes {len(ids)} tokens and the device holds {room}; "
                    "write a shorter one"
                )
            if not self._slide:
                self._history.pop()
                raise ContextFullError(
                    f"the conversation takes {len(ids)} tokens and the device holds {room}; "
                    "/reset begins a new one, and --full slide forgets the oldest turns instead"
                )
            del self._history[:2]
            forgotten += 1

    def _kept(self, ids: list[int]) -> int:
        """Tokens at the start of ``ids`` that the device has run; at least one is left to run."""
        most = min(len(self._ran), self._device.position, len(ids) - 1)
        return next((i for i in range(most) if ids[i] != self._ran[i]), max(most, 0))
