"""A line that drops, cuts, flips and repeats: right tokens or a LinkError, and never a hang."""

from __future__ import annotations

import itertools
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serial

from sparseflash.base.errors import LinkError
from sparseflash.device.host_board import HostProcess, start_host_device
from sparseflash.device.link.client import Device
from sparseflash.device.link.protocol import REPLY, Type, decode_frame, encode_frame

sys.path.insert(0, str(Path(__file__).parents[1] / "device"))
from test_link import Fake, build_fake

ALL = os.environ.get("SPARSEFLASH_FAULTS") == "all"
KINDS = ("drop", "cut", "flip", "duplicate", "noise")
EVERY = (1, 2, 3, 5, 8, 16)
FAULTS = 1700 if ALL else 1
"""For each kind, rate and transport, of which there are 60."""
TIMEOUT = 0.025
PROMPT = list(range(1, 301))


class Faulty:
    """A port whose every n-th read or write is damaged."""

    def __init__(self, port: Any, kind: str, every: int, seed: int) -> None:
        self._port = port
        self._kind = kind
        self._every = every
        self._random = random.Random(seed)
        self._count = 0
        self.on = False
        self.hits = 0

    @property
    def timeout(self) -> float:
        return self._port.timeout

    @timeout.setter
    def timeout(self, value: float) -> None:
        self._port.timeout = value

    def _damage(self, data: bytes) -> bytes:
        self._count += 1
        if not data or not self.on or self._count % self._every:
            return data
        self.hits += 1
        at = self._random.randrange(len(data))
        if self._kind == "drop":
            return data[:at] + data[at + 1 :]
        if self._kind == "cut":
            return data[:at]
        if self._kind == "flip":
            return data[:at] + bytes([data[at] ^ 1 << self._random.randrange(8)]) + data[at + 1 :]
        if self._kind == "noise":
            return data[:at] + self._random.randbytes(self._random.randrange(1, 40)) + data[at:]
        end = self._random.randrange(at, len(data)) + 1
        return data[:end] + data[at:end] + data[end:]

    def write(self, data: bytes) -> None:
        self._port.write(self._damage(data))

    def read(self, n: int) -> bytes:
        return self._damage(self._port.read(n))

    def close(self) -> None:
        self._port.close()


def test_two_flipped_bits(count: Counter[str]) -> None:
    """Byte stuffing spreads them, and some would pass a CRC-16 (5 of 5.4 million did)."""
    rng = random.Random(2)
    for _ in range(40 if ALL else 1):
        tokens = b"".join(struct.pack("<IH2s", rng.randrange(512), 2, b"ab") for _ in range(6))
        payload = rng.randbytes(4) + struct.pack("<BHI", 0, 6, 9) + tokens
        good = bytearray(encode_frame(rng.randrange(256), Type.STREAM | REPLY, payload)[1:-2])
        assert decode_frame(bytes(good)) is not None
        for one, two in itertools.combinations(range(8 * len(good)), 2):
            wire = bytearray(good)
            wire[one >> 3] ^= 1 << (one & 7)
            wire[two >> 3] ^= 1 << (two & 7)
            assert not any(decode_frame(part) for part in bytes(wire).split(b"\0"))
            count["two flipped bits of a frame"] += 1


@pytest.fixture(scope="module", params=["pty", "tcp"])
def process(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HostProcess]:
    folder = tmp_path_factory.mktemp("device")
    image = folder / "flash.bin"
    image.write_bytes(b"FAKE")
    with start_host_device(build_fake(folder), image, request.param) as host:
        yield host


@pytest.mark.parametrize(("kind", "every"), list(itertools.product(KINDS, EVERY)))
def test_damaged_line(process: HostProcess, kind: str, every: int, count: Counter[str]) -> None:
    fake = Fake().run(*PROMPT)
    logits = fake.logits()
    tokens = fake.generate(60)
    finished = failed = hits = 0
    for seed in itertools.count():
        if hits >= FAULTS and seed >= 2:
            break
        started = time.monotonic()
        port = Faulty(serial.serial_for_url(process.url, timeout=1), kind, every, seed)
        got: list[tuple[int, bytes]] = []
        with Device.connect(port, process.url, timeout=1) as device:
            device._timeout = TIMEOUT  # of a damaged line; a busy machine may greet late
            port.on = True
            try:
                device.prefill(PROMPT, logits=True)
                np.testing.assert_array_equal(device.logits(), logits)
                for pair in device.generate([], 60):
                    got.append(pair)
                finished += 1
                assert got == tokens
            except LinkError:
                failed += 1
                assert got == tokens[: len(got)]
        hits += port.hits
        assert time.monotonic() - started < 10
    assert hits > 0
    count["faults on the line"] += hits
    assert every < 16 or finished > 0, "rare damage is repaired"
    assert finished + failed == seed


def test_damaged_greeting(process: HostProcess) -> None:
    for kind, seed in itertools.product(KINDS, range(5)):
        port = Faulty(serial.serial_for_url(process.url, timeout=1), kind, 2, seed)
        port.on = True
        try:
            with Device.connect(port, process.url, timeout=TIMEOUT) as device:
                port.on = False
                assert device.step(5) == Fake().run(5).greedy()
        except LinkError:
            pass


class Trickle:
    """A port on which the device is busy, and then says something damaged, without end."""

    def __init__(self) -> None:
        self.timeout = 0.0
        self.device: Device | None = None
        self._count = 0
        self._waiting = b""

    def write(self, data: bytes) -> None:
        pass

    def read(self, n: int) -> bytes:
        if self.timeout:
            time.sleep(min(self.timeout, 0.02))
            d = self.device
            assert d is not None
            self._count += 1
            self._waiting = encode_frame(d._seq, Type.BUSY, d._number)
            if self._count % 3 == 0:
                self._waiting = b"damaged\0"
        out, self._waiting = self._waiting[:n], self._waiting[n:]
        return out

    def close(self) -> None:
        pass


def test_a_request_has_an_end() -> None:
    """However a device puts it off; without a limit this took twenty times as long."""
    port = Trickle()
    port.device = device = Device(port, "trickle", timeout=0.025)
    device._understood = True
    started = time.monotonic()
    with pytest.raises(LinkError, match="RESET"):
        device.reset()
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize("seed", range(4))
def test_other_firmware(seed: int) -> None:
    """Something else on a TCP port that answers everything with noise."""
    rng = random.Random(seed)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            conn, _ = server.accept()
            with conn:
                conn.settimeout(5)
                try:
                    while data := conn.recv(4096):
                        noise = rng.randbytes(rng.randrange(1, 300))
                        conn.sendall(noise + data if seed % 2 else b"AT OK\r\n" + noise + b"\0")
                except OSError:
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        started = time.monotonic()
        with pytest.raises(LinkError, match="no Sparseflash firmware"):
            Device.open(f"socket://127.0.0.1:{port}", timeout=0.1)
        assert time.monotonic() - started < 5
        thread.join(6)


def test_noise_without_end_is_no_hang() -> None:
    """A port that never falls silent still runs into the time limit."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            conn, _ = server.accept()
            with conn:
                try:
                    while not stop.is_set():
                        conn.sendall(b"\x05noise" * 50)
                        time.sleep(0.001)
                except OSError:
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        started = time.monotonic()
        try:
            with pytest.raises(LinkError, match="something else"):
                Device.open(f"socket://127.0.0.1:{server.getsockname()[1]}", timeout=0.1)
        finally:
            stop.set()
            thread.join(5)
        assert time.monotonic() - started < 5
