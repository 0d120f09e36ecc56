"""The link end to end over a pty and a socket, with a fake runtime behind the real C."""

from __future__ import annotations

import binascii
import ctypes
import itertools
import os
import random
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cobs import cobs

from conftest import BITS, flags_of
from sparseflash.base.errors import InputError, LinkError, MismatchError, ToolError, UsageError
from sparseflash.base.files import root
from sparseflash.codegen.build import STRICT, includes
from sparseflash.device.host_board import HostProcess, start_host_device
from sparseflash.device.link import client, protocol
from sparseflash.device.link.client import Device
from sparseflash.device.link.protocol import DeviceError, Type
from sparseflash.device.state import load, save

VOCAB, LAYERS, KV, EOS = 700, 50, 900, 2
SHA, PLAN = "a5" * 32, "5a" * 32


class Fake:
    """fake_runtime.c in Python."""

    def __init__(self) -> None:
        self.state = 0

    def run(self, *tokens: int) -> Fake:
        for t in tokens:
            self.state = (self.state * 1664525 + t + 1013904223) % 2**32
        return self

    def logits(self) -> np.ndarray:
        i = np.arange(VOCAB, dtype=np.uint64)
        x = np.uint64(self.state) ^ (i * np.uint64(2654435761) & np.uint64(0xFFFFFFFF))
        return (x >> np.uint64(8) & np.uint64(0xFFFF)).astype(np.float32)

    def greedy(self) -> int:
        return int(np.argmax(self.logits()))

    def generate(self, n: int) -> list[tuple[int, bytes]]:
        out: list[tuple[int, bytes]] = []
        while len(out) < n:
            t = self.greedy()
            text = bytes((t + i) & 0xFF for i in range(1 + t % 8))
            out.append((t, b"" if t == EOS else text))
            if t == EOS:
                break
            self.run(t)
        return out


def build_fake(folder: Path, *flags: str) -> Path:
    """The device program around fake_runtime.c."""
    fw = root() / "firmware"
    sources = [
        *sorted((fw / "link").glob("*.c")),
        fw / "runtime" / "crc32.c",
        *sorted((fw / "port" / "host").glob("*.c")),
        Path(__file__).with_name("fake_runtime.c"),
    ]
    exe = folder / "sparseflash-device"
    subprocess.run(
        ["cc", *STRICT, "-O2", *flags, *includes("plain"), *map(str, sources), "-o", str(exe)],
        check=True,
    )
    return exe


@pytest.fixture(scope="module")
def exe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake(
        tmp_path_factory.mktemp("device"), "-fsanitize=address,undefined", "-fno-sanitize-recover"
    )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "flash.bin"
    path.write_bytes(b"FAKE" + bytes(100))
    return path


@pytest.fixture(scope="module", params=["pty", "tcp"])
def process(request: pytest.FixtureRequest, exe: Path, image: Path) -> Iterator[HostProcess]:
    with start_host_device(exe, image, request.param) as host:
        yield host


@pytest.fixture
def device(process: HostProcess) -> Iterator[Device]:
    with Device.open(process.url, SHA, bytes.fromhex(PLAN)) as d:
        yield d


def test_info(device: Device) -> None:
    info = device.info()
    assert (info.board, info.model, info.model_sha) == ("host", "fake", SHA)
    assert (info.vocab, info.n_layers, info.kv_len) == (VOCAB, LAYERS, KV)
    assert info.ticks_per_second == 10**9


def test_steps_and_logits(device: Device) -> None:
    fake = Fake()
    for t in (1, 5, 699, 0):
        assert device.step(t) == fake.run(t).greedy()
        np.testing.assert_array_equal(device.logits(), fake.logits())
    assert device.position == 4
    device.reset()
    assert device.position == 0
    assert device.step(7) == Fake().run(7).greedy()


def test_long_prefill(device: Device) -> None:
    tokens = [i % VOCAB for i in range(801)]
    device.prefill(tokens, logits=True)
    np.testing.assert_array_equal(device.logits(), Fake().run(*tokens).logits())
    assert device.position == 801
    device.prefill([3])
    with pytest.raises(DeviceError, match="no logits"):
        device.logits()


def test_trace_and_tap(device: Device) -> None:
    device.trace(True)
    device.tap(3, 4)
    device.step(9)
    state = Fake().run(9).state
    expect = state + 100 * np.arange(LAYERS)[:, None] + np.arange(7)
    np.testing.assert_array_equal(device.read_trace(), (expect % 2**32).astype(np.uint32))
    np.testing.assert_array_equal(
        device.read_tap(), np.arange(600, dtype=np.float32) + np.float32(3004.5)
    )
    device.trace(False)
    assert not device.read_trace().any()


def test_counters_and_thresholds(device: Device) -> None:
    device.counters(clear=True)
    device.prefill([1, 2, 3])
    device.set_thresholds(10, [float(i + 1) for i in range(12)])
    c = device.counters(clear=True)
    assert (c["tokens"], c["bytes"], c["neurons"]) == (3, 3 << 33, 25)
    assert not any(device.counters().values())
    with pytest.raises(DeviceError):
        device.set_thresholds(10, (float("nan"), *[0] * 11))
    with pytest.raises(UsageError):
        device.set_thresholds(LAYERS, [0] * 12)


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 500])
def test_generate(device: Device, n: int) -> None:
    assert list(device.generate([1, 2], n)) == Fake().run(1, 2).generate(n)


def test_generate_sampled_repeats(device: Device) -> None:
    first = list(device.generate([1], 40, 0.7, 0.9, 11))
    device.reset()
    assert list(device.generate([1], 40, 0.7, 0.9, 11)) == first
    device.reset()
    assert list(device.generate([1], 40, 0.7, 0.9, 12)) != first


def test_generate_stops_at_context(device: Device) -> None:
    device.prefill([1] * (KV - 3))
    out = [t for t, _ in device.generate([4], 100)]
    assert 1 <= len(out) <= 3
    assert device.position <= KV


def test_generation_left_early(device: Device) -> None:
    stream = device.generate([1, 2], 400)
    next(stream)
    stream.close()
    device.reset()
    assert device.step(8) == Fake().run(8).greedy()


def test_commands_between_drafts(device: Device) -> None:
    """What the host has not heard of is taken back, and the generation goes on."""
    want = Fake().run(1, 2).generate(300)
    got = []
    for token in device.generate([1, 2], 300):
        device.counters()
        got.append(token)
    assert got == want and len(got) > 100


@pytest.mark.parametrize("prompt", range(1, 7))
def test_generation_left_between_drafts(device: Device, prompt: int) -> None:
    """The device is where the host heard that it is, and its cache too."""
    stream = device.generate([prompt], 400)
    got = [next(stream)[0] for _ in range(3)]
    stream.close()
    ran = [prompt, *(t for t, _ in Fake().run(prompt).generate(400))][: device.position]
    assert ran[1:4] == got
    assert device.step(8) == Fake().run(*ran, 8).greedy()


def test_kept_state(device: Device, tmp_path: Path) -> None:
    """A file gives back the cache of a prompt; what is not this device's is refused."""
    path = tmp_path / "a.state"
    device.prefill([4, 5, 6, 7])
    save(device, [4, 5, 6], path)
    device.reset()
    assert load(device, path) == [4, 5, 6]
    assert device.position == 3
    assert device.step(9) == Fake().run(4, 5, 6, 9).greedy()
    device.rewind(1)
    assert device.step(9) == Fake().run(4, 9).greedy()
    whole = path.read_bytes()
    for wrong, error, said in (
        (whole.replace(PLAN.encode(), SHA.encode(), 1), MismatchError, "another plan or model"),
        (whole[:-1], InputError, "damaged"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), InputError, "damaged"),
        (whole.replace(b"[4, 5, 6]", b"[4, 5, 1e9]", 1), InputError, "damaged"),
        (b"{}\n", InputError, "no state"),
        (b"[" * 9999, InputError, "no state"),
        (b"", InputError, "no state"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(error, match=said):
            load(device, path)
    with pytest.raises(InputError, match="cannot be read"):
        load(device, tmp_path)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Type.READ_STATE, protocol.read_state(2, 0, 1)),
        (Type.READ_STATE, protocol.read_state(0, 3600, 1)),
        (Type.READ_STATE, protocol.read_state(0, 2**32 - 1, 2)),
        (Type.READ_STATE, protocol.read_state(0, 0, 1021)),
        (Type.WRITE_STATE, protocol.write_state(2, 3599, b"ab")),
        (Type.WRITE_STATE, protocol.write_state(2, 2**32 - 1, b"ab")),
        (Type.KEEP_STATE, protocol.step(2, VOCAB)),
    ],
)
def test_state_stays_inside(device: Device, kind: Type, payload: bytes) -> None:
    device.prefill([1, 2])
    with pytest.raises(DeviceError, match=r"out of range|vocabulary"):
        device._request(kind, payload, lambda _: None)
    assert device.step(3) == Fake().run(1, 2, 3).greedy()


def test_refusals(device: Device) -> None:
    with pytest.raises(UsageError):
        device.step(VOCAB)
    with pytest.raises(UsageError):
        device.prefill([-1])
    device.prefill([0] * KV)
    with pytest.raises(DeviceError, match="KV cache") as e:
        device.step(0)
    assert e.value.device_code == -3
    device.reset()
    assert device.step(1) == Fake().run(1).greedy()


def test_what_can_be_tapped(device: Device) -> None:
    for layer, site in ((0, 0), (LAYERS - 1, protocol.SITES - 1)):
        device.tap(layer, site)
    for layer, site in ((-1, 0), (LAYERS, 0), (0, -1), (0, protocol.SITES)):
        with pytest.raises(UsageError, match="out of range"):
            device.tap(layer, site)


@pytest.mark.parametrize(
    ("vocab", "taken"), [(0, False), (1, True), (2**24, True), (2**24 + 1, False)]
)
def test_sizes_that_a_device_may_say(vocab: int, taken: bool) -> None:
    sizes = (vocab, 64, 172, LAYERS, 8, 4, 8, KV)
    hello = protocol._HELLO.pack(1, 1024, 0, 0, *sizes, 0, 0, 0, bytes(32), bytes(32)) + b"\0\0"
    if taken:
        assert protocol.parse_hello(hello).vocab == vocab
    else:
        with pytest.raises(ValueError, match="no model has"):
            protocol.parse_hello(hello)


def test_any_payload_is_answered(process: HostProcess) -> None:
    kinds = [*(t for t in Type if t != Type.QUIT), 0, 0x0F, 0x80, 0xFF]
    sizes = (0, 1, 2, 5, 6, 7, 8, 9, 24, 1019, 1020)
    with Device.open(process.url) as d:
        for kind, n, fill in itertools.product(kinds, sizes, (0, 255)):
            d._failed = None
            try:
                d._request(_AnyType(kind), bytes([fill]) * n, lambda _: None)
            except (DeviceError, LinkError) as e:
                assert "refused" in str(e), (kind, n, fill)


@pytest.mark.parametrize("kind", [Type.READ_LOGITS, Type.READ_TRACE, Type.READ_TAP])
def test_reads_stay_inside(device: Device, kind: Type) -> None:
    """Offset and count of what is read lie inside it, and the reply fits a frame."""
    device.step(3)
    n = {Type.READ_LOGITS: VOCAB, Type.READ_TRACE: LAYERS * 7, Type.READ_TAP: 600}[kind]
    most = protocol.TAP_CHUNK if kind == Type.READ_TAP else protocol.CHUNK
    head = 4 if kind == Type.READ_TAP else 0
    for offset, count in ((0, most), (n - 1, 1), (n, 0), (n - most, most)):
        got = device._request(kind, protocol.read(offset, count), lambda payload: payload)
        assert len(got) == head + 4 * count
    for offset, count in (
        *((0, c) for c in (most + 1, 1000, 0x4000, 0x4001, 65535)),
        *((n - 1, c) for c in (2, most)),
        *((n, c) for c in (1, most)),
        *((o, c) for o in (n + 1, 2**30, 2**31, 2**32 - 1) for c in (0, 1, most)),
    ):
        with pytest.raises(DeviceError, match="out of range"):
            device._request(kind, protocol.read(offset, count), lambda payload: payload)


@pytest.mark.parametrize(
    ("temperature", "top_p"),
    [
        *((float("nan"), 1), (-1e-3, 1), (1e7, 1), (float("inf"), 1)),
        *((1, float("nan")), (1, -0.1), (1, 1.01), (1, float("inf"))),
    ],
)
def test_sampling_out_of_range(device: Device, temperature: float, top_p: float) -> None:
    """The client refuses it before it asks, and so does the device."""
    with pytest.raises(UsageError, match="out of range"):
        next(device.generate([1], 3, temperature, top_p))
    assert device.position == 0
    device.prefill([1], logits=True)
    payload = protocol.generate(1, 3, temperature, top_p, 1)
    with pytest.raises(DeviceError, match="out of range"):
        device._request(Type.GENERATE, payload, lambda _: None)


@pytest.mark.parametrize("bits", BITS)
def test_texts_longer_than_a_frame(
    bits: int, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a broken table, where addresses have 32 bits too: the token counts, its text is cut."""
    monkeypatch.setenv("FAKE_LONG_TEXT", "1")
    built = build_fake(tmp_path, "-fsanitize=undefined", *flags_of(bits))
    with start_host_device(built, image) as host, Device.open(host.url) as d:
        got = list(d.generate([1, 2], 3))
        assert [t for t, _ in got] == [t for t, _ in Fake().run(1, 2).generate(3)]
        assert {len(text) for _, text in got} == {1024 - 4 - 7 - 6}


def test_two_hosts(process: HostProcess) -> None:
    """Of two hosts on one device the earlier one is told, and its request changes nothing."""
    with pytest.raises(LinkError), Device.open(process.url, timeout=0.5):
        Device.open(process.url, timeout=0.5)
        pytest.fail("a second host got in")
    with Device.open(process.url) as d:
        d.prefill([1, 2])
        # The same line, as a host that does not ask for it alone.
        other = Device(d._port, d._name)
        other._greet(None, None)
        other.prefill([3, 4])
        d._splitter.clear()
        with pytest.raises(LinkError, match="another host"):
            d.step(5)
        assert other.step(5) == Fake().run(3, 4, 5).greedy()


class Scripted:
    """A device in Python: answers HELLO and RESET as it should, then what a test says."""

    def __init__(
        self, reply: Callable[[int, int, bytes], Iterator[bytes]], status: int = 0
    ) -> None:
        self._reply = reply
        self._status = status
        self._splitter = protocol.Splitter()
        self._out = bytearray()
        self._more: Iterator[bytes] = iter(())
        self.timeout: float | None = 1.0

    def write(self, data: bytes) -> None:
        for wire in self._splitter.feed(data):
            frame = protocol.decode_frame(wire)
            assert frame is not None
            kind, body = frame.type, frame.payload
            number, rest = body[:4], body[4:]
            if kind == Type.HELLO:
                nonce = struct.unpack("<I", body[2:6])[0]
                hello = protocol._HELLO.pack(
                    *(protocol.VERSION, 1024, nonce, self._status, VOCAB, 64, 172),
                    *(LAYERS, 8, 4, 8, KV, 1, 0, 0, bytes(32), bytes(32)),
                )
                answers: Iterator[bytes] = iter([hello + b"\0\0"])
            else:
                said = iter([b""]) if kind == Type.RESET else self._reply(frame.seq, kind, rest)
                answers = (number + a for a in said)
            self._more = (
                a[5:]
                if a[4:5] == b"!"
                else protocol.encode_frame(frame.seq, kind | protocol.REPLY, a)
                for a in answers
            )

    def read(self, n: int) -> bytes:
        if not self._out:
            self._out += next(self._more, b"")
            if not self._out and self.timeout:
                time.sleep(min(self.timeout, 0.01))
        data = bytes(self._out[:n])
        del self._out[:n]
        return data

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (lambda p: struct.pack("<II", VOCAB, 1), "which is none"),
        (lambda p: struct.pack("<II", 2**32 - 1, 1), "which is none"),
        (lambda p: struct.pack("<II", 3, 0), "at position 0, not 1"),
        (lambda p: struct.pack("<II", 3, 7), "at position 7, not 1"),
    ],
)
def test_answers_that_cannot_be(reply: Callable[[bytes], bytes], what: str) -> None:
    port = Scripted(lambda seq, kind, p: iter([reply(p)]))
    with Device.connect(port, "script", timeout=0.2) as d, pytest.raises(LinkError, match=what):
        d.step(1)


@pytest.mark.parametrize(
    ("status", "kind", "what"),
    [(-2, MismatchError, "not the one its program"), (-6, LinkError, "damaged")],
)
def test_a_device_that_cannot_run(status: int, kind: type[Exception], what: str) -> None:
    with pytest.raises(kind, match=what) as e:
        Device.connect(Scripted(lambda seq, kind, p: iter([b""]), status), "script", timeout=0.2)
    assert type(e.value) is kind


def test_a_silent_line_is_waited_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a hurry, then for the time that was asked for. The clock is the test's."""
    clock = [0.0]

    class Silent(Scripted):
        def read(self, n: int) -> bytes:
            clock[0] += self.timeout or 0
            return b""

    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with pytest.raises(LinkError, match="it is silent"):
        Device.connect(Silent(lambda seq, kind, p: iter(())), "script", timeout=40)
    assert clock[0] == pytest.approx((1 + client.RETRIES) * client.GREETING + 40)


def test_damaged_answers_are_asked_for_again_a_few_times() -> None:
    asked = []

    def reply(seq: int, kind: int, payload: bytes) -> Iterator[bytes]:
        asked.append(kind)
        yield b"!\5junk\0"

    device = Device.connect(Scripted(reply), "script", timeout=0.2)
    with device, pytest.raises(LinkError, match="did not answer STEP"):
        device.step(1)
    assert asked == [Type.STEP] * (1 + client.RETRIES + client.REPEATS)


def test_logits_that_are_no_numbers() -> None:
    def reply(seq: int, kind: int, payload: bytes) -> Iterator[bytes]:
        n = struct.unpack("<IH", payload)[1]
        yield struct.pack(f"<{n}f", *([0.5] * (n - 1) + [float("nan")]))

    device = Device.connect(Scripted(reply), "script", timeout=0.2)
    with device, pytest.raises(LinkError, match="no numbers"):
        device.logits()


@pytest.mark.parametrize(
    "stream",
    [
        struct.pack("<BHI", 0, 0, 1),  # nothing, and more to come
        struct.pack("<BHI", 0, 9, 9) + struct.pack("<IH", 5, 0) * 9,  # more than asked for
        struct.pack("<BHI", 0, 1, 1) + struct.pack("<IH", VOCAB, 0),
        struct.pack("<BHI", 0, 1, 500) + struct.pack("<IH", 5, 0),
    ],
)
def test_streams_that_cannot_be(stream: bytes) -> None:
    def reply(seq: int, kind: int, payload: bytes) -> Iterator[bytes]:
        yield stream if kind == Type.STREAM else b"" if kind == Type.GENERATE else b"\1\0\0\0"

    with Device.connect(Scripted(reply), "script", timeout=0.2) as d, pytest.raises(LinkError):
        for _ in d.generate([1], 8):
            pass


def test_busy_without_end() -> None:
    def reply(seq: int, kind: int, payload: bytes) -> Iterator[bytes]:
        while True:
            time.sleep(0.001)
            yield b"!" + protocol.encode_frame(seq, Type.BUSY, device._number)

    started = time.monotonic()
    device = Device.connect(Scripted(reply), "script", timeout=0.2)
    with device, pytest.raises(LinkError, match="busy without end"):
        device.step(1)
    assert time.monotonic() - started < 3


def test_damaged_reply_is_asked_for_at_once() -> None:
    """Not after the silence of a whole timeout, which is as long as a token takes."""
    asked = []

    def reply(seq: int, kind: int, payload: bytes) -> Iterator[bytes]:
        asked.append(seq)
        good = struct.pack("<II", 3, 1)
        if len(asked) < 5:
            yield b"!" + b"\5\1\2\3\4\0"
        else:
            yield good

    with Device.connect(Scripted(reply), "script", timeout=30.0) as d:
        started = time.monotonic()
        assert d.step(1) == 3
    assert time.monotonic() - started < 1
    assert len(asked) == 5 and len(set(asked)) == 1


class _AnyType(int):
    """A request type that no command has."""

    name = "ANY"


def test_wrong_model_and_plan(process: HostProcess) -> None:
    with pytest.raises(MismatchError, match="model"):
        Device.open(process.url, "00" * 32)
    with pytest.raises(MismatchError, match="plan"):
        Device.open(process.url, SHA, "00" * 32)


def test_quit_and_death(exe: Path, image: Path) -> None:
    for way in ("pty", "tcp"):
        with start_host_device(exe, image, way) as host, Device.open(host.url) as d:
            d.quit()
            assert host.process.wait(5) == 0
        with start_host_device(exe, image, way) as host:
            with Device.open(host.url, timeout=0.2) as d:
                host.process.kill()
                host.process.wait()
                with pytest.raises(LinkError):
                    d.step(1)
                with pytest.raises(LinkError, match="open the port again"):
                    d.step(1)
            with pytest.raises(LinkError):
                Device.open(host.url, timeout=0.1)


def test_client_leaves_before_the_reply(exe: Path, image: Path) -> None:
    with start_host_device(exe, image, "tcp") as host:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", int(host.url.rsplit(":", 1)[1]))) as s:
                s.sendall(protocol.encode_frame(1, Type.HELLO, protocol.hello(1)) * 500)
        with Device.open(host.url) as d:
            assert d.step(1) == Fake().run(1).greedy()


def test_process_follows_its_parent(exe: Path, image: Path) -> None:
    with start_host_device(exe, image) as host:
        assert host.process.stdin is not None
        host.process.stdin.close()
        assert host.process.wait(5) == 0


def test_start_failures(exe: Path, image: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.bin"
    wrong.write_bytes(b"other")
    with pytest.raises(MismatchError, match="not the image"):
        start_host_device(exe, wrong)
    with pytest.raises(InputError, match="cannot map"):
        start_host_device(exe, tmp_path / "none.bin")
    with pytest.raises(ToolError, match="cannot start"):
        start_host_device(tmp_path / "none", image)
    for args in (["--flash"], ["--nonsense"], []):
        assert subprocess.run([exe, *args], capture_output=True, check=False).returncode == 2


def test_missing_silent_and_echoing_ports() -> None:
    with pytest.raises(LinkError, match="cannot open"):
        Device.open("/dev/none")
    with pytest.raises(LinkError, match="cannot open"):
        Device.open("nonsense://x")
    started = time.monotonic()
    with pytest.raises(LinkError, match=r"no Sparseflash firmware.*something else"):
        Device.open("loop://", timeout=0.1)
    master, slave = os.openpty()
    with pytest.raises(LinkError, match=r"no Sparseflash firmware.*silent"):
        Device.open(os.ttyname(slave), timeout=0.1)
    os.close(master)
    os.close(slave)
    assert time.monotonic() - started < 5


def test_older_firmware_is_named() -> None:
    """Before version 5 frames had a CRC-16, and all that came of ours was refused."""
    old_nak = b"\0\xf2" + struct.pack("<H", binascii.crc_hqx(b"\0\xf2", 0xFFFF))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            conn, _ = server.accept()
            with conn:
                while conn.recv(4096):
                    conn.sendall(cobs.encode(old_nak) + b"\0\0")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(LinkError, match="an older link version, this host 6; build and flash"):
            Device.open(f"socket://127.0.0.1:{server.getsockname()[1]}", timeout=0.1)
        thread.join(5)


def test_c_and_python_agree(tmp_path: Path) -> None:
    fw = root() / "firmware"
    lib_path = tmp_path / "frame.so"
    sources = [str(fw / "link" / "cobs.c"), str(fw / "runtime" / "crc32.c")]
    subprocess.run(
        ["cc", *STRICT, "-shared", "-fPIC", *includes("plain"), *sources, "-o", lib_path],
        check=True,
    )
    lib = ctypes.CDLL(str(lib_path))
    size = ctypes.c_size_t
    lib.sf_cobs_encode.restype = lib.sf_cobs_decode.restype = size
    lib.sf_crc32.restype = ctypes.c_uint32
    assert lib.sf_crc32(0, b"123456789", size(9)) == 0xCBF43926
    rng = random.Random(1)
    cases = [bytes([1]) * n + tail for n in (253, 254, 255, 508) for tail in (b"", b"\0", b"\1")]
    cases += [b"", b"\0", b"\0\0"]
    for _ in range(2000):
        n = rng.randrange(1029)
        zeros = rng.choice((0.0, 0.004, 0.2))
        cases.append(bytes(0 if rng.random() < zeros else rng.randrange(1, 256) for _ in range(n)))
    out = ctypes.create_string_buffer(2048)
    for data in cases:
        assert lib.sf_crc32(0, data, size(len(data))) == zlib.crc32(data)
        n = lib.sf_cobs_encode(data, size(len(data)), out)
        wire = out.raw[:n]
        assert wire == cobs.encode(data)
        assert n <= len(data) + len(data) // 254 + 1
        n = lib.sf_cobs_decode(wire, size(len(wire)), out)
        assert out.raw[:n] == data
        damaged = bytearray(wire)
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        n = lib.sf_cobs_decode(bytes(damaged), size(len(damaged)), out)
        try:
            assert cobs.decode(bytes(damaged)) == out.raw[:n]
        except cobs.DecodeError:
            assert n == 2 ** (8 * ctypes.sizeof(size)) - 1
