"""Generated C of each shape as it stands in tests/golden, clean for compilers and formatter.

`make golden` (pytest --update-golden) writes the files anew; look at the difference before you
commit it.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import random_factors, random_model, random_predictor
from sparseflash.codegen.build import STRICT, includes
from sparseflash.codegen.generate import render
from sparseflash.image.reference import THRESHOLDS
from sparseflash.image.sfm import Formats, Image, pack
from sparseflash.model.spec import Activation, LayerSpec
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan

GOLDEN = Path(__file__).parents[1] / "golden"
STREAM = {
    "align": 512,
    "gap": 256,
    "ring_buffers": 3,
    "ring_bytes": 4096,
    "pick_buffers": 2,
    "pick_bytes": 2048,
}
GEMMA: dict[str, Any] = {
    "qk_norm": True,
    "sandwich_norms": True,
    "activation": Activation.GELU_TANH,
    "embed_scale": 8.0,
    "layers": (LayerSpec(window=16), LayerSpec(rope_theta=1e6, rope_scale=8.0)),
}


@dataclass(frozen=True)
class Shape:
    """A model, how it is stored, and what its plan drops."""

    formats: Formats
    model: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    ahead: bool = False
    factored: bool = False
    stream: bool = False
    head_rows: int = 0
    speculate: str = ""


SPLIT = Formats(layout="split")
SHAPES = {
    "dense-q4": Shape(Formats("q4", "q4", "q8")),
    "gated-q8": Shape(Formats("q8", "q8", "q8"), limits={"gate": 0.25, "h": 0.125}),
    "r8-columns": Shape(Formats("r8", "r8", "r8"), limits={"h": 0.125}),
    "r8-rows": Shape(Formats("r8", "r8", "q8", down="rows"), {"attn_bias": True}),
    "input-columns": Shape(
        Formats("q8", "q4", "q8", columns=("qkv gate", "o up")), limits={"h": 0.125}
    ),
    "predictor-ahead": Shape(replace(SPLIT, rank=32), limits={"guess": 0.25}, ahead=True),
    "signs": Shape(Formats(signs=True), {"activation": Activation.RELU}, limits={"guess": 33.0}),
    "factors": Shape(replace(SPLIT, attn="q8"), factored=True),
    "gemma-screened-head": Shape(Formats("q8", "q4", "q8", head_proxy="q4"), GEMMA, head_rows=16),
    "stream-prefetch": Shape(
        replace(SPLIT, guess=2),
        limits={"guess": 0.25, "h": 0.125},
        stream=True,
        speculate="prox-2",
    ),
}


def rendered(shape: Shape, host: Board, folder: Path) -> dict[str, str]:
    """The files of a shape, without what changes with every version: hashes and the banner."""
    model = random_model(**shape.model)
    f = shape.formats
    predictor = random_predictor(model.spec, f.rank, shape.ahead) if f.rank else None
    factors = random_factors(model.spec, f.attn, f.ffn) if shape.factored else None
    pack(model, folder / "model.sfm", f, None, predictor, factors)
    image = Image(folder / "model.sfm")
    limits = np.zeros((model.spec.n_layers, len(THRESHOLDS)), np.float32)
    for site, limit in shape.limits.items():
        limits[:, THRESHOLDS.index(site)] = limit
    board, ram = host, None
    if shape.stream:
        board = replace(host, raw={**host.raw, "layout": "split", "stream": STREAM})
        ram = 60_000
    plan = make_plan(
        image,
        board,
        limits,
        kv_len=32,
        ram=ram,
        head_rows=shape.head_rows,
        speculate=shape.speculate,
    )
    plan["model_sha"] = "00" * 32
    return render(plan, digest="00" * 32, banner="An example of generated code.")


@pytest.mark.parametrize("name", SHAPES)
def test_generated_c(
    name: str, host: Board, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    texts = rendered(SHAPES[name], host, tmp_path)
    folder = GOLDEN / name
    if request.config.getoption("--update-golden"):
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (folder / file).write_text(text)
    for file, text in texts.items():
        golden = (folder / file).read_text()
        assert text == golden, f"{folder / file} differs; look at it after `make golden`"


def test_no_golden_is_left_over() -> None:
    assert {p.name for p in GOLDEN.iterdir() if p.is_dir()} == set(SHAPES)


@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("name", SHAPES)
def test_compiles_without_a_warning(name: str, cc: str, tmp_path: Path) -> None:
    if shutil.which(cc) is None:
        pytest.skip(f"{cc} is not installed")
    folder = GOLDEN / name
    places = [f"-I{folder}", *includes("plain")]
    out = ["-c", str(folder / "sf_model.c"), "-o", str(tmp_path / "model.o")]
    subprocess.run([cc, *STRICT, "-O2", *places, *out], check=True)


def test_reads_like_c() -> None:
    """No function of the generated C is longer than a page."""
    for source in GOLDEN.glob("*/sf_model.c"):
        start, longest = 0, 0
        for number, line in enumerate(source.read_text().splitlines()):
            if line.endswith(") {") and not line.startswith(" "):
                start = number
            if line == "}":
                longest = max(longest, number - start)
        assert 20 < longest <= 60, source
