"""The host's end: one request at a time, retried with the same sequence number."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import serial

from sparseflash.errors import LinkError, MismatchError, SparseflashError
from sparseflash.link import protocol
from sparseflash.link.protocol import Command
from sparseflash.reference import SITES

COUNTERS = (
    "tokens",
    "bytes",
    "bytes_ffn",
    "reads",
    "neurons",
    "time_attn",
    "time_ffn",
    "time_head",
    "time_total",
)


@dataclass(frozen=True)
class Info:
    """What the device says of itself."""

    protocol: int
    model_sha: bytes
    plan_digest: bytes
    vocab: int
    dim: int
    ffn_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    kv_len: int
    arena_bytes: int
    ticks_per_second: int
    board: str
    model: str


class Device:
    """A device on a serial port or any pyserial URL.

    Raises:
        LinkError: the port is missing, silent, or something else answers on it.
        MismatchError: the device runs another model or plan.
    """

    TRIES = 4

    def __init__(
        self,
        url: str,
        model_sha: bytes | None = None,
        plan_digest: bytes | None = None,
        timeout: float = 60.0,
        first_timeout: float = 3.0,
        port: Any = None,
    ) -> None:
        self.url = url
        self.timeout = timeout
        self._seq = random.randrange(256)
        self._buffer = bytearray()
        try:
            self._port = port or serial.serial_for_url(url, baudrate=115200, timeout=0.05)
        except (serial.SerialException, OSError, ValueError) as e:
            raise LinkError(f"{url}: the port cannot be opened ({e}); check --port") from e
        self._write(b"\0")
        try:
            self.info = self._hello(first_timeout)
        except BaseException:
            self.close()
            raise
        if model_sha is not None and self.info.model_sha != model_sha:
            self.close()
            raise MismatchError(
                f"{url}: the device runs model {self.info.model_sha.hex()[:12]} and the host has "
                f"{model_sha.hex()[:12]}; flash the board again"
            )
        if plan_digest is not None and self.info.plan_digest != plan_digest:
            self.close()
            raise MismatchError(f"{url}: the device was built from another plan; flash it again")

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._port.close()

    def _hello(self, timeout: float) -> Info:
        data = self._request(Command.HELLO, random.randbytes(4), timeout)
        fixed = struct.calcsize("<I32s32s10I")
        try:
            values = struct.unpack("<I32s32s10I", data[:fixed])
            names, at = [], fixed
            for _ in range(2):
                n = data[at]
                names.append(data[at + 1 : at + 1 + n].decode())
                at += 1 + n
        except (struct.error, IndexError, UnicodeDecodeError):
            raise LinkError(f"{self.url}: what answers is not Sparseflash firmware") from None
        if values[0] != protocol.VERSION:
            raise MismatchError(
                f"{self.url}: the device speaks protocol {values[0]} and this tool "
                f"{protocol.VERSION}; flash the board again"
            )
        return Info(*values, *names)

    def _write(self, data: bytes) -> None:
        try:
            self._port.write(data)
        except (serial.SerialException, OSError) as e:
            raise LinkError(f"{self.url}: the line is gone ({e}); is the device running?") from e

    def _frames(self, deadline: float) -> Iterator[bytes]:
        """Whole frames until the deadline."""
        while time.monotonic() < deadline:
            try:
                got = self._port.read(max(1, min(4096, self._port.in_waiting)))
            except (serial.SerialException, OSError) as e:
                raise LinkError(
                    f"{self.url}: the line is gone ({e}); is the device running?"
                ) from e
            self._buffer += got
            while (end := self._buffer.find(0)) >= 0:
                frame = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                if frame:
                    yield frame
            if len(self._buffer) > 1 << 16:
                self._buffer.clear()

    def _request(self, kind: Command, payload: bytes = b"", timeout: float | None = None) -> bytes:
        self._seq = (self._seq + 1) % 256
        wire = protocol.encode(self._seq, kind, payload)
        deadline_all = timeout or self.timeout
        heard = 0
        for attempt in range(self.TRIES):
            self._write((b"\0" if attempt else b"") + wire)
            # The first wait is the patient one: a slow board must not be asked twice.
            wait = deadline_all if attempt == 0 else min(deadline_all, 2.0)
            for frame in self._frames(time.monotonic() + wait):
                heard += 1
                answer = protocol.decode(frame)
                if answer is None or answer[1] == protocol.NAK:
                    break  # a damaged frame in either direction: ask again
                seq, status, data = answer
                if seq != self._seq:
                    continue  # a late reply to an earlier try
                if status == protocol.OK:
                    return data
                if status == protocol.ERROR and len(data) == 4:
                    code = struct.unpack("<i", data)[0]
                    text = protocol.DEVICE_ERRORS.get(code, f"error {code}")
                    raise SparseflashError(f"{self.url}: {kind.name} was refused: {text}")
                break
        what = "only damaged frames came back" if heard else "nothing answered"
        raise LinkError(
            f"{self.url}: no Sparseflash firmware answers {kind.name} ({what}); "
            "check the port and flash the board"
        )

    def reset(self) -> None:
        """Forgets the KV cache."""
        self._request(Command.RESET)

    def prefill(self, tokens: Sequence[int], logits: bool = False) -> int:
        """Runs tokens; returns the next position."""
        position = 0
        for i in range(0, len(tokens), 32):
            part = tokens[i : i + 32]
            last = logits and i + 32 >= len(tokens)
            data = struct.pack(f"<B{len(part)}I", last, *part)
            position = struct.unpack("<I", self._request(Command.PREFILL, data))[0]
        return int(position)

    def step(self, token: int) -> int:
        """Runs one token; returns the greedy next one."""
        return int(struct.unpack("<II", self._request(Command.STEP, struct.pack("<I", token)))[0])

    def _floats(self, kind: Command, n: int) -> np.ndarray:
        parts = []
        for at in range(0, n, 256):
            parts.append(self._request(kind, struct.pack("<II", at, min(256, n - at))))
        return np.frombuffer(b"".join(parts), "<f4")

    def logits(self) -> np.ndarray:
        """float32 (vocab,) of the last step."""
        return self._floats(Command.LOGITS, self.info.vocab)

    def trace(self, on: bool) -> None:
        self._request(Command.TRACE, bytes([on]))

    def hashes(self) -> np.ndarray:
        """uint32 (layers, sites) of the last step."""
        n, parts = self.info.n_layers, []
        for first in range(0, n, 32):
            parts.append(
                self._request(Command.HASHES, struct.pack("<II", first, min(32, n - first)))
            )
        return np.frombuffer(b"".join(parts), "<u4").reshape(n, len(SITES))

    def tap(self, layer: int, site: int) -> None:
        """The next steps keep the values of one site."""
        self._request(Command.TAP, struct.pack("<II", layer, site))

    def tapped(self) -> np.ndarray:
        n = struct.unpack("<I", self._request(Command.TAPPED))[0]
        return self._floats(Command.TAPPED, n)

    def counters(self, clear: bool = False) -> dict[str, int]:
        data = self._request(Command.COUNTERS, bytes([clear]))
        return dict(zip(COUNTERS, struct.unpack(f"<{len(COUNTERS)}Q", data)))

    def set_thresholds(self, thresholds: np.ndarray) -> None:
        """float32 (layers, 5)."""
        for i, row in enumerate(np.asarray(thresholds, "<f4")):
            self._request(Command.THRESHOLDS, struct.pack("<I", i) + row.tobytes())

    def generate(
        self, most: int, temperature: float = 0.0, top_p: float = 1.0, seed: int = 1
    ) -> Iterator[tuple[int, bytes]]:
        """Tokens and their text as the device gives them, after prefill(..., logits=True)."""
        head = struct.pack("<IffQ", most, temperature, top_p, seed)
        self._request(Command.GENERATE, head)
        done = False
        while not done:
            data = self._request(Command.STREAM, struct.pack("<I", 1))
            done, at = data[0] == 1, 1
            while at < len(data):
                token, n = struct.unpack_from("<IB", data, at)
                at += 5
                yield int(token), data[at : at + n]
                at += n

    def quit(self) -> None:
        """Ends the process of the board ``host``; other boards only acknowledge."""
        self._request(Command.QUIT)
