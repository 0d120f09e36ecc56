"""UF2 files against the text of the format, field by field."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from sparseflash.base.errors import InputError
from sparseflash.device.uf2 import RP2040, uf2_bytes, uf2_regions


def test_blocks_are_those_of_the_format() -> None:
    firmware = np.random.default_rng(1).bytes(5000)
    image = np.random.default_rng(2).bytes(4096)
    data = uf2_bytes({0x10100000: image, 0x10000000: firmware})
    assert len(data) == 512 * (32 + 16)
    flash: dict[int, bytes] = {}
    for n in range(48):
        block = data[512 * n : 512 * (n + 1)]
        assert block[:8] == b"UF2\n" + bytes.fromhex("57515d9e")
        assert block[508:] == bytes.fromhex("306fb10a")
        flags, address, size, number, total, family = struct.unpack_from("<6I", block, 8)
        assert (flags, size, number, total, family) == (0x2000, 256, n, 48, 0xE48BFF56)
        assert address % 256 == 0
        assert block[32 + 256 : 508] == b"\xff" * 220
        flash[address] = block[32 : 32 + 256]
    assert sorted(flash) == [
        *range(0x10000000, 0x10002000, 256),
        *range(0x10100000, 0x10101000, 256),
    ]
    whole = b"".join(flash[a] for a in range(0x10000000, 0x10002000, 256))
    assert whole == firmware + b"\xff" * (8192 - 5000)
    assert uf2_regions(data) == {0x10000000: whole, 0x10100000: image}


def test_blocks_may_come_in_any_order_and_twice() -> None:
    data = uf2_bytes({0x10000000: b"a" * 4096, 0x10001000: b"b" * 4096})
    blocks = [data[i : i + 512] for i in range(0, len(data), 512)]
    assert uf2_regions(b"".join(blocks[::-1] + blocks[:3])) == {
        0x10000000: b"a" * 4096 + b"b" * 4096
    }


def test_foreign_blocks_are_passed_over() -> None:
    ours = uf2_bytes({0x10000000: b"x" * 10})
    other = uf2_bytes({0x20000000: b"y" * 10}, family=1)
    assert list(uf2_regions(other + ours)) == [0x10000000]


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[:-512],
        lambda d: d[:-1],
        lambda d: b"",
        lambda d: b"\0" + d[1:],
        lambda d: d[:508] + b"\0" + d[509:],
        lambda d: d[:16] + struct.pack("<I", 477) + d[20:],
        lambda d: uf2_bytes({0x10000000: b"z"}, family=RP2040 ^ 1),
    ],
)
def test_damage_is_refused(damage: object) -> None:
    data = uf2_bytes({0x10000000: b"x" * 4096})
    with pytest.raises(InputError):
        uf2_regions(damage(data))  # type: ignore[operator]


def test_regions_are_refused_where_they_meet() -> None:
    with pytest.raises(InputError, match="sector"):
        uf2_bytes({0x10000100: b"x"})
    with pytest.raises(InputError, match="two regions"):
        uf2_bytes({0x10000000: b"x" * 5000, 0x10001000: b"y"})
