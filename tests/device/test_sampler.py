"""The sampler on logits and settings that are no sensible numbers."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

from conftest import BITS, flags_of
from sparseflash.base.files import root
from sparseflash.codegen.build import STRICT, includes
from sparseflash.image.reference import exp2n

MODEL = Path(__file__).parents[1] / "golden" / "dense-q4"  # for its sf_model.h
VOCAB = 160
F32 = np.float32


class Sampler(ctypes.Structure):
    """sf_sampler of sf_runtime.h."""

    _fields_ = [
        ("temperature", ctypes.c_float),
        ("top_p", ctypes.c_float),
        ("seed", ctypes.c_uint64),
    ]


def sampled(logits: np.ndarray, temperature: float, top_p: float, seed: int, n: int) -> list[int]:
    """docs/SPEC.md, "Sampling", in Python: the first ``n`` tokens."""
    best = int(np.argmax(np.nan_to_num(logits, nan=-np.inf)))
    if not temperature > 0:
        return [best] * n
    scale = F32(94548.46) / F32(temperature)
    m, e = exp2n(np.minimum((logits[best] - logits) * scale, F32(2031616)).astype(np.int64))
    weight = [int(w) for w in (m << 8) >> e]
    if top_p < 1:
        need, held, least = int(F32(sum(weight)) * F32(top_p)), 0, 0
        for least in sorted(weight, reverse=True):
            held += least
            if held >= need:
                break
        weight = [w if w >= least else 0 for w in weight]
    step = 6364136223846793005, 1442695040888963407
    state = (seed * step[0] + step[1]) % 2**64

    def pcg32() -> int:
        nonlocal state
        word, turn = (state >> 18 ^ state) >> 27 & 0xFFFFFFFF, state >> 59
        state = (state * step[0] + step[1]) % 2**64
        return (word >> turn | word << (32 - turn)) & 0xFFFFFFFF

    out = []
    for _ in range(n):
        high = pcg32()
        pick = (high << 32 | pcg32()) % sum(weight)
        out.append(int(np.searchsorted(np.cumsum(weight), pick, side="right")))
    return out


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The sampler with logits that a test writes."""
    folder = tmp_path_factory.mktemp("sampler")
    (folder / "logits.c").write_text(
        "float given[160];\nconst float *sf_logits(void);\n"
        "const float *sf_logits(void) { return given; }\n"
    )
    sources = [folder / "logits.c", root() / "firmware" / "runtime" / "sample.c"]
    flags = [*STRICT, "-O1", "-shared", "-fPIC", *includes("plain"), f"-I{MODEL}"]
    command = ["cc", *flags, *map(str, sources), "-o", str(folder / "sampler.so"), "-lm"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "sampler.so"))


def drawn(
    library: ctypes.CDLL, logits: np.ndarray, temperature: float, top_p: float, seed: int, n: int
) -> list[int]:
    (ctypes.c_float * VOCAB).in_dll(library, "given")[:] = logits
    s = Sampler()
    library.sf_sampler_init(
        ctypes.byref(s), ctypes.c_float(temperature), ctypes.c_float(top_p), ctypes.c_uint64(seed)
    )
    return [library.sf_sample(ctypes.byref(s)) for _ in range(n)]


def test_the_tokens_of_the_specification(library: ctypes.CDLL) -> None:
    """Spreads from flat to greedy, from one token to all, seeds of every size."""
    rng = np.random.default_rng(8)
    seen = set()
    for k in range(150):
        logits = (rng.standard_normal(VOCAB) * 10.0 ** rng.uniform(-3, 1.5)).astype(F32)
        if k % 3 == 0:  # equal weights at the limit
            logits = np.round(logits * 2) / 2
        temperature = (1.0, 0.3, 2.5, 40.0)[k % 4]
        top_p = (1.0, 0.9, 0.5, 0.05, 0.0, 0.999, 1 - 2**-24)[k % 7]
        seed = int(rng.integers(0, 2**63)) * 2 + k % 2 if k % 5 else k
        want = sampled(logits, temperature, top_p, seed, 12)
        assert drawn(library, logits, temperature, top_p, seed, 12) == want, k
        seen |= set(want)
    assert len(seen) > VOCAB // 2


def test_greedy_and_the_ends(library: ctypes.CDLL) -> None:
    logits = np.zeros(VOCAB, F32)
    logits[[7, 90]] = 3.0
    for temperature in (0.0, -1.0, float("nan"), -0.0):
        assert drawn(library, logits, temperature, 1.0, 3, 2) == [7, 7]  # the first of equal ones
    assert drawn(library, logits[::-1].copy(), 0.0, 1.0, 3, 1) == [69]
    # The least temperature: of two equal ones either, and nothing else.
    assert set(drawn(library, logits, 1e-30, 1.0, 3, 50)) == {7, 90}
    assert set(drawn(library, logits, 1e-30, 0.0, 3, 50)) == {7, 90}
    logits[90] = np.nextafter(F32(3), F32(0))
    # No lower than 1e-6, at which so small a gap still shows.
    assert drawn(library, logits, 1e-9, 1.0, 4, 40) == sampled(logits, 1e-6, 1.0, 4, 40)
    assert len(set(drawn(library, logits, 1e-6, 1.0, 4, 40))) == 2
    # top_p that is no number or above 1 keeps all, below 0 the largest.
    for top_p, same in ((float("nan"), 1.0), (7.0, 1.0), (-3.0, 0.0)):
        want = sampled(logits, 5.0, same, 9, 20)
        assert drawn(library, logits, 5.0, top_p, 9, 20) == want
    # The last token may be drawn, and logits that are no numbers give the first.
    logits[:] = -100.0
    logits[VOCAB - 1] = 0.0
    assert drawn(library, logits, 1.0, 1.0, 1, 3) == [VOCAB - 1] * 3
    logits[:] = float("nan")
    assert drawn(library, logits, 1.0, 1.0, 1, 3) == [0, 0, 0]


@pytest.mark.parametrize("bits", BITS)
def test_any_logits_and_settings(tmp_path: Path, bits: int) -> None:
    fw = root() / "firmware"
    flags = [*STRICT, *flags_of(bits), "-O1", "-g1", "-fsanitize=undefined,float-divide-by-zero"]
    flags += ["-fno-sanitize-recover=all", *includes("plain"), f"-I{MODEL}"]
    sources = [Path(__file__).with_name("sampler_main.c"), fw / "runtime" / "sample.c"]
    exe = tmp_path / "sampler"
    made = subprocess.run(
        ["cc", *flags, *map(str, sources), "-o", str(exe), "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    done = subprocess.run([exe], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 20_000
