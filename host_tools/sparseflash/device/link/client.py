"""A device at the other end of a serial line.

Every command is one request and one reply. A request whose reply does not come, or comes
damaged, is sent again with its sequence number, and the device answers a repetition from memory.
So a command runs once, or ends in a :class:`LinkError`; after one the state of the device is
unknown and the port has to be opened again.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import serial

from sparseflash.base.errors import LinkError, MismatchError, UsageError
from sparseflash.device.link import protocol as p
from sparseflash.device.link.protocol import DeviceError, Done, Info, Type

T = TypeVar("T")

RETRIES = 3
REPEATS = 16
"""Damaged replies of a request that are asked for again at once; more wait for silence."""
GREETING = 1.0
"""Seconds of silence after which a greeting is repeated."""
STREAM_CREDIT = 32


def _hex(digest: str | bytes) -> str:
    return digest.hex() if isinstance(digest, bytes) else digest.lower()


def _most_busy(wire: bytes) -> int:
    """How often a device may say that it is busy with a request: once a token."""
    return len(wire) // 4


def _nothing(payload: bytes) -> None:
    if payload:
        raise ValueError("payload where none belongs")


class Device:
    """An open link. Use :meth:`open`; close it, or use it as a context manager."""

    def __init__(self, port: Any, name: str, timeout: float = 2.0) -> None:
        """Takes over ``port``, an object like ``serial.Serial``; :meth:`open` does the rest."""
        self._port = port
        self._name = name
        self._timeout = timeout
        self._splitter = p.Splitter()
        self._frames: list[p.Frame] = []
        self._seq = os.urandom(1)[0]
        self._connection = int.from_bytes(os.urandom(p.CONNECTION), "little")
        self._damaged = False
        self._heard = 0
        self._understood = False
        self._old = False
        self._limit = 0.0
        self._failed: str | None = None
        self._info: Info | None = None
        self._position = 0

    @classmethod
    def open(
        cls,
        url: str,
        expect_model_sha: str | bytes | None = None,
        expect_plan: str | bytes | None = None,
        timeout: float = 2.0,
        baudrate: int = 115200,
    ) -> Device:
        """Opens a pyserial URL, greets the firmware and resets its KV cache.

        ``timeout`` is the silence in seconds after which a request is repeated; it has to be
        longer than one token takes on the device.

        Raises:
            LinkError: no such port, or no Sparseflash firmware answers on it.
            MismatchError: it runs another model or plan than expected.
        """
        try:
            port = serial.serial_for_url(
                url,
                baudrate=baudrate,
                timeout=timeout,
                write_timeout=timeout,
                exclusive=True,
            )
        except (serial.SerialException, OSError, ValueError) as e:
            raise LinkError(f"cannot open port {url}: {e}") from e
        return cls.connect(port, url, expect_model_sha, expect_plan, timeout)

    @classmethod
    def connect(
        cls,
        port: Any,
        name: str,
        expect_model_sha: str | bytes | None = None,
        expect_plan: str | bytes | None = None,
        timeout: float = 2.0,
    ) -> Device:
        """:meth:`open` over a port that is already open."""
        device = cls(port, name, timeout)
        try:
            device._greet(expect_model_sha, expect_plan)
        except BaseException:
            device.close()
            raise
        return device

    def _greet(self, expect_model_sha: str | bytes | None, expect_plan: str | bytes | None) -> None:
        nonce = self._connection

        def parse(payload: bytes) -> Info | int:
            version = p.parse_hello_version(payload)
            if version != p.VERSION:
                return version
            info = p.parse_hello(payload)
            if info.nonce != nonce:
                raise ValueError("an answer to somebody else")
            return info

        try:
            info = self._first_reply(p.hello(nonce), parse)
        except LinkError as e:
            if self._old:
                raise LinkError(self._other_version("an older link version")) from e
            heard = f"{self._heard} bytes of something else came" if self._heard else "it is silent"
            raise LinkError(
                f"no Sparseflash firmware answers on {self._name} ({heard}); "
                "check the port, the cable and that the board was flashed and runs"
            ) from e
        if isinstance(info, int):
            raise LinkError(self._other_version(f"link version {info}"))
        if info.status:
            kind = MismatchError if info.status == p.ERR_MODEL else LinkError
            raise kind(
                f"the device on {self._name} cannot run: {p.describe(info.status)}; flash it again"
            )
        for what, have, expect in (
            ("model", info.model_sha, expect_model_sha),
            ("plan", info.plan_digest, expect_plan),
        ):
            if expect is not None and have != _hex(expect):
                raise MismatchError(
                    f"the device on {self._name} runs {what} {have[:12]} ({info.model}), expected "
                    f"{_hex(expect)[:12]}; flash the matching image"
                )
        self._info = info
        self.reset()

    def _other_version(self, its: str) -> str:
        return (
            f"the firmware on {self._name} speaks {its}, this host {p.VERSION}; "
            "build and flash it again with this version"
        )

    def _first_reply(self, hello: bytes, parse: Callable[[bytes], T]) -> T:
        """Greets in a hurry; once more with patience, as a device may be busy with a token.

        A line that gives bytes and none of our frames is somebody else's, and not waited for.
        """
        patience = self._timeout
        try:
            self._timeout = min(patience, GREETING)
            return self._request(Type.HELLO, hello, parse)
        except LinkError:
            if patience <= GREETING or (self._heard and not self._understood):
                raise
            self._failed = None
            self._timeout = patience / (1 + RETRIES)
            return self._request(Type.HELLO, hello, parse)
        finally:
            self._timeout = patience

    # ---- transport ----

    def _fail(self, why: str) -> LinkError:
        self._failed = why
        return LinkError(why)

    def _receive(self, deadline: float) -> p.Frame | None:
        """The next whole frame; None at the deadline, or when a damaged one came."""
        self._damaged = False
        while not self._frames:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            # Block for one byte, then take what else is there: not every kind of port can say
            # how much waits.
            self._port.timeout = left
            data = self._port.read(1)
            if data:
                self._port.timeout = 0
                data += self._port.read(4096)
            self._heard += len(data)
            for wire in self._splitter.feed(bytes(data)):
                frame = p.decode_frame(wire)
                if frame is None:
                    self._damaged = True
                    self._old |= wire == p.OLD_NAK
                else:
                    self._frames.append(frame)
                    self._understood |= frame.type >= p.REPLY
            if self._damaged and not self._frames and self._understood:
                return None
        return self._frames.pop(0)

    def _attempt(self, seq: int, kind: Type, wire: bytes) -> bytes | None:
        """Sends once; the reply's payload, or None when it has to be sent again."""
        self._port.write(wire)
        deadline = min(time.monotonic() + self._timeout, self._limit)
        busy = _most_busy(wire)
        while (frame := self._receive(deadline)) is not None:
            payload = frame.payload
            if frame.type == Type.NAK:
                self._damaged = True
                return None
            if frame.seq != seq:
                continue
            if frame.type != Type.HELLO | p.REPLY:
                if payload[: p.CONNECTION] != self._number and kind != Type.HELLO:
                    continue
                payload = payload[p.CONNECTION :]
            if frame.type == Type.BUSY:
                busy -= 1
                if busy < 0:
                    raise self._fail(f"the device on {self._name} is busy without end")
                deadline = min(time.monotonic() + self._timeout, self._limit)
            elif frame.type == kind | p.REPLY:
                return payload
            elif frame.type == Type.ERROR:
                self._refused(kind, payload)
        return None

    @property
    def _number(self) -> bytes:
        """Of this connection, as it goes over the line."""
        return struct.pack("<I", self._connection)

    def _refused(self, kind: Type, payload: bytes) -> None:
        try:
            request, code, position = p.parse_error(payload)
        except struct.error:
            return
        if request != kind:
            return
        message = f"the device on {self._name} refused {kind.name}: {p.describe(code)}"
        if code in (p.ERR_SESSION, p.ERR_POSITION, p.ERR_OTHER):
            raise self._fail(message)
        self._position = position
        raise DeviceError(message, code)

    def _request(self, kind: Type, payload: bytes, parse: Callable[[bytes], T]) -> T:
        if self._failed is not None:
            raise LinkError(f"{self._failed}; open the port again")
        self._seq = (self._seq + 1) & 0xFF
        number = b"" if kind == Type.HELLO else self._number
        wire = p.encode_frame(self._seq, kind, number + payload)
        try:
            attempts, repeats = 1 + RETRIES, REPEATS
            seconds = self._timeout * (attempts + _most_busy(wire))
            self._limit = time.monotonic() + seconds
            while attempts > 0 and time.monotonic() < self._limit:
                reply = self._attempt(self._seq, kind, wire)
                if reply is None and self._damaged and repeats > 0:
                    repeats -= 1
                    continue
                attempts -= 1
                if reply is None:
                    continue
                try:
                    return parse(reply)
                except (struct.error, ValueError):
                    continue
        except (serial.SerialException, OSError, TypeError) as e:
            # TypeError: pyserial on a port that was closed meanwhile.
            raise self._fail(f"the line to {self._name} broke: {e}") from e
        except (DeviceError, LinkError):
            raise
        except BaseException:
            # Interrupted between request and reply: whether it ran is unknown.
            self._failed = f"a request to {self._name} was interrupted"
            raise
        raise self._fail(
            f"the device on {self._name} did not answer {kind.name} in {1 + RETRIES} attempts "
            f"of {self._timeout:g} s, or in {seconds:g} s of damaged answers"
        )

    # ---- commands ----

    def info(self) -> Info:
        """What the device said of itself when it was opened."""
        assert self._info is not None
        return self._info

    @property
    def position(self) -> int:
        """Position of the next token."""
        return self._position

    def reset(self) -> None:
        """Forgets the KV cache."""
        self._request(Type.RESET, b"", _nothing)
        self._position = 0

    def prefill(self, tokens: Sequence[int], logits: bool = False) -> None:
        """Runs tokens at the next positions; ``logits`` of the last one when asked."""
        ids = [self._token(t) for t in tokens]
        for at in range(0, len(ids), p.PREFILL_CHUNK):
            chunk = ids[at : at + p.PREFILL_CHUNK]
            last = logits and at + len(chunk) == len(ids)
            payload = p.prefill(self._position, chunk, last)
            position = self._request(Type.PREFILL, payload, p.parse_u32)
            self._moves(position, self._position + len(chunk))

    def step(self, token: int) -> int:
        """Runs one token; the index of the largest logit."""
        payload = p.step(self._position, self._token(token))
        best, position = self._request(Type.STEP, payload, p.parse_step)
        self._moves(position, self._position + 1)
        return self._known(best)

    def logits(self) -> np.ndarray:
        """float32 (vocab,) of the last step that computed them."""
        logits = self._chunks(Type.READ_LOGITS, self.info().vocab, p.parse_f32)
        if not np.isfinite(logits).all():
            raise self._fail(f"the device on {self._name} answers logits that are no numbers")
        return logits

    def trace(self, on: bool) -> None:
        """Turns the hashes of :meth:`read_trace` on or off for the steps that follow."""
        self._request(Type.TRACE, bytes((on,)), _nothing)

    def read_trace(self) -> np.ndarray:
        """uint32 (layers, sites) of the last step."""
        n = self.info().n_layers
        return self._chunks(Type.READ_TRACE, n * p.SITES, p.parse_u32s).reshape(n, p.SITES)

    def tap(self, layer: int, site: int) -> None:
        """Keeps a site's values in the steps that follow."""
        self._check(0 <= layer < self.info().n_layers, f"layer {layer}")
        self._check(0 <= site < p.SITES, f"site {site}")
        self._request(Type.TAP, p.tap(layer, site), _nothing)

    def read_tap(self) -> np.ndarray:
        """float32 values that the last step kept."""

        def part(offset: int, count: int) -> tuple[int, np.ndarray]:
            def parse(payload: bytes) -> tuple[int, np.ndarray]:
                if len(payload) != 4 + 4 * count:
                    raise ValueError("another length than asked for")
                return p.parse_u32(payload[:4]), p.parse_f32(payload[4:])

            return self._request(Type.READ_TAP, p.read(offset, count), parse)

        n, _ = part(0, 0)
        parts = [part(at, min(p.TAP_CHUNK, n - at))[1] for at in range(0, n, p.TAP_CHUNK)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def counters(self, clear: bool = False) -> dict[str, int]:
        """``sf_counters`` since the last clear."""
        return self._request(Type.COUNTERS, bytes((clear,)), p.parse_counters)

    def set_thresholds(self, layer: int, limits: Sequence[float]) -> None:
        """Replaces a layer's thresholds: gate, act, up, h, down, predictor, q, k, v, o, xg, xu."""
        self._check(0 <= layer < self.info().n_layers, f"layer {layer}")
        self._check(
            len(limits) == p.THRESHOLDS, f"{len(limits)} thresholds (there are {p.THRESHOLDS})"
        )
        payload = p.set_thresholds(layer, [float(f) for f in limits])
        self._request(Type.SET_THRESHOLDS, payload, _nothing)

    def generate(
        self,
        prompt_tokens: Sequence[int],
        max_new: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 1,
    ) -> Iterator[tuple[int, bytes]]:
        """Runs the prompt at the next positions, then yields (token, its text) as they come.

        The end-of-sequence token is the last one when it ends the generation. The last token
        is not run: to go on, it belongs in front of the next prompt. Without a prompt the
        generation starts from the logits of the last step.
        """
        self._check(0 <= max_new < 1 << 32, f"max_new {max_new}")
        self._check(0 <= seed < 1 << 64, f"seed {seed}")
        self._check(0 <= temperature <= p.MOST_TEMPERATURE, f"temperature {temperature}")
        self._check(0 <= top_p <= 1, f"top_p {top_p}")
        self.prefill(prompt_tokens, logits=True)
        payload = p.generate(self._position, max_new, temperature, top_p, seed)
        self._request(Type.GENERATE, payload, _nothing)
        done = Done.RUNNING
        start, count = self._position, 0
        while done == Done.RUNNING:
            done, position, tokens = self._request(
                Type.STREAM, p.stream(STREAM_CREDIT), p.parse_stream
            )
            count += len(tokens)
            if count > max_new or len(tokens) > STREAM_CREDIT or (not tokens and not done):
                raise self._fail(
                    f"the device on {self._name} answers {len(tokens)} tokens, {count} in all, of "
                    f"the {max_new} it was asked for"
                )
            # The last token is not run, unless the next waits for room in a reply.
            ahead = position == start + count and done == Done.RUNNING
            self._moves(position, start + (count if ahead else max(count - 1, 0)))
            for token, text in tokens:
                yield self._known(token), text

    def read_state(self, position: int) -> bytes:
        """What the KV cache holds of a position."""
        n, out = self.state_bytes, b""
        while len(out) < n:
            count = min(p.STATE_CHUNK, n - len(out))

            def whole(payload: bytes, count: int = count) -> bytes:
                if len(payload) != count:
                    raise ValueError("another length than asked for")
                return payload

            out += self._request(Type.READ_STATE, p.read_state(position, len(out), count), whole)
        return out

    def write_state(self, token: int, state: bytes) -> None:
        """The next position is that of ``token``, with what :meth:`read_state` gave."""
        for at in range(0, len(state), p.STATE_CHUNK):
            some = state[at : at + p.STATE_CHUNK]
            self._request(Type.WRITE_STATE, p.write_state(self._position, at, some), _nothing)
        self._request(Type.KEEP_STATE, p.step(self._position, self._token(token)), _nothing)
        self._position += 1

    @property
    def state_bytes(self) -> int:
        """Bytes of the KV cache a position: 8-bit k and v and an exponent of each head."""
        i = self.info()
        return 2 * i.n_layers * i.n_kv_heads * (i.head_dim + 1)

    def rewind(self, position: int) -> None:
        """Forgets the positions from this one on."""
        self._check(0 <= position <= self._position, f"position {position}")
        self._request(Type.REWIND, struct.pack("<I", position), _nothing)
        self._position = position

    def noise(self, data: bytes) -> None:
        """Puts bytes on the line that are no request of this connection; for tests of a port."""
        self._port.write(data)

    def last_step(self, token: int) -> bytes:
        """The frame of a step that was just asked for, as it went over the line."""
        payload = self._number + p.step(self._position - 1, token)
        return p.encode_frame(self._seq, Type.STEP, payload)

    def refusal(self, kind: Type, payload: bytes) -> int:
        """The code with which the device refuses a request; 0 when it answers it."""
        try:
            self._request(kind, payload, bytes)
        except DeviceError as e:
            return e.device_code
        return 0

    def quit(self) -> None:
        """Ends a host process; boards go on."""
        self._request(Type.QUIT, b"", _nothing)

    def close(self) -> None:
        """Closes the port; the device keeps its state until it is opened again."""
        self._failed = self._failed or f"the link to {self._name} is closed"
        with contextlib.suppress(serial.SerialException, OSError):
            self._port.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- helpers ----

    def _moves(self, position: int, expected: int) -> None:
        """The device is at ``position``, where it should be."""
        if position != expected:
            raise self._fail(
                f"the device on {self._name} is at position {position}, not {expected}; open the "
                "port again"
            )
        self._position = position

    def _known(self, token: int) -> int:
        if token >= self.info().vocab:
            raise self._fail(f"the device on {self._name} answers token {token}, which is none")
        return token

    @staticmethod
    def _check(ok: bool, what: str) -> None:
        if not ok:
            raise UsageError(f"{what} is out of range")

    def _token(self, token: int) -> int:
        self._check(0 <= int(token) < self.info().vocab, f"token {token}")
        return int(token)

    def _chunks(
        self, kind: Type, n: int, parse_values: Callable[[bytes], np.ndarray]
    ) -> np.ndarray:
        out = []
        for at in range(0, n, p.CHUNK):
            count = min(p.CHUNK, n - at)

            def parse(payload: bytes, count: int = count) -> np.ndarray:
                if len(payload) != 4 * count:
                    raise ValueError("another length than asked for")
                return parse_values(payload)

            out.append(self._request(kind, p.read(at, count), parse))
        return np.concatenate(out)
