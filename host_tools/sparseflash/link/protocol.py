"""Frames of the link (docs/SPEC.md, "Link"): COBS over seq, type, payload and CRC-16."""

from __future__ import annotations

import binascii
import struct
from enum import IntEnum

from cobs import cobs

VERSION = 1
PAYLOAD = 1024


class Command(IntEnum):
    HELLO = 1
    RESET = 2
    PREFILL = 3
    STEP = 4
    LOGITS = 5
    TRACE = 6
    HASHES = 7
    TAP = 8
    TAPPED = 9
    COUNTERS = 10
    THRESHOLDS = 11
    GENERATE = 12
    STREAM = 13
    QUIT = 14


OK, ERROR, NAK = 128, 129, 130

DEVICE_ERRORS = {
    -1: "a flash read failed",
    -2: "the image in flash is another one",
    -3: "the KV cache is full",
    -4: "a token id is outside the vocabulary",
    -5: "an argument is out of range",
}


def crc16(data: bytes) -> int:
    """CRC-16/CCITT-FALSE."""
    return binascii.crc_hqx(data, 0xFFFF)


def encode(seq: int, kind: int, payload: bytes = b"") -> bytes:
    """One frame on the wire, with its closing zero."""
    body = bytes([seq, kind]) + payload
    return cobs.encode(body + struct.pack("<H", crc16(body))) + b"\0"


def decode(wire: bytes) -> tuple[int, int, bytes] | None:
    """(seq, type, payload) of a frame without its zero; None when damaged."""
    try:
        frame = cobs.decode(wire)
    except cobs.DecodeError:
        return None
    if len(frame) < 4 or crc16(frame[:-2]) != struct.unpack("<H", frame[-2:])[0]:
        return None
    return frame[0], frame[1], frame[2:-2]
