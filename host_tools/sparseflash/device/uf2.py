"""UF2 files: what a board's USB boot loader takes (github.com/microsoft/uf2, README.md)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from sparseflash.base.errors import InputError

RP2040 = 0xE48BFF56
"""Family id of the RP2040."""

PAGE = 256
SECTOR = 4096
BLOCK = struct.Struct("<8I476sI")
MAGIC = (0x0A324655, 0x9E5D5157, 0x0AB16F30)
NOT_MAIN_FLASH = 0x0001
FAMILY_PRESENT = 0x2000
ERASED = b"\xff"


def uf2_bytes(regions: Mapping[int, bytes], family: int = RP2040) -> bytes:
    """One file of all ``regions`` (address to data).

    Sectors are whole: the RP2040's boot ROM erases by sector and can lose pages that a file leaves
    out (erratum RP2040-E14).

    Raises:
        InputError: an address is not at a sector, or two regions share one.
    """
    pages: dict[int, bytes] = {}
    for start, data in sorted(regions.items()):
        if start % SECTOR:
            raise InputError(f"region {start:#x} does not start at a sector of {SECTOR}; move it")
        whole = data + ERASED * (-len(data) % SECTOR)
        for at in range(0, len(whole), PAGE):
            if start + at in pages:
                raise InputError(f"two regions hold {start + at:#x}; move one of them")
            pages[start + at] = whole[at : at + PAGE]
    total = len(pages)
    return b"".join(
        BLOCK.pack(
            *MAGIC[:2],
            FAMILY_PRESENT,
            address,
            PAGE,
            number,
            total,
            family,
            page.ljust(476, ERASED),
            MAGIC[2],
        )
        for number, (address, page) in enumerate(sorted(pages.items()))
    )


def uf2_regions(data: bytes, family: int = RP2040) -> dict[int, bytes]:
    """Start and content of every contiguous region, as the boot loader of ``family`` writes them.

    Raises:
        InputError: a block is damaged or missing, or none is for ``family``.
    """
    if not data or len(data) % BLOCK.size:
        raise InputError(f"a UF2 file is blocks of {BLOCK.size} bytes, this has {len(data)}")
    pages: dict[int, bytes] = {}
    numbers: set[int] = set()
    expected = 0
    for at in range(0, len(data), BLOCK.size):
        m0, m1, flags, address, size, number, total, who, payload, m2 = BLOCK.unpack_from(data, at)
        if (m0, m1, m2) != MAGIC or size > len(payload):
            raise InputError(f"UF2 block at byte {at} is damaged; make the file again")
        if flags & NOT_MAIN_FLASH or not flags & FAMILY_PRESENT or who != family:
            continue
        pages[address] = payload[:size]
        numbers.add(number)
        expected = total
    if not numbers or numbers != set(range(expected)):
        raise InputError(
            f"UF2 file has {len(numbers)} of {expected} blocks for family {family:#x}; "
            "make the file again"
        )
    regions: dict[int, bytearray] = {}
    start = end = -1
    for address, page in sorted(pages.items()):
        if address != end:
            start = end = address
            regions[start] = bytearray()
        regions[start] += page
        end += len(page)
    return {address: bytes(content) for address, content in regions.items()}
