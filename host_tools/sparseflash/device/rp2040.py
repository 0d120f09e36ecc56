"""RP2040: the checksum that its boot ROM wants over the second stage of a program."""

from __future__ import annotations

from sparseflash.base.errors import InputError

STAGE = 256
"""Bytes at the start of flash that the boot ROM copies to SRAM; the last four are the checksum."""


def boot_crc(data: bytes) -> int:
    """CRC-32 of polynomial 0x04C11DB7, most significant bit first, from all ones, not inverted."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x04C11DB7 if crc & 0x80000000 else 0)
            crc &= 0xFFFFFFFF
    return crc


def seal(program: bytes) -> bytes:
    """``program`` with the checksum of its second stage in place.

    Raises:
        InputError: it has no second stage with room for it.
    """
    if len(program) < STAGE + 8 or program[STAGE - 4 : STAGE] not in (
        b"\0\0\0\0",
        boot_crc(program[: STAGE - 4]).to_bytes(4, "little"),
    ):
        raise InputError("the program does not begin with a second stage of 256 bytes for RP2040")
    crc = boot_crc(program[: STAGE - 4]).to_bytes(4, "little")
    return program[: STAGE - 4] + crc + program[STAGE:]
