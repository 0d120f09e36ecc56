"""Frames and messages of the serial link; ``firmware/link/link.h`` is the other side.

On the line: ``COBS(seq u8 | type u8 | payload | crc32 u32) 00 00``, numbers little-endian.
A reply carries its request's ``seq`` and the request's type with the top bit set. Payloads begin
with the number of the connection, but for HELLO, its reply and NAK.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from cobs import cobs

from sparseflash.base.errors import SparseflashError

VERSION = 6
MAX_PAYLOAD = 1024
MAX_WIRE = 2 * MAX_PAYLOAD
"""More bytes than this without a zero are no frame."""
REPLY = 0x80
SITES = 7
THRESHOLDS = 12
SUM = 4
"""Bytes of a frame's CRC-32."""
OLD_NAK = cobs.encode(b"\x00\xf2\x52\xd2")
"""What firmware of link version 4 and before, with a CRC of 16 bits, says of our frames."""
CONNECTION = 4
"""Bytes of the number of a connection."""
MOST_SIZE = 1 << 24
"""Of a vocabulary, a layer, a context and the like that a device may claim to have."""
CHUNK = (MAX_PAYLOAD - CONNECTION) // 4
"""32-bit values in a full READ reply."""
TAP_CHUNK = CHUNK - 1
"""READ_TAP replies start with the count of all values."""
MOST_TEMPERATURE = 1e6
STATE_CHUNK = MAX_PAYLOAD - CONNECTION - 8
"""Bytes of the cache in a full READ_STATE or WRITE_STATE."""
PREFILL_CHUNK = (MAX_PAYLOAD - CONNECTION - 5) // 4
"""Tokens in a full PREFILL."""


class Type(IntEnum):
    """Types of frames."""

    HELLO = 0x01
    RESET = 0x02
    PREFILL = 0x03
    STEP = 0x04
    READ_LOGITS = 0x05
    TRACE = 0x06
    READ_TRACE = 0x07
    TAP = 0x08
    READ_TAP = 0x09
    COUNTERS = 0x0A
    SET_THRESHOLDS = 0x0B
    GENERATE = 0x0C
    STREAM = 0x0D
    QUIT = 0x0E
    READ_STATE = 0x0F
    WRITE_STATE = 0x10
    KEEP_STATE = 0x11
    REWIND = 0x12
    BUSY = 0xF0
    ERROR = 0xF1
    NAK = 0xF2


class Done(IntEnum):
    """Why a generation ended."""

    RUNNING = 0
    EOS = 1
    COUNT = 2
    CONTEXT = 3


ERR_MODEL = -2
ERR_SESSION = -102
ERR_POSITION = -103
ERR_OTHER = -106

_ERRORS = {
    -1: "a flash read failed",
    ERR_MODEL: "the image in its flash is not the one its program was made for",
    -3: "the position is past the KV cache; reset it or plan a longer one",
    -4: "a token is outside the vocabulary",
    -5: "an argument is out of range",
    -6: "the image in its flash is damaged or changed while it ran",
    -100: "the request has the wrong length for this protocol version",
    -101: "it does not know the command",
    ERR_SESSION: "it restarted and lost its state; open the port again",
    ERR_POSITION: "it is at another position than the host counts; open the port again",
    ERR_OTHER: "another host has opened this port since; open it again",
    -104: "the last step computed no logits",
    -105: "no generation is under way",
}


class DeviceError(SparseflashError):
    """The device understood a request and refused it."""

    def __init__(self, message: str, device_code: int) -> None:
        super().__init__(message)
        self.device_code = device_code


def describe(code: int) -> str:
    """A device's error code in words."""
    return _ERRORS.get(code, f"it answered error {code}")


@dataclass(frozen=True)
class Frame:
    """A decoded frame."""

    seq: int
    type: int
    payload: bytes


def encode_frame(seq: int, kind: int, payload: bytes) -> bytes:
    """Bytes for the line.

    The zero in front ends whatever noise the other side has collected before; of the two behind one
    may get lost.
    """
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"payload of {len(payload)} bytes; a frame holds {MAX_PAYLOAD}")
    body = bytes((seq, kind)) + payload
    return b"\0" + cobs.encode(body + struct.pack("<I", zlib.crc32(body))) + b"\0\0"


def decode_frame(wire: bytes) -> Frame | None:
    """The frame in the bytes between two zeros; None when damaged."""
    try:
        body = cobs.decode(wire)
    except cobs.DecodeError:
        return None
    if not 2 + SUM <= len(body) <= 2 + MAX_PAYLOAD + SUM:
        return None
    if zlib.crc32(body[:-SUM]) != struct.unpack("<I", body[-SUM:])[0]:
        return None
    return Frame(body[0], body[1], body[2:-SUM])


class Splitter:
    """Cuts a byte stream at its zeros."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Bytes of the frames that ``data`` ended; empty ones are left out."""
        self._buffer += data
        *whole, rest = self._buffer.split(b"\0")
        # The tail of an endless frame is enough to find it damaged.
        self._buffer = rest[-MAX_WIRE:]
        return [bytes(w) for w in whole if w]

    def clear(self) -> None:
        self._buffer.clear()


@dataclass(frozen=True)
class Info:
    """What a device says of itself in HELLO."""

    version: int
    max_payload: int
    nonce: int
    status: int
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
    position: int
    model_sha: str
    plan_digest: str
    board: str
    model: str


_HELLO = struct.Struct("<HHIi11I32s32s")


def hello(nonce: int) -> bytes:
    return struct.pack("<HI", VERSION, nonce)


def parse_hello_version(payload: bytes) -> int:
    """The version, in front in every version's HELLO."""
    return int(struct.unpack_from("<H", payload)[0])


def parse_hello(payload: bytes) -> Info:
    """Raises struct.error or ValueError for a payload of another shape."""
    *numbers, sha, plan = _HELLO.unpack_from(payload)
    if not all(0 < n <= MOST_SIZE for n in numbers[4:12]):
        raise ValueError("sizes that no model has")
    texts = []
    at = _HELLO.size
    for _ in range(2):
        n = payload[at] if at < len(payload) else -1
        raw = payload[at + 1 : at + 1 + n]
        if len(raw) != n:
            raise ValueError("text is cut")
        text = raw.decode("utf-8", "replace")
        texts.append("".join(c if c.isprintable() else "?" for c in text))
        at += 1 + n
    board, model = texts
    fields = [*numbers, sha.hex(), plan.hex(), board, model]
    return Info(*fields)


def prefill(position: int, tokens: Sequence[int], logits: bool) -> bytes:
    return struct.pack(f"<IB{len(tokens)}I", position, logits, *tokens)


def step(position: int, token: int) -> bytes:
    return struct.pack("<II", position, token)


def parse_step(payload: bytes) -> tuple[int, int]:
    """(argmax, position)"""
    best, position = struct.unpack("<II", payload)
    return best, position


def parse_u32(payload: bytes) -> int:
    return int(struct.unpack("<I", payload)[0])


def read(offset: int, count: int) -> bytes:
    """READ_LOGITS, READ_TRACE and READ_TAP."""
    return struct.pack("<IH", offset, count)


def parse_f32(payload: bytes) -> np.ndarray:
    return np.frombuffer(payload, "<f4").astype(np.float32)


def parse_u32s(payload: bytes) -> np.ndarray:
    return np.frombuffer(payload, "<u4").astype(np.uint32)


def tap(layer: int, site: int) -> bytes:
    return struct.pack("<II", layer, site)


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
    "time_wait",
    "bytes_read",
    "bytes_early",
    "bytes_early_used",
    "bytes_missed",
    "drafted",
    "taken",
)


def parse_counters(payload: bytes) -> dict[str, int]:
    return dict(zip(COUNTERS, struct.unpack(f"<{len(COUNTERS)}Q", payload), strict=True))


def set_thresholds(layer: int, limits: Sequence[float]) -> bytes:
    return struct.pack(f"<I{THRESHOLDS}f", layer, *limits)


def generate(position: int, max_new: int, temperature: float, top_p: float, seed: int) -> bytes:
    return struct.pack("<IIffQ", position, max_new, temperature, top_p, seed)


def stream(credit: int) -> bytes:
    return struct.pack("<H", credit)


def read_state(position: int, offset: int, count: int) -> bytes:
    return struct.pack("<IIH", position, offset, count)


def write_state(position: int, offset: int, data: bytes) -> bytes:
    return struct.pack("<II", position, offset) + data


def parse_stream(payload: bytes) -> tuple[Done, int, list[tuple[int, bytes]]]:
    """(done, position, [(token, text)])"""
    done, count, position = struct.unpack_from("<BHI", payload)
    at = 7
    out = []
    for _ in range(count):
        token, n = struct.unpack_from("<IH", payload, at)
        at += 6
        text = payload[at : at + n]
        if len(text) != n:
            raise ValueError("text is cut")
        out.append((token, text))
        at += n
    if at != len(payload):
        raise ValueError("bytes follow the last token")
    return Done(done), position, out


def parse_error(payload: bytes) -> tuple[int, int, int]:
    """(type of the request, code, position)"""
    kind, code, position = struct.unpack("<BiI", payload)
    return kind, code, position
