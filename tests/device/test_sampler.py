"""The sampler on logits and settings that are no sensible numbers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sparseflash.base.files import root
from sparseflash.codegen.build import STRICT, includes


@pytest.mark.parametrize("machine", ["-m64", "-m32"])
def test_any_logits_and_settings(tmp_path: Path, machine: str) -> None:
    fw = root() / "firmware"
    model = Path(__file__).parents[1] / "golden" / "dense-q4"  # for its sf_model.h
    flags = [*STRICT, machine, "-O1", "-g", "-fsanitize=undefined,float-divide-by-zero"]
    flags += ["-fno-sanitize-recover=all", *includes("plain"), f"-I{model}"]
    sources = [Path(__file__).with_name("sampler_main.c"), fw / "runtime" / "sample.c"]
    exe = tmp_path / "sampler"
    made = subprocess.run(
        ["cc", *flags, *map(str, sources), "-o", str(exe), "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode and machine == "-m32":
        pytest.skip("no C library of 32 bits")
    assert made.returncode == 0, made.stderr
    done = subprocess.run([exe], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 20_000
