"""A line that drops, cuts, flips and repeats: right tokens or a LinkError, and never a hang."""

from __future__ import annotations

import itertools
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serial

from sparseflash.base.errors import LinkError
from sparseflash.device.host_board import HostProcess, start_host_device
from sparseflash.device.link.client import Device

sys.path.insert(0, str(Path(__file__).parents[1] / "device"))
from test_link import Fake, build_fake

KINDS = ("drop", "cut", "flip", "duplicate")
EVERY = (1, 2, 3, 5, 8, 16)
TIMEOUT = 0.025
PROMPT = list(range(1, 301))


class Faulty:
    """A serial port whose every n-th read or write is damaged."""

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
        end = self._random.randrange(at, len(data)) + 1
        return data[:end] + data[at:end] + data[end:]

    def write(self, data: bytes) -> None:
        self._port.write(self._damage(data))

    def read(self, n: int) -> bytes:
        return self._damage(self._port.read(n))

    def close(self) -> None:
        self._port.close()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    folder = tmp_path_factory.mktemp("device")
    image = folder / "flash.bin"
    image.write_bytes(b"FAKE")
    with start_host_device(build_fake(folder), image) as host:
        yield host


@pytest.mark.parametrize(("kind", "every"), list(itertools.product(KINDS, EVERY)))
def test_damaged_line(process: HostProcess, kind: str, every: int) -> None:
    fake = Fake().run(*PROMPT)
    logits = fake.logits()
    tokens = fake.generate(60)
    finished = failed = hits = 0
    for seed in range(3):
        started = time.monotonic()
        port = Faulty(serial.serial_for_url(process.url, timeout=1), kind, every, seed)
        got: list[tuple[int, bytes]] = []
        with Device.connect(port, process.url, timeout=TIMEOUT) as device:
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
    assert every < 16 or finished > 0, "rare damage is repaired"
    assert finished + failed == 3


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
