"""libFuzzer on the device's C, in 64 and 32 bits, and atheris on the host's side of the line.

Of the device: the line's parser, and the image that is read at start. `make test` runs a sample
from the kept corpora, `make faults` a million inputs each. A crash names the input that made it;
put it into the corpus with what mends it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import BITS, flags_of, random_model
from sparseflash.base.files import root
from sparseflash.codegen.build import STRICT, includes, kernel_sources, runtime_sources
from sparseflash.codegen.generate import generate
from sparseflash.image.formats import THRESHOLDS, Formats
from sparseflash.image.needs import Needs
from sparseflash.image.pack import pack
from sparseflash.image.proxy import Proxies
from sparseflash.image.sfm import Image
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan

HERE = Path(__file__).parent
ALL = os.environ.get("SPARSEFLASH_FAULTS") == "all"
RUNS = 1_000_000 if ALL else 3_000
SEED = 15
STREAM = {"align": 64, "gap": 64, "ring_buffers": 3, "ring_bytes": 1024}
STREAM |= {"pick_buffers": 2, "pick_bytes": 512, "program_bytes": 500}
# Scales that no grid has overflow in kernels, which the generated numbers never do; what is held is
# that they reach no other memory.
UNCHECKED = "-fno-sanitize=signed-integer-overflow,shift"


def build(exe: Path, bits: int, flags: list[str], sources: list[Path]) -> Path:
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    common = ["clang", *flags_of(bits), *STRICT, "-O2", "-g", *flags, *includes("plain")]
    checks = ["-fno-sanitize-recover=all", UNCHECKED]
    # Kernels are checked, and steer nothing: the fuzzer need not look at their branches.
    kernels = [s for s in sources if "kernels" in s.parts]
    command = [*common, "-fsanitize=address,undefined", *checks, "-c", *map(str, kernels)]
    if kernels:
        subprocess.run(command, cwd=exe.parent, capture_output=True, check=False)
    sources = [s for s in sources if s not in kernels] + sorted(exe.parent.glob("*.o"))
    command = [*common, "-fsanitize=fuzzer,address,undefined", *checks]
    done = subprocess.run(
        [*command, *map(str, sources), "-lm", "-o", str(exe)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "libclang_rt.fuzzer" in done.stderr:
        pytest.skip("clang's libFuzzer is not installed (libclang-rt-dev)")
    assert done.returncode == 0, done.stderr
    return exe


def ran(command: list[object], **env: str) -> int:
    """How many inputs a program of libFuzzer says that it ran."""
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs, done.stderr[-400:]
    return int(runs[1])


def fuzz(program: list[object], corpus: str, longest: int, folder: Path, runs: int = RUNS) -> int:
    """The kept inputs and their changes; new ones stay in ``folder``. How many ran."""
    own = folder / "corpus"
    own.mkdir()
    options: dict[str, object] = {"runs": runs, "seed": SEED, "max_len": longest, "timeout": 60}
    # The peak that libFuzzer reads begins at that of the process which started it: here pytest
    # with torch. So a single allocation is limited and the peak is not.
    options |= {"rss_limit_mb": 0, "malloc_limit_mb": 256}
    options["artifact_prefix"] = f"{folder}/"
    flags = [f"-{name}={value}" for name, value in options.items()]
    image = str(folder / "model.sfm")
    n = ran([*program, *flags, own, HERE / "corpus" / corpus], SPARSEFLASH_IMAGE=image)
    assert n >= runs
    return n


def test_client(tmp_path: Path, count: Counter[str]) -> None:
    pytest.importorskip("atheris")
    program = [sys.executable, HERE / "fuzz_client.py"]
    count["atheris, the link's host side"] += fuzz(program, "client", 600, tmp_path)


@pytest.mark.parametrize("bits", BITS)
def test_link(bits: int, tmp_path: Path, count: Counter[str]) -> None:
    fw = root() / "firmware"
    sources = [HERE / "fuzz_link.c", *sorted((fw / "link").glob("*.c"))]
    sources += [fw / "runtime" / "crc32.c", HERE.parent / "device" / "fake_runtime.c"]
    exe = build(tmp_path / "fuzz", bits, [], sources)
    count[f"libFuzzer, the link's device side, {bits} bits"] += fuzz([exe], "link", 3000, tmp_path)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("flash", ["map", "stream"])
def test_image(flash: str, bits: int, host: Board, tmp_path: Path, count: Counter[str]) -> None:
    """Without sums made right, what starts gives the good image's logits; with them, it is safe."""
    model = random_model(
        vocab=48, dim=32, ffn_dim=40, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=8
    )
    pack(model, tmp_path / "model.sfm", Formats(), Needs(predictor=Proxies(2)))
    image = Image(tmp_path / "model.sfm")
    limits = np.zeros((1, len(THRESHOLDS)), np.float32)
    limits[:, THRESHOLDS.index("predictor")] = 0.05
    limits[:, THRESHOLDS.index("h")] = 0.02
    board, ram, more = host, None, []
    if flash == "stream":
        board = replace(host, raw={**host.raw, "stream": STREAM})
        ram, more = 16_000, [HERE / "fault_flash.c"]
    generate(make_plan(image, board, limits, kv_len=16, ram=ram), tmp_path / "gen")
    port = root() / "firmware" / "port" / "library" / "port.c"
    sources = [HERE / "fuzz_image.c", tmp_path / "gen" / "sf_model.c", *runtime_sources(flash)]
    sources += [*kernel_sources("plain"), port, *more]
    exe = build(tmp_path / "fuzz", bits, [f"-I{tmp_path / 'gen'}"], sources)
    what = f"an image ({flash}), {bits} bits"
    count[f"libFuzzer, {what}"] += fuzz([exe], "image", 400, tmp_path)
    every = {"SPARSEFLASH_IMAGE": str(image.path), "SPARSEFLASH_EVERY": "1" if ALL else "997"}
    count[f"every byte, length and order of {what}"] += ran([exe], **every)
