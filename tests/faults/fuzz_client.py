"""atheris on the host's side of the link: values that can be, or one of our errors.

An input is a few commands and a row of records. At each read of the port the next record says what
comes: nothing, the answer of an honest device, that answer changed under a right sum, a frame of
the input's own, or its bytes as they are. Behind the records the line is silent. Time is counted.
"""

from __future__ import annotations

import math
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

import atheris

with atheris.instrument_imports(include=["sparseflash.device.link"]):
    from sparseflash.device.link import client
    from sparseflash.device.link import protocol as p

from sparseflash.base.errors import SparseflashError

VOCAB, LAYERS, KV, TAPPED, NEW = 40, 3, 64, 300, 6
TIMEOUT, RECORDS = 0.5, 60
NOTHING, HONEST, CHANGED, FRAME, RAW, TWICE = range(6)
Type = p.Type


class Honest:
    """A device that keeps to the protocol: the answer to a frame."""

    def __init__(self) -> None:
        self.position = self.left = self.token = 0
        self.last: tuple[p.Frame, int, bytes] | None = None

    def answer(self, f: p.Frame) -> tuple[int, bytes]:
        """Type and payload."""
        if self.last is None or self.last[0] != f:
            self.last = (f, f.type | p.REPLY, self._payload(f))
        return self.last[1:]

    def _payload(self, f: p.Frame) -> bytes:
        if f.type == Type.HELLO:
            nonce = struct.unpack("<HI", f.payload)[1]
            sizes = (VOCAB, 8, 16, LAYERS, 2, 1, 4, KV, 100, 1000, self.position)
            head = (p.VERSION, p.MAX_PAYLOAD, nonce, 0, *sizes, bytes(32), bytes(32))
            return p._HELLO.pack(*head) + b"\4host\4fake"
        number, q = f.payload[: p.CONNECTION], f.payload[p.CONNECTION :]
        return number + self._reply(f.type, q)

    def _reply(self, kind: int, q: bytes) -> bytes:
        if kind == Type.RESET:
            self.position = 0
        if kind == Type.PREFILL:
            self.position += (len(q) - 5) // 4
            return struct.pack("<I", self.position)
        if kind == Type.STEP:
            self.position += 1
            return struct.pack("<II", next_of(struct.unpack("<II", q)[1]), self.position)
        if kind in (Type.READ_LOGITS, Type.READ_TRACE, Type.READ_TAP):
            offset, n = struct.unpack("<IH", q)
            head = struct.pack("<I", TAPPED) if kind == Type.READ_TAP else b""
            return head + struct.pack(f"<{n}f", *range(offset, offset + n))
        if kind == Type.COUNTERS:
            return bytes(8 * len(p.COUNTERS))
        if kind == Type.GENERATE:
            self.left, self.token = struct.unpack("<II", q[:8])[1], 1
        if kind == Type.STREAM:
            n = min(self.left, 4)
            self.left -= n
            # Before the first chunk nothing was run, and the last token is not.
            self.position += n if n and self.token > 1 else max(n - 1, 0)
            tokens = b"".join(struct.pack("<IH2s", next_of(i), 2, b"ab") for i in range(n))
            self.token = 2
            done = p.Done.RUNNING if self.left else p.Done.COUNT
            return struct.pack("<BHI", done, n, self.position) + tokens
        return b""


def next_of(token: int) -> int:
    return (token * 7 + 3) % VOCAB


class Line:
    """The port, and the clock."""

    def __init__(self, records: bytes) -> None:
        self.timeout = 0.0
        self.now = 0.0
        self.honest = True
        self.records = 0
        self._data = records
        self._device = Honest()
        self._asked = p.Frame(0, 0, b"")
        self._waits = b""

    def monotonic(self) -> float:
        return self.now

    def write(self, wire: bytes) -> None:
        frame = p.decode_frame(wire.strip(b"\0"))
        assert frame is not None
        self._asked = frame

    def read(self, n: int) -> bytes:
        if not self._waits and self.timeout:
            self._waits = self._next()
            # A line of 115,200 baud.
            self.now += len(self._waits) / 11_520 if self._waits else self.timeout
        out, self._waits = self._waits[:n], self._waits[n:]
        return out

    def close(self) -> None:
        pass

    def _take(self, n: int) -> bytes:
        out, self._data = self._data[:n], self._data[n:]
        return out

    def _next(self) -> bytes:
        self.records += 1
        if len(self._data) < 2 or self.records > RECORDS:
            return b""
        head, size = self._take(2)
        kind = head % 6
        if kind == NOTHING:
            return b""
        f = self._asked
        type_, payload = self._device.answer(f)
        if kind == HONEST:
            return p.encode_frame(f.seq, type_, payload)
        if kind == TWICE:
            return p.encode_frame(f.seq, type_, payload) * 2
        self.honest = False
        own = self._take(size)
        if kind == RAW:
            return own
        if kind == FRAME:
            number = f.payload[: p.CONNECTION] if head & 64 else b""
            type_ = (f.type | p.REPLY) if head & 128 or not own else own[0]
            return p.encode_frame(f.seq + (size == 1) & 0xFF, type_, number + own[1:])
        out = bytearray(payload)
        for at, value in zip(own[::2], own[1::2], strict=False):
            if out:
                out[at % len(out)] = value
        return p.encode_frame(f.seq, type_, bytes(out[: len(out) - (head >> 6)]))


def read_trace(d: client.Device) -> None:
    assert d.read_trace().shape == (d.info().n_layers, p.SITES)


def logits(d: client.Device) -> None:
    values = d.logits()
    assert values.shape == (d.info().vocab,) and all(map(math.isfinite, values))


def step(d: client.Device) -> None:
    token = d.step(2)
    assert 0 <= token < d.info().vocab and (token == next_of(2) or not d._port.honest)


def generate(d: client.Device) -> None:
    tokens = []
    for token, _ in d.generate([1, 2], NEW):
        tokens.append(token)
        assert 0 <= token < d.info().vocab and len(tokens) <= NEW
    assert tokens == [next_of(i) for i in (0, 1, 2, 3, 0, 1)] or not d._port.honest


COMMANDS: list[Callable[[client.Device], Any]] = [
    *(step, logits, generate, read_trace),
    lambda d: d.prefill([1, 2, 3], logits=True),
    lambda d: d.read_tap(),
    lambda d: d.counters(),
    lambda d: d.tap(0, 1),
    lambda d: d.set_thresholds(0, [0.0] * p.THRESHOLDS),
    lambda d: d.reset(),
]


def one_input(data: bytes) -> None:
    if len(data) < 4:
        return
    line = Line(data[4:])
    client.time = line  # type: ignore[assignment]
    os.urandom = lambda n: b"\x5a" * n
    try:
        with client.Device.connect(line, "fuzz", "00" * 32, "00" * 32, TIMEOUT) as d:
            for which in data[:4]:
                # What the device made of itself decides how much there is to ask for.
                if d.info().vocab <= 5000 and d.info().n_layers <= 500:
                    COMMANDS[which % len(COMMANDS)](d)
    except SparseflashError as e:
        assert str(e).isprintable() and len(str(e)) < 1000, repr(str(e))
    # Each answer may put the end off; silence may not.
    assert line.now < 60 + TIMEOUT * 20 * (line.records + 20), line.now


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
