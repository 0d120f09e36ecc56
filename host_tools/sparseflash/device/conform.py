"""What any port of the firmware must do: the checks of ``sparseflash conform``, one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sparseflash.base.errors import SparseflashError
from sparseflash.device.link import protocol as p
from sparseflash.device.link.client import Device
from sparseflash.device.validate import validate
from sparseflash.image.reference import Reference
from sparseflash.image.sfm import Image

NOISE = bytes(range(256)) * 2 + b"\0\0"
TOKENS = 16
"""Of the greedy generation whose digest is compared."""


@dataclass(frozen=True)
class Check:
    """A demand on a port, whether it is met, and what was seen."""

    name: str
    passed: bool
    seen: str


def digest(tokens: list[int]) -> str:
    """Of generated tokens, as ``bench`` prints it."""
    return hashlib.sha256(repr(tokens).encode()).hexdigest()[:16]


def expected_tokens(image: Image, prompt: list[int], thresholds: np.ndarray, n: int) -> list[int]:
    """What the integer reference generates greedily."""
    ids = list(prompt)
    for _ in range(n):
        logits = Reference(image).run(np.array(ids), thresholds).logits
        ids.append(int(np.argmax(logits[-1])))
    return ids[len(prompt) :]


def _says_who_it_is(device: Device, board: str) -> str:
    info = device.info()
    if info.board != board:
        raise SparseflashError(f"it says that it is {info.board!r}")
    if info.version != p.VERSION or not info.kv_len:
        raise SparseflashError(f"link version {info.version}, {info.kv_len} positions")
    return f"link version {info.version}, {info.kv_len} positions, {info.arena_bytes:,} bytes"


def _equals(device: Device, image: Image, ids: np.ndarray, thresholds: np.ndarray) -> str:
    found = validate(device, image, ids, thresholds)
    if found is not None:
        raise SparseflashError(str(found))
    return f"{len(ids)} positions, {image.spec.n_layers} layers, 7 sites"


def _generates(device: Device, prompt: list[int], want: str) -> str:
    device.reset()
    device.prefill(prompt[:-1])
    token, out = prompt[-1], []
    for _ in range(TOKENS):
        token = device.step(token)
        out.append(token)
    if digest(out) != want:
        raise SparseflashError(f"digest {digest(out)}, the reference's is {want}")
    return f"digest {want}"


def _refuses(device: Device) -> str:
    """Requests that must fail, each with its code; the device goes on afterwards."""
    device.reset()
    info = device.info()
    asked = {
        "a token outside the vocabulary": (p.Type.STEP, p.step(0, info.vocab), -4),
        "a request of the wrong length": (p.Type.RESET, b"\1", -100),
        "a layer that is not there": (p.Type.TAP, p.tap(info.n_layers, 0), -5),
        "logits before a step": (p.Type.READ_LOGITS, p.read(0, 1), -104),
    }
    for what, (kind, payload, want) in asked.items():
        got = device.refusal(kind, payload)
        if got != want:
            raise SparseflashError(f"{what} is answered by {got}, not by {want}")
    device.prefill([1] * info.kv_len)
    if (got := device.refusal(p.Type.STEP, p.step(info.kv_len, 1))) != -3:
        raise SparseflashError(f"a full KV cache is answered by {got}, not by -3")
    device.reset()
    device.step(1)
    return f"{1 + len(asked)} kinds, and it goes on"


def _survives_noise(device: Device) -> str:
    device.reset()
    device.noise(NOISE)
    first = device.step(1)
    device.counters(clear=True)
    second = device.step(first)
    device.noise(device.last_step(first))  # the same frame again: answered, not run again
    tokens = device.counters()["tokens"]
    if tokens != 1 or device.step(second) < 0:
        raise SparseflashError(f"a repeated request ran: {tokens} tokens were counted for one")
    return f"{len(NOISE)} bytes of noise, a request sent twice"


def _counts(
    device: Device, image: Image, ids: np.ndarray, thresholds: np.ndarray, streams: bool
) -> str:
    device.reset()
    device.counters(clear=True)
    device.prefill([int(i) for i in ids])
    seen = device.counters()
    h = [s["h"] for s in Reference(image).run(ids, thresholds).sites]
    neurons = sum(int(np.count_nonzero(site)) for site in h)
    everything = len(ids) * image.spec.n_layers * image.spec.ffn_dim
    if seen["tokens"] != len(ids):
        raise SparseflashError(f"{seen['tokens']} tokens for {len(ids)}")
    if not neurons <= seen["neurons"] < everything:
        raise SparseflashError(f"{seen['neurons']} active neurons, the reference has {neurons}")
    least = 1 if streams else seen["bytes"]
    if not 0 < seen["bytes_ffn"] < seen["bytes"] or seen["bytes_read"] < least:
        raise SparseflashError(
            f"{seen['bytes_ffn']} bytes of FFN in {seen['bytes']} of all weights, and "
            f"{seen['bytes_read']} read from flash, which have to be {least} or more"
        )
    parts = sum(seen[f"time_{part}"] for part in ("attn", "ffn", "head"))
    if device.info().ticks_per_second and not 0 < parts <= seen["time_total"]:
        raise SparseflashError(f"{parts} ticks of stages in {seen['time_total']} of all")
    size, active = seen["bytes"] / len(ids), seen["neurons"] / len(ids)
    return f"{size:,.0f} bytes and {active:.0f} neurons a token"


def checks_of(
    connect: Callable[[], Device],
    board: str,
    image: Image,
    thresholds: np.ndarray,
    streams: bool = False,
) -> Iterator[Check]:
    """Each check in turn, on a device that ``connect`` opens; they go on after one that fails.

    thresholds: float32 (layers, thresholds) that the program was generated with.
    streams: some of its weights stay in RAM, so that fewer bytes are read than used.
    """
    rng = np.random.default_rng(1)
    ids = rng.integers(3, image.spec.vocab, 12)
    prompt = [int(i) for i in ids[:4]]
    want = digest(expected_tokens(image, prompt, thresholds, TOKENS))
    checks: list[tuple[str, Callable[[Device], str]]] = [
        ("starts and says who it is", lambda d: _says_who_it_is(d, board)),
        ("logits and sites equal the reference", lambda d: _equals(d, image, ids, thresholds)),
        ("generates the reference's tokens", lambda d: _generates(d, prompt, want)),
        ("refuses what it cannot do", _refuses),
        ("noise and repeated requests", _survives_noise),
        ("counters", lambda d: _counts(d, image, ids, thresholds, streams)),
    ]
    for name, run in checks:
        try:
            with connect() as device:
                yield Check(name, True, run(device))
        except SparseflashError as e:
            yield Check(name, False, str(e))
