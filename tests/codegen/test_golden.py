"""Generated C of each shape as it stands in tests/golden, clean for compilers and formatter.

`make golden` (pytest --update-golden) writes the files anew; look at the difference before you
commit it.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import (
    BITS,
    flags_of,
    random_factors,
    random_model,
    random_predictor,
    random_thresholds,
)
from sparseflash.base.files import root
from sparseflash.codegen.build import STRICT, includes, runtime_sources
from sparseflash.codegen.generate import render
from sparseflash.image.formats import Formats
from sparseflash.image.grids import GRIDS
from sparseflash.image.needs import Needs
from sparseflash.image.pack import pack
from sparseflash.image.proxy import Proxies, Signs
from sparseflash.image.reference import THRESHOLDS
from sparseflash.image.sfm import Image
from sparseflash.model.spec import Activation, LayerSpec, Norm, Position
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


PHI: dict[str, Any] = {
    "norm": Norm.LAYER,
    "gated": False,
    "activation": Activation.GELU,
    "parallel": True,
    "attn_bias": True,
    "out_bias": True,
    "ffn_bias": True,
    "tied_head": False,
    "head_bias": True,
}
OPT = PHI | {
    "activation": Activation.RELU,
    "parallel": False,
    "tied_head": True,
    "head_bias": False,
    "position": Position.LEARNED,
    "position_offset": 2,
}
OLMOE: dict[str, Any] = {
    "ffn_dim": 256,
    "experts": 8,
    "experts_used": 2,
    "active_share": 0.25,
    "experts_normed": False,
    "qk_norm": True,
    "qk_norm_whole": True,
}


@dataclass(frozen=True)
class Shape:
    """A model, how it is stored, and what its plan drops."""

    formats: Formats
    needs: Needs = field(default_factory=Needs)
    model: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    rank: int = 0
    """Of a predictor that reads the input of attention."""
    factored: bool = False
    stream: bool = False
    head_rows: int = 0
    speculate: str = ""
    draft: int | None = None


SHAPES = {
    "dense-q4": Shape(Formats("q4", "q4", "q8")),
    "gated-q8": Shape(Formats("q8", "q8", "q8"), limits={"gate": 0.25, "h": 0.125}),
    "r8-columns": Shape(Formats("r8", "r8", "r8"), limits={"h": 0.125}),
    "r8-rows": Shape(Formats("r8", "r8", "q8"), Needs(down="rows"), {"attn_bias": True}),
    "input-columns": Shape(
        Formats("q8", "q4", "q8"), Needs(("qkv gate", "o up")), limits={"h": 0.125}
    ),
    "top-k": Shape(
        Formats("q8", "q4", "q8"),
        Needs(("qkv gate", "o up"), norms=("q", "h"), top_k=True),
        limits={"h": 20.0},
    ),
    "predictor-ahead": Shape(Formats(), limits={"predictor": 0.25}, rank=32),
    "signs": Shape(
        Formats(), Needs(predictor=Signs()), {"activation": Activation.RELU}, {"predictor": 33.0}
    ),
    "factors": Shape(Formats("q8"), factored=True),
    "gemma-screened-head": Shape(
        Formats("q8", "q4", "q8", screened=True), model=GEMMA, head_rows=16
    ),
    "parallel-ungated": Shape(Formats("q8", "q8", "q8"), model=PHI, limits={"h": 0.125}, draft=3),
    "learned-positions": Shape(
        Formats(), Needs(predictor=Signs()), OPT, {"predictor": 33.0, "h": 0.125}
    ),
    "experts": Shape(Formats("q8", "q4", "q8"), model=OLMOE),
    "own-thresholds": Shape(Formats("q4", "s4", "q8"), model={"own_thresholds": True}),
    "stream-prefetch": Shape(
        Formats(),
        Needs(predictor=Proxies(2)),
        limits={"predictor": 0.25, "h": 0.125},
        stream=True,
        speculate="prox-2",
    ),
}


def rendered(shape: Shape, host: Board, folder: Path) -> dict[str, str]:
    """The files of a shape, without what changes with every version: hashes and the banner."""
    model = random_model(**shape.model)
    f, needs = shape.formats, shape.needs
    if model.spec.own_thresholds:
        model, needs = random_thresholds(model), needs.with_gate_by_columns(model.spec.n_layers)
    if shape.rank:
        needs = replace(needs, predictor=random_predictor(model.spec, shape.rank, ahead=True))
    if shape.factored:
        needs = replace(needs, factors=random_factors(model.spec, f.attn, f.ffn))
    pack(model, folder / "model.sfm", f, needs)
    image = Image(folder / "model.sfm")
    limits = np.zeros((model.spec.n_layers, len(THRESHOLDS)), np.float32)
    for site, limit in shape.limits.items():
        limits[:, THRESHOLDS.index(site)] = limit
    board, ram = host, None
    if shape.stream:
        board = replace(host, raw={**host.raw, "stream": STREAM})
        ram = 60_000
    plan = make_plan(
        image,
        board,
        limits,
        kv_len=32,
        ram=ram,
        head_rows=shape.head_rows,
        speculate=shape.speculate,
        draft=shape.draft,
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


@pytest.fixture(params=["gcc", "clang"])
def cc(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.mark.parametrize("name", SHAPES)
def test_builds_without_a_warning(name: str, cc: str, tmp_path: Path) -> None:
    """Generated code, runtime, flash, link and the port of every shape under the strict flags."""
    fw = root() / "firmware"
    sources = [GOLDEN / name / "sf_model.c", *sorted((fw / "link").glob("*.c"))]
    sources += runtime_sources("stream" if SHAPES[name].stream else "map")
    sources += sorted((fw / "port" / "host").glob("*.c"))
    flags = [*STRICT, "-O1", "-c", f"-I{GOLDEN / name}", *includes("plain")]
    subprocess.run([cc, *flags, *map(str, sources)], check=True, cwd=tmp_path)


def test_every_format_compiles_without_a_warning(cc: str, host: Board, tmp_path: Path) -> None:
    """Any two of the grids of attention, FFN and head meet, with a predictor."""
    grids = list(GRIDS)
    for i, j in itertools.product(range(len(grids)), repeat=2):
        formats = Formats(grids[i], grids[j], grids[(i + j) % len(grids)])
        shape = Shape(formats, Needs(predictor=Proxies(2)), limits={"predictor": 0.25})
        for file, text in rendered(shape, host, tmp_path).items():
            (tmp_path / file).write_text(text)
        out = ["-c", str(tmp_path / "sf_model.c"), "-o", str(tmp_path / "model.o")]
        subprocess.run([cc, *STRICT, "-O1", f"-I{tmp_path}", *includes("plain"), *out], check=True)


@pytest.mark.skipif(32 not in BITS, reason="only x86 has such a unit")
def test_floats_of_more_bits_do_not_compile() -> None:
    """An x87 unit would give other logits than the reference."""
    command = ["gcc", *flags_of(32), "-mfpmath=387", *includes("plain"), "-fsyntax-only"]
    source = root() / "firmware" / "kernels" / "plain" / "row.c"
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode and "-mfpmath=sse" in done.stderr
    assert subprocess.run([*command, "-mfpmath=sse", str(source)], check=False).returncode == 0


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


@pytest.mark.parametrize("name", sorted(p.name for p in GOLDEN.iterdir() if p.is_dir()))
def test_xtensa_takes_it(name: str, tmp_path: Path) -> None:
    """An LX106 is no LX7 of esp32s3, but its compiler is GCC for the same instruction set."""
    compiler = shutil.which("xtensa-lx106-elf-gcc")
    if compiler is None:
        pytest.skip("no xtensa-lx106-elf-gcc")
    firmware = root() / "firmware"
    sources = [GOLDEN / name / "sf_model.c"]
    if name == "stream-prefetch":  # what models share; threads are of an operating system
        shared = [p for f in ("kernels/plain", "runtime") for p in (firmware / f).glob("*.c")]
        sources += [p for p in shared if p.name != "threads.c"]
    places = ("include", "link", "port/common", "kernels", "kernels/plain")
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding"]
    flags += ["-isystem", "/usr/lib/xtensa-lx106-elf/include", f"-I{GOLDEN / name}"]
    flags += [f"-I{firmware / place}" for place in places]
    done = subprocess.run(
        [compiler, *flags, "-c", *map(str, sources)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.o"))) == len(sources)
