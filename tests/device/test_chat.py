"""The conversation: what the device is given in each turn, against a device of one list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from sparseflash.base.errors import UsageError
from sparseflash.device.chat import Chat, ContextFullError, Turn
from sparseflash.device.link.protocol import DeviceError

USER, ANSWER, END = 1, 2, 3


class Words:
    """One token a character; a turn is its mark, its text and an end."""

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        ids: list[int] = []
        for m in messages:
            mark = USER if m["role"] == "user" else ANSWER
            ids += [mark, *m["content"].encode(), END]
        return [*ids, ANSWER]


class Parrot:
    """Says the last user's text in capitals, then the end token."""

    def __init__(self, kv_len: int = 200) -> None:
        self.cache: list[int] = []
        self.given: list[int] = []
        self._kv_len = kv_len

    @property
    def position(self) -> int:
        return len(self.cache)

    def info(self) -> Any:
        return SimpleNamespace(kv_len=self._kv_len)

    def reset(self) -> None:
        self.cache.clear()

    def rewind(self, position: int) -> None:
        del self.cache[position:]

    def generate(self, prompt: Sequence[int], most: int, *_: float) -> Iterator[tuple[int, bytes]]:
        self.given = list(prompt)
        self.cache += prompt
        assert len(self.cache) <= self._kv_len
        start = len(self.cache) - self.cache[::-1].index(USER)
        said = bytes(self.cache[start:-2]).upper()
        out = [(b, bytes([b])) for b in said] + [(END, b"<end>")]
        for i, pair in enumerate(out[:most]):
            if i:
                self.cache.append(out[i - 1][0])
            yield pair


def ask(talk: Chat, text: str, most: int = 50) -> bytes:
    return b"".join(talk.ask(text, most))


def conversation(kv_len: int = 200) -> tuple[Chat, Parrot]:
    device = Parrot(kv_len)
    return Chat(device, Words(), [END]), device  # type: ignore[arg-type]


def test_end_token_is_not_shown() -> None:
    talk, _ = conversation()
    assert ask(talk, "hello") == b"HELLO"


def test_a_turn_adds_to_the_cache() -> None:
    talk, device = conversation()
    ask(talk, "hello")
    assert ask(talk, "you") == b"YOU"
    assert bytes(device.given) == b"\3\1you\3\2"
    assert bytes(device.cache) == b"\1hello\3\2HELLO\3\1you\3\2YOU"


def test_an_answer_that_was_cut_goes_on() -> None:
    talk, device = conversation()
    assert ask(talk, "hello", 3) == b"HEL"
    assert ask(talk, "you") == b"YOU"
    assert bytes(device.given) == b"L\3\1you\3\2"


def test_a_device_at_another_place_starts_again() -> None:
    talk, device = conversation()
    ask(talk, "hello")
    device.reset()
    ask(talk, "you")
    assert bytes(device.given) == b"\1hello\3\2HELLO\3\1you\3\2"


def test_abandoned_answer() -> None:
    talk, device = conversation()
    next(talk.ask("hello", 50))
    assert ask(talk, "you") == b"YOU"
    assert bytes(device.cache).endswith(b"\1you\3\2YOU")


def test_oldest_turns_are_forgotten() -> None:
    talk, device = conversation(kv_len=60)
    for i in range(12):
        assert ask(talk, f"turn {i}") == f"TURN {i}".encode()
    assert b"turn 0" not in bytes(device.cache) and b"turn 10" in bytes(device.cache)


def test_message_that_does_not_fit() -> None:
    talk, _ = conversation(kv_len=60)
    with pytest.raises(UsageError, match="write a shorter one"):
        ask(talk, "x" * 80)
    assert ask(talk, "short") == b"SHORT"


def test_raw_and_warnings_reach_the_tokenizer() -> None:
    class Asked(Words):
        def chat(self, messages: list[dict[str, str]], **options: Any) -> list[int]:  # type: ignore[override]
            asked.append(options)
            return super().chat(messages)

    asked: list[dict[str, Any]] = []
    said: list[str] = []
    for options in ({}, {"raw": True}, {"warn": said.append}):
        talk = Chat(Parrot(), Asked(), [END], **options)  # type: ignore[arg-type]
        ask(talk, "hello")
    assert asked == [{}, {"raw": True}, {"warn": said.append}]


def test_why_an_answer_ends() -> None:
    talk, _ = conversation()
    ask(talk, "hello")
    assert talk.last.ended == "" and talk.last.tokens == 6
    ask(talk, "hello", 3)
    assert talk.last.ended == "stopped after 3 tokens, as --most says"
    assert "3 tokens, first after" in str(talk.last)

    class Short(Parrot):
        """Its cache ends before the answer does."""

        def generate(self, *a: Any) -> Iterator[tuple[int, bytes]]:
            yield from list(super().generate(*a))[:2]

    talk = Chat(Short(60), Words(), [END])  # type: ignore[arg-type]
    ask(talk, "hello")
    assert talk.last.ended == "stopped: the KV cache of 60 positions is full"


def test_a_stopped_answer_stays_in_the_conversation() -> None:
    talk, _ = conversation()
    pieces = talk.ask("hello", 50)
    assert next(pieces) + next(pieces) == b"HE"
    pieces.close()  # type: ignore[attr-defined]
    assert talk.last.ended == "stopped"
    assert talk.history[-1] == {"role": "assistant", "content": "HE"}
    assert ask(talk, "you") == b"YOU"


def test_system_prompt_survives_what_is_forgotten() -> None:
    said: list[str] = []
    device = Parrot(60)
    talk = Chat(device, Words(), [END], system="brief", tell=said.append)  # type: ignore[arg-type]
    for i in range(8):
        ask(talk, f"turn {i}")
    assert talk.history[0] == {"role": "system", "content": "brief"}
    assert b"brief" in bytes(device.cache) and b"turn 0" not in bytes(device.cache)
    assert said and "the KV cache of 60 positions is full: the oldest turn is forgotten" in said[0]


def test_a_full_context_may_stop() -> None:
    talk = Chat(Parrot(60), Words(), [END], slide=False)  # type: ignore[arg-type]
    with pytest.raises(ContextFullError, match="/reset begins a new one"):
        for i in range(12):
            ask(talk, f"turn {i}")
    talk.reset()
    assert ask(talk, "again") == b"AGAIN" and len(talk.history) == 2


def test_a_restarted_device_gets_the_whole_conversation() -> None:
    talk, device = conversation()
    ask(talk, "hello")

    def broken(*_: object) -> Iterator[tuple[int, bytes]]:
        raise DeviceError("it restarted", -102)
        yield

    device.generate = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(DeviceError):
        ask(talk, "you")
    assert [m["content"] for m in talk.history] == ["hello", "HELLO"], "as if it was not asked"
    other = Parrot()
    talk.reconnected(other)  # type: ignore[arg-type]
    assert ask(talk, "you") == b"YOU"
    assert bytes(other.given) == b"\1hello\3\2HELLO\3\1you\3\2"


def test_rate_of_tokens_that_come_several_at_once() -> None:
    """Three in the first reply at 0.5 s, then two every 0.1 s: 20 a second."""
    turn = Turn()
    for at in (0.5, 0.5001, 0.5002, 0.6, 0.6001, 0.7, 0.7001):
        turn.came(at)
    assert turn.first_seconds == 0.5 and turn.tokens == 7 and turn.later == 4
    assert turn.tokens_per_second == pytest.approx(20, rel=0.01)
    fast = Turn()
    for at in (0.5, 0.5001):
        fast.came(at)
    assert fast.tokens_per_second is None
