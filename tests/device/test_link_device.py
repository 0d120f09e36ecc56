"""The device's side of the link, called in this process: every command, limit and refusal."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_link import EOS, KV, LAYERS, PLAN, SHA, VOCAB, Fake

from sparseflash.base.errors import LinkError
from sparseflash.base.files import root
from sparseflash.base.programs import run
from sparseflash.codegen.build import STRICT, includes
from sparseflash.device.link import protocol as p
from sparseflash.device.link.client import Device
from sparseflash.device.link.protocol import Done, Frame, Type
from sparseflash.measure.engine import Counters

HOST = 0x11223344
U32 = ctypes.c_uint32
ANSWER = p.MAX_PAYLOAD - p.CONNECTION
"""Bytes of a reply behind the number of the connection."""


class Line:
    """The device, and a port to it: what is written it serves at the next read."""

    timeout: float | None = None

    def __init__(self, library: Path) -> None:
        self.lib = ctypes.CDLL(str(library))
        self.lib.sf_get_counters.restype = ctypes.POINTER(Counters)
        for name in ("poll", "run", "gone", "quit"):
            getattr(self.lib, f"sf_link_{name}").restype = ctypes.c_bool
        self.seq = 0
        self.number = HOST

    def set(self, name: str, value: int) -> None:
        (ctypes.c_bool if name == "gone" else U32).in_dll(self.lib, f"line_{name}").value = value

    def write(self, data: bytes) -> None:
        n = U32.in_dll(self.lib, "line_in_n")
        ctypes.memmove(ctypes.addressof(ctypes.c_uint8.in_dll(self.lib, "line_in")) + n.value, data,
                       len(data))  # fmt: skip
        n.value += len(data)

    def served(self) -> bytes:
        """All that the device answers to what was written."""
        while self.lib.sf_link_poll():
            pass
        n = U32.in_dll(self.lib, "line_out_n")
        data = ctypes.string_at(
            ctypes.addressof(ctypes.c_uint8.in_dll(self.lib, "line_out")), n.value
        )
        n.value = 0
        return data

    def read(self, n: int) -> bytes:
        self.rest = getattr(self, "rest", b"") + self.served()
        data, self.rest = self.rest[:n], self.rest[n:]
        return data

    def close(self) -> None:
        self.rest = b""

    def frames(self, wire: bytes) -> list[Frame]:
        """Answers to bytes; each is a whole frame between zeros."""
        self.write(wire)
        data = self.served()
        assert not data or data[-2:] == b"\0\0"
        found = [p.decode_frame(w) for w in data.split(b"\0") if w]
        assert None not in found
        return [f for f in found if f]

    def ask(self, kind: int, payload: bytes = b"", same: bool = False) -> Frame:
        """The answer to a request, a new one or the last one again."""
        self.seq = (self.seq + (not same)) % 256
        number = b"" if kind == Type.HELLO else struct.pack("<I", self.number)
        *busy, frame = self.frames(p.encode_frame(self.seq, kind, number + payload))
        self.busy = busy
        assert frame.seq == self.seq
        assert frame.type in (kind | p.REPLY, Type.ERROR)
        return frame

    def good(self, kind: int, payload: bytes = b"", same: bool = False) -> bytes:
        frame = self.ask(kind, payload, same)
        assert frame.type == kind | p.REPLY, p.parse_error(frame.payload[4:])
        assert kind == Type.HELLO or frame.payload[:4] == struct.pack("<I", self.number)
        return frame.payload if kind == Type.HELLO else frame.payload[4:]

    def refused(self, kind: int, payload: bytes = b"") -> tuple[int, int]:
        """Code and position of an error."""
        frame = self.ask(kind, payload)
        assert frame.type == Type.ERROR and frame.payload[:4] == struct.pack("<I", self.number)
        request, code, position = p.parse_error(frame.payload[4:])
        assert request == kind
        return code, position

    def position(self) -> int:
        return self.refused(0x7F)[1]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here, fw = Path(__file__).parent, root() / "firmware"
    out = tmp_path_factory.mktemp("link") / "link.so"
    sources = [*sorted((fw / "link").glob("*.c")), fw / "runtime" / "crc32.c"]
    sources += [here / "fake_runtime.c", here / "memory_line.c"]
    flags = [*STRICT, "-O1", "-g", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    run(["cc", *flags, "-shared", "-fPIC", *includes("plain"), *map(str, sources), "-o", str(out)])
    return out


@pytest.fixture
def fresh(library: Path, tmp_path: Path) -> Line:
    """A device that just started."""
    own = tmp_path / "link.so"
    own.write_bytes(library.read_bytes())
    return Line(own)


@pytest.fixture
def line(fresh: Line) -> Line:
    """One that was greeted."""
    fresh.good(Type.HELLO, p.hello(HOST))
    return fresh


def test_hello(fresh: Line) -> None:
    info = p.parse_hello(fresh.good(Type.HELLO, p.hello(HOST)))
    assert (info.version, info.max_payload, info.nonce, info.status) == (p.VERSION, 1024, HOST, 0)
    assert (info.vocab, info.dim, info.ffn_dim, info.n_layers) == (VOCAB, 64, 172, LAYERS)
    assert (info.n_heads, info.n_kv_heads, info.head_dim, info.kv_len) == (8, 4, 8, KV)
    assert info.arena_bytes > 0 and info.ticks_per_second == 10**9
    assert (info.model_sha, info.plan_digest) == (SHA, PLAN)
    assert (info.board, info.model, info.position) == ("host", "fake", 0)
    fresh.good(Type.STEP, p.step(0, 5))
    assert p.parse_hello(fresh.good(Type.HELLO, p.hello(HOST))).position == 1
    # The same bytes again are a new greeting, not a repetition.
    fresh.good(Type.RESET)
    hello = p.parse_hello(fresh.good(Type.HELLO, p.hello(HOST), same=True))
    fresh.seq -= 1
    assert hello.position == 0
    assert p.parse_hello(fresh.good(Type.HELLO, p.hello(HOST + 1))).nonce == HOST + 1


def test_before_a_greeting_and_of_another(fresh: Line) -> None:
    fresh.number = 0
    assert fresh.refused(Type.STEP, p.step(0, 1)) == (p.ERR_SESSION, 0)
    assert fresh.refused(Type.QUIT) == (p.ERR_SESSION, 0)
    fresh.good(Type.HELLO, p.hello(HOST))
    for number in (HOST + 1, HOST ^ 1 << 31, HOST ^ 1 << 8, 0):
        fresh.number = number
        assert fresh.refused(Type.STEP, p.step(0, 1)) == (p.ERR_OTHER, 0)
    fresh.number = HOST
    fresh.good(Type.STEP, p.step(0, 1))
    # A frame too short for the number is of this connection, and of the wrong length.
    (frame,) = fresh.frames(p.encode_frame(99, Type.RESET, b"\1\2\3"))
    assert frame.type == Type.ERROR and frame.payload[:4] == struct.pack("<I", HOST)
    assert p.parse_error(frame.payload[4:]) == (Type.RESET, -100, 1)


def test_a_device_that_cannot_run_says_why(fresh: Line) -> None:
    fresh.lib.sf_link_status(-6)
    assert p.parse_hello(fresh.good(Type.HELLO, p.hello(HOST))).status == -6
    for kind, payload in ((Type.RESET, b""), (Type.STEP, p.step(0, 1)), (Type.COUNTERS, b"\0")):
        assert fresh.refused(kind, payload) == (-6, 0)
    assert not fresh.lib.sf_link_quit()
    fresh.good(Type.QUIT)
    assert fresh.lib.sf_link_quit()


LENGTHS = {
    Type.RESET: 0,
    Type.STEP: 8,
    Type.READ_LOGITS: 6,
    Type.TRACE: 1,
    Type.READ_TRACE: 6,
    Type.TAP: 8,
    Type.READ_TAP: 6,
    Type.COUNTERS: 1,
    Type.SET_THRESHOLDS: 52,
    Type.GENERATE: 24,
    Type.STREAM: 2,
    Type.QUIT: 0,
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_lengths(line: Line, kind: Type) -> None:
    n = LENGTHS[kind]
    for other in {0, 1, n - 1, n + 1, n + 4, 1000} - {n, -1}:
        assert line.refused(kind, bytes(other))[0] == -100
    assert line.ask(kind, bytes(n)).payload[5:9] != struct.pack("<i", -100)


def test_lengths_of_prefill_and_hello_and_unknown_types(line: Line) -> None:
    for n in (0, 4, 5, 6, 8, 10, 11, 12, 14):
        assert line.refused(Type.PREFILL, bytes(n)) == (-100, 0)
    line.good(Type.PREFILL, bytes(9))
    line.good(Type.PREFILL, p.prefill(1, [0, 0], False))
    for kind in (0, 0x13, 0x7F, 0x70):
        assert line.refused(kind) == (-101, 3)
    for n in (0, 5, 7):
        (frame,) = line.frames(p.encode_frame(98, Type.HELLO, bytes(n)))
        assert p.parse_error(frame.payload[4:]) == (Type.HELLO, -100, 3)


def test_steps_and_positions(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    for i, token in enumerate((1, 5, 699, 0, 300)):
        best = p.parse_step(line.good(Type.STEP, p.step(i, token)))
        assert best == (fake.run(token).greedy(), i + 1)
        for at in (i, i + 2, 2**31, 2**32 - 1):
            assert line.refused(Type.STEP, p.step(at, 1)) == (p.ERR_POSITION, i + 1)
            assert line.refused(Type.PREFILL, p.prefill(at, [1], True))[0] == p.ERR_POSITION
            assert line.refused(Type.GENERATE, p.generate(at, 1, 0, 1, 1))[0] == p.ERR_POSITION
    assert line.refused(Type.STEP, p.step(5, VOCAB)) == (-4, 5)
    for best in (0, 1, 2, VOCAB - 1):
        monkeypatch.setenv("FAKE_BEST", str(best))
        line.good(Type.RESET)
        assert p.parse_step(line.good(Type.STEP, p.step(0, 8))) == (best, 1)
    # The token that ends a text is the last one, and its text is empty.
    monkeypatch.setenv("FAKE_BEST", str(EOS))
    line.good(Type.STEP, p.step(1, 3))
    line.good(Type.GENERATE, p.generate(2, 50, 0, 1, 1))
    assert streamed(line) == [(Done.EOS, 2, [(EOS, b"")])]
    monkeypatch.delenv("FAKE_BEST")
    line.good(Type.RESET)
    assert line.position() == 0
    assert p.parse_step(line.good(Type.STEP, p.step(0, 7)))[0] == Fake().run(7).greedy()


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 9, p.PREFILL_CHUNK])
def test_prefill_in_blocks(line: Line, n: int) -> None:
    """Logits of the last token alone, and only when asked."""
    tokens = [i * 7 % VOCAB for i in range(n)]
    assert p.parse_u32(line.good(Type.PREFILL, p.prefill(0, tokens, True))) == n
    got = p.parse_f32(line.good(Type.READ_LOGITS, p.read(0, 200)))
    assert np.array_equal(got, Fake().run(*tokens).logits()[:200])
    assert p.parse_u32(line.good(Type.PREFILL, p.prefill(n, tokens, False))) == 2 * n
    assert line.refused(Type.READ_LOGITS, p.read(0, 1))[0] == -104
    assert line.refused(Type.GENERATE, p.generate(2 * n, 1, 0, 1, 1))[0] == -104
    bad = [3] * n
    bad[-1] = VOCAB
    line.good(Type.STEP, p.step(2 * n, 1))
    assert line.refused(Type.PREFILL, p.prefill(2 * n + 1, bad, True))[0] == -4
    assert line.refused(Type.READ_LOGITS, p.read(0, 1))[0] == -104


def test_logits_end_with_what_they_are_of(line: Line) -> None:
    assert line.refused(Type.READ_LOGITS, p.read(0, 1))[0] == -104
    line.good(Type.STEP, p.step(0, 1))
    line.good(Type.READ_LOGITS, p.read(0, 1))
    line.refused(Type.STEP, p.step(1, VOCAB))
    assert line.refused(Type.READ_LOGITS, p.read(0, 1))[0] == -104
    line.good(Type.STEP, p.step(1, 1))
    line.good(Type.RESET)
    assert line.refused(Type.READ_LOGITS, p.read(0, 1))[0] == -104
    assert line.refused(Type.GENERATE, p.generate(0, 1, 0, 1, 1))[0] == -104


READS: dict[Type, tuple[int, int, Callable[[], np.ndarray]]] = {
    Type.READ_LOGITS: (VOCAB, 0, lambda: Fake().run(9).logits().view(np.uint32)),
    Type.READ_TRACE: (
        LAYERS * 7,
        0,
        lambda: (
            Fake().run(9).state + 100 * np.arange(LAYERS)[:, None] + np.arange(7)
        ).astype(np.uint32).ravel(),
    ),
    Type.READ_TAP: (
        600,
        4,
        lambda: (np.arange(600, dtype=np.float32) + np.float32(3004.5)).view(np.uint32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", READS)
def test_reads(line: Line, kind: Type) -> None:
    """Any part, as much as a reply holds, and nothing beside it."""
    n, head, values = READS[kind]
    line.good(Type.TRACE, b"\2")
    line.good(Type.TAP, p.tap(3, 4))
    line.good(Type.STEP, p.step(0, 9))
    want, most = values(), (ANSWER - head) // 4
    assert most == (p.TAP_CHUNK if head else p.CHUNK)
    for at, count in ((0, most), (n - most, most), (n - 1, 1), (n, 0), (0, 0), (17, 3), (256, 9)):
        got = line.good(kind, p.read(at, count))
        assert got[:head] == struct.pack("<I", n)[:head]
        assert np.array_equal(p.parse_u32s(got[head:]), want[at : at + count])
    beyond = [(0, most + 1), (0, 1 << 14), (0, 2**16 - 1), (n - 1, 2), (n, 1), (n + 1, 0)]
    beyond += [(at, c) for at in (n + 1, 2**30, 2**31, 2**32 - 1) for c in (0, 1, most)]
    for at, count in beyond:
        assert line.refused(kind, p.read(at, count)) == (-5, 1), (at, count)


def test_trace_and_tap_are_set(line: Line) -> None:
    assert line.good(Type.TRACE, b"\1") == b""
    line.good(Type.STEP, p.step(0, 9))
    assert any(line.good(Type.READ_TRACE, p.read(0, 9)))
    line.good(Type.TRACE, b"\0")
    assert not any(line.good(Type.READ_TRACE, p.read(0, 9)))
    for layer, site in ((LAYERS, 0), (2**31, 0), (0, 7), (0, 2**31)):
        assert line.refused(Type.TAP, p.tap(layer, site)) == (-5, 1)


def test_counters(line: Line) -> None:
    """Each in its place, with all its bits; cleared when asked."""
    counters = line.lib.sf_get_counters().contents
    want = {}
    for i, (name, _) in enumerate(Counters._fields_):
        want[name] = (i + 1) * 0x0123456789ABCDEF % 2**64
        setattr(counters, name, want[name])
    for clear in (b"\0", b"\2"):
        assert p.parse_counters(line.good(Type.COUNTERS, clear)) == want
    assert not any(p.parse_counters(line.good(Type.COUNTERS, b"\0")).values())


def test_thresholds(line: Line) -> None:
    line.lib.sf_get_thresholds.restype = ctypes.POINTER(ctypes.c_float)
    limits = [0.5 * i + 0.25 for i in range(12)]
    line.good(Type.SET_THRESHOLDS, p.set_thresholds(7, limits))
    assert line.lib.sf_get_thresholds(7)[:12] == limits
    assert line.refused(Type.SET_THRESHOLDS, p.set_thresholds(LAYERS, limits)) == (-5, 0)


def streamed(line: Line, credit: int = 400) -> list[tuple[Done, int, list[tuple[int, bytes]]]]:
    """Replies of a generation until it is done."""
    out = [p.parse_stream(line.good(Type.STREAM, p.stream(credit)))]
    while out[-1][0] == Done.RUNNING:
        out.append(p.parse_stream(line.good(Type.STREAM, p.stream(credit))))
    assert line.refused(Type.STREAM, p.stream(1))[0] == -105
    return out


@pytest.mark.parametrize("n", [0, 1, 2, 33, 300])
@pytest.mark.parametrize("credit", [1, 7, 400])
def test_generation(line: Line, n: int, credit: int) -> None:
    """Tokens and texts as the runtime gives them, as many a reply as credit and room allow."""
    assert line.refused(Type.STREAM, p.stream(1))[0] == -105
    line.good(Type.PREFILL, p.prefill(0, [1, 2], True))
    line.good(Type.GENERATE, p.generate(2, n, 0, 1, 1))
    replies = streamed(line, credit)
    tokens = [t for _, _, part in replies for t in part]
    want = Fake().run(1, 2).generate(n)
    assert tokens == want
    assert replies[-1][0] == Done.COUNT
    assert line.position() == 2 + max(len(want) - 1, 0) == replies[-1][1]
    for done, _, part in replies[:-1]:
        assert done == Done.RUNNING
        used = sum(6 + len(text) for _, text in part)
        # Full, or there was room for no text that comes next.
        assert len(part) == credit or ANSWER - 7 - 14 < used <= ANSWER - 7


def test_generation_ends_with_the_cache(line: Line) -> None:
    for at in range(0, KV - 4, 224):
        line.good(Type.PREFILL, p.prefill(at, [1] * 224, True))
    line.good(Type.GENERATE, p.generate(KV - 4, 100, 0, 1, 1))
    replies = streamed(line)
    assert replies[-1][0] == Done.CONTEXT and line.position() == KV
    assert sum(len(part) for _, _, part in replies) == 5
    # A generation that was begun ends with what comes between.
    for kind, payload in (
        *((Type.RESET, b""), (Type.STEP, p.step(1, 1))),
        *((Type.PREFILL, p.prefill(1, [1], True)), (Type.HELLO, p.hello(HOST))),
    ):
        line.good(Type.RESET)
        line.good(Type.STEP, p.step(0, 3))
        line.good(Type.GENERATE, p.generate(1, 100, 0, 1, 1))
        assert len(p.parse_stream(line.good(Type.STREAM, p.stream(1)))[2]) == 1
        line.good(kind, payload)
        assert line.refused(Type.STREAM, p.stream(1))[0] == -105


def test_generation_ends_with_a_failed_read(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.good(Type.PREFILL, p.prefill(0, [1, 2], True))
    line.good(Type.GENERATE, p.generate(2, 100, 1, 1, 1))
    line.good(Type.STREAM, p.stream(3))
    monkeypatch.setenv("FAKE_FAILS_AT", "4")
    assert line.refused(Type.STREAM, p.stream(3)) == (-1, 4)
    monkeypatch.delenv("FAKE_FAILS_AT")
    assert line.refused(Type.STREAM, p.stream(3)) == (-105, 4)
    assert line.refused(Type.READ_LOGITS, p.read(0, 1)) == (-104, 4)


def test_settings_of_a_generation(line: Line) -> None:
    line.good(Type.STEP, p.step(0, 1))
    nan, inf = float("nan"), float("inf")
    for t, top_p in ((nan, 1), (-1e-3, 1), (1.01e6, 1), (inf, 1), (1, nan), (1, -0.1), (1, 1.01)):
        assert line.refused(Type.GENERATE, p.generate(1, 3, t, top_p, 1)) == (-5, 1)
    found = []
    for seed, t in ((1, 1.0), (2**40 + 1, 1.0), (1, 0.0), (1, 1e6)):
        for top_p in (0.0, 1.0):
            line.good(Type.GENERATE, p.generate(1, 1, t, top_p, seed))
            found += [token for _, _, part in streamed(line) for token, _ in part]
    assert found[::2] == found[1::2]  # the fake does not look at it
    one, other = (
        (s * 6364136223846793005 + 1442695040888963407) % 2**64 >> 40 for s in (1, 2**40 + 1)
    )
    best = Fake().run(1).greedy()
    assert found[::2] == [(best + one) % VOCAB, (best + other) % VOCAB, best, (best + one) % VOCAB]


def test_a_slow_device_speaks(line: Line) -> None:
    """BUSY after a quarter of a second of a prompt, and a token at least a twentieth."""
    tokens = list(range(1, 41))  # 10 blocks of 4; each looks at the clock
    for pace, rate, busy in (
        (0, 1000, 0),
        (100, 1000, 4),
        (250, 1000, 9),
        (0, 0, 9),
        (27, 1000, 0),
    ):
        line.set("pace", pace)
        line.set("rate", rate)
        line.good(Type.RESET)
        line.good(Type.PREFILL, p.prefill(0, tokens, True))
        if pace == 27:  # one look at the clock a block: 9 of 27 ms are just less than 250
            assert not line.busy
        elif pace == 100:  # at every third look at least
            assert 2 <= len(line.busy) <= busy
        else:
            assert len(line.busy) == busy
        for frame in line.busy:
            assert frame == Frame(line.seq, Type.BUSY, struct.pack("<I", HOST))
        line.good(Type.GENERATE, p.generate(40, 30, 0, 1, 1))
        sizes = [len(part) for _, _, part in streamed(line)]
        if pace >= 100 or rate == 0:
            assert set(sizes) == {1}
        elif pace == 0:
            assert sizes == [len(Fake().run(*tokens).generate(30))]
        else:
            assert max(sizes) == 2


def test_a_repetition_runs_once(line: Line) -> None:
    first = line.good(Type.STEP, p.step(0, 4))
    assert line.good(Type.STEP, p.step(0, 4), same=True) == first
    assert line.position() == 1
    line.good(Type.STEP, p.step(1, 4))
    # Another type, length, payload or number with the same sequence number is a request of its own.
    seq = line.seq
    line.good(Type.STEP, p.step(2, 4), same=True)
    assert line.seq == seq and line.position() == 3
    line.seq = seq
    line.good(Type.RESET, same=True)
    assert line.position() == 0
    line.good(Type.STEP, p.step(0, 4))
    line.good(Type.STEP, p.step(1, 4))
    assert line.position() == 2


def test_damage_is_told_and_forgotten(line: Line) -> None:
    good = p.encode_frame(7, Type.STEP, struct.pack("<I", HOST) + p.step(0, 4))
    body = good.strip(b"\0")
    for at in range(len(body)):
        for bit in (0, 7):
            bad = bytes([*body[:at], body[at] ^ 1 << bit, *body[at + 1 :]])
            answers = line.frames(bad + b"\0\0")
            assert answers and {(f.seq, f.type, f.payload) for f in answers} == {(0, Type.NAK, b"")}
    assert line.position() == 0
    for n in range(1, 6):  # less than a frame, with a sum that is right or not
        (frame,) = line.frames(p.cobs.encode(bytes(n)) + b"\0")
        assert frame.type == Type.NAK
    # No frame is this long; then the line is as before, whatever came in which pieces.
    for n in (1034, 1036, 5000):
        for byte in (b"\1", b"\xff", b"\2"):
            (frame,) = line.frames(byte * n + b"\0")
            assert frame.type == Type.NAK
    most = p.MAX_PAYLOAD
    for byte in (0, 1, 255):
        frame = line.frames(p.encode_frame(8, Type.RESET, bytes([byte]) * most))[-1]
        assert frame.type == Type.ERROR
    line.write(good[:9])
    assert line.served() == b""
    (frame,) = line.frames(good[9:])
    assert frame.type == Type.STEP | p.REPLY
    two = [
        p.encode_frame(s, Type.STEP, struct.pack("<I", HOST) + p.step(s - 9, 4)) for s in (10, 11)
    ]
    assert [f.seq for f in line.frames(b"\0\0" + b"".join(two))] == [10, 11]
    assert line.position() == 3


@pytest.mark.parametrize("most", [1, 3, 100])
def test_a_line_that_takes_little_at_once(line: Line, most: int) -> None:
    line.set("most", most)
    line.good(Type.STEP, p.step(0, 9))
    got = line.good(Type.READ_LOGITS, p.read(0, 255))
    assert np.array_equal(p.parse_f32(got), Fake().run(9).logits()[:255])


def test_a_line_that_is_gone(line: Line) -> None:
    """While it reads and while it answers; a fresh line begins anew."""
    assert not line.lib.sf_link_gone()
    line.set("gone", 1)
    assert not line.lib.sf_link_poll() and line.lib.sf_link_gone()
    line.set("gone", 0)
    line.seq = 20
    line.write(b"\5\5\5")  # the start of a frame, and of a greeting none
    assert not line.lib.sf_link_run()  # ends when nothing comes
    line.set("gone", 0)
    data = p.encode_frame(1, Type.STEP, struct.pack("<I", HOST) + p.step(0, 4))
    line.write(data + p.encode_frame(2, Type.HELLO, p.hello(HOST)) + data)
    line.write(p.encode_frame(3, Type.QUIT, struct.pack("<I", HOST)) + data)
    assert line.lib.sf_link_run() and line.lib.sf_link_quit()
    answers = [p.decode_frame(w) for w in line.served().split(b"\0") if w]
    assert [f.type for f in answers if f] == [Type.ERROR, 0x81, 0x84, 0x8E]


def test_the_client_over_it(library: Path, tmp_path: Path) -> None:
    own = tmp_path / "link.so"
    own.write_bytes(library.read_bytes())
    with Device.connect(Line(own), "memory", SHA, PLAN, timeout=0.5) as d:
        assert list(d.generate([1, 2], 50)) == Fake().run(1, 2).generate(50)
        d.quit()
        with pytest.raises(LinkError):
            d.step(1)
