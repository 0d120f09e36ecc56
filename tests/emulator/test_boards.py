"""Boards under their emulators: bit-equal to the reference over pyserial, dense and sparse."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from conftest import make_workspace, random_factors, random_model, random_predictor
from small import add_small
from sparseflash.base.errors import SparseflashError
from sparseflash.base.programs import missing
from sparseflash.codegen.build import build_firmware, build_library
from sparseflash.codegen.footprint import SECTIONS, sizes, stack
from sparseflash.codegen.generate import generate
from sparseflash.device.emulator import EmulatorProcess
from sparseflash.device.link.client import Device
from sparseflash.device.runners import Files, flash_files, reply_seconds, start_board
from sparseflash.device.validate import validate
from sparseflash.image.formats import THRESHOLDS, Formats, width_of
from sparseflash.image.needs import Needs
from sparseflash.image.pack import pack
from sparseflash.image.reference import Reference
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.recipes import load_recipe
from sparseflash.model.spec import Model
from sparseflash.pipeline.stages import open_model
from sparseflash.plan.boards import Board, board_ids, load_board
from sparseflash.plan.kept import plan_digest
from sparseflash.plan.plan import make_plan

POSITIONS, TOKENS = 10, 6
FEW = {"pico": (3, 3)}
"""Positions and tokens on a board whose emulator is slow."""
RAM = {"ast1030-evb": 420_000}
"""Less than the board has, so that most of the weights are streamed by DMA."""
EMULATED = [
    b for b in board_ids() if b[:4] != "host" and load_board(b).runner in ("process", "emulator")
]
BARE = [
    b
    for b in board_ids()
    if load_board(b).kind == "bare"
    and "Debian has none" not in (missing(load_board(b).toolchain["cc"]) or "")
]
"""Bare boards but those whose compiler is neither here nor in Debian."""


@cache
def story() -> Model:
    return open_model(load_recipe("story"))


@cache
def small() -> Model:
    """A random Llama of the shape of stories260K."""
    return random_model(n_layers=5, vocab=512, context=512)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The story model, the default of these boards."""
    path, f = tmp_path_factory.mktemp("image") / "story.sfm", load_recipe("story").formats
    pack(story(), path, Formats(f["attn"], f["ffn"], f["embed"]))
    return Image(path)


@pytest.fixture(scope="session")
def ids() -> np.ndarray:
    tokenizer = story().tokenizer
    assert tokenizer is not None
    text = "Once upon a time, a small board read only the weights it needed."
    return np.array(tokenizer.encode(text)[:POSITIONS])


@pytest.fixture(scope="session")
def random_ids() -> np.ndarray:
    return np.random.default_rng(5).integers(0, small().spec.vocab, 24)


def half_thresholds(image: Image, ids: np.ndarray) -> np.ndarray:
    """Thresholds that drop about half of the neurons, by the gate and by h."""
    sites = Reference(image).run(ids, dense_thresholds(image)).sites
    t = dense_thresholds(image)
    for i, site in enumerate(sites):
        t[i, 3] = np.quantile(np.abs(site["h"]), 0.5)
        t[i, 0] = 0.05
    return t


@pytest.fixture(scope="session")
def sparse(image: Image, ids: np.ndarray) -> np.ndarray:
    return half_thresholds(image, ids)


def host_tokens(
    image: Image, thresholds: np.ndarray, host: Board, folder: Path, n: int
) -> list[int]:
    """A greedy generation of the board ``host``."""
    generate(make_plan(image, host, thresholds), folder)
    engine = Engine(build_library(folder, folder / "lib.so", flags=["-O1"]), image)
    token, out = 1, []
    for _ in range(n):
        logits = engine.step(token)
        assert logits is not None
        token = int(np.argmax(logits))
        out.append(token)
    return out


@pytest.fixture(scope="session")
def host_said(
    image: Image, sparse: np.ndarray, host: Board, tmp_path_factory: pytest.TempPathFactory
) -> list[int]:
    return host_tokens(image, sparse, host, tmp_path_factory.mktemp("host"), TOKENS)


def need(board: Board) -> None:
    settings = board.settings()
    programs = [board.toolchain["cc"], *(settings.get("command") or settings["launcher"])[:1]]
    programs += ["npm"] if "npm" in settings else []
    for absent in filter(None, map(missing, programs)):
        pytest.skip(absent)


def flashed(
    board: Board, image: Image, thresholds: np.ndarray, folder: Path, speculate: str = ""
) -> tuple[Path, bytes]:
    """Generated, built and flashed; the folder and the digest of the plan."""
    plan = make_plan(image, board, thresholds, ram=RAM.get(board.id), speculate=speculate)
    if "stream" in board.raw:
        assert plan["placement"]["total"]["streamed"] > 150_000
    generate(plan, folder / "gen", board)
    firmware = build_firmware(board, folder / "gen", folder / "firmware")
    (folder / "plan.json").write_text("{}")
    files = Files(firmware, Path(image.path), folder / "plan.json")
    flash_files(board, files, folder / "flashed")
    return folder / "flashed", plan_digest(plan)


def compare(
    board: Board,
    image: Image,
    ids: np.ndarray,
    thresholds: np.ndarray,
    expected: list[int],
    folder: Path,
) -> None:
    """Sparse and dense against the reference, and a generation against the host's."""
    place, plan = flashed(board, image, thresholds, folder)
    process = start_board(board, place)
    assert process is not None
    with process:
        timeout = reply_seconds(board)
        if isinstance(process, EmulatorProcess):
            device = Device.connect(process.port, process.url, image.sha256, plan, timeout)
        else:
            device = Device.open(process.url, image.sha256, plan, timeout=timeout)
        with device:
            assert device.info().board == board.id
            assert validate(device, image, ids, thresholds) is None
            counters = device.counters()
            neurons = counters["neurons"]
            parts = sum(counters[f"time_{part}"] for part in ("attn", "ffn", "head"))
            assert parts <= counters["time_total"] < 1.2 * parts
            device.reset()
            assert [t for t, _ in device.generate([1], len(expected))] == expected
            dense = dense_thresholds(image)
            for i, row in enumerate(dense):
                device.set_thresholds(i, row)
            assert validate(device, image, ids, dense) is None
            assert 0 < neurons < 0.6 * len(ids) * image.spec.n_layers * image.spec.ffn_dim


@pytest.mark.parametrize("name", EMULATED)
def test_board(
    name: str,
    image: Image,
    ids: np.ndarray,
    sparse: np.ndarray,
    host_said: list[int],
    tmp_path: Path,
) -> None:
    board = load_board(name)
    need(board)
    positions, tokens = FEW.get(name, (POSITIONS, TOKENS))
    some, said = ids[:positions], host_said[:tokens]
    compare(board, image, some, sparse, said, tmp_path)


def test_the_shape_of_stories260k(
    host: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shape of the figures that compare with other programs, and words."""
    board = load_board("mps2-an386")
    need(board)
    base = make_workspace(tmp_path / "checkout")
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(base))
    model = open_model(add_small(base))
    pack(model, tmp_path / "model.sfm", Formats("q8", "q8", "q8"))
    image = Image(tmp_path / "model.sfm")
    ids = np.random.default_rng(5).integers(0, image.spec.vocab, 64)
    thresholds = half_thresholds(image, ids)
    expected = host_tokens(image, thresholds, host, tmp_path / "host", 32)
    compare(board, image, ids, thresholds, expected, tmp_path)


@pytest.mark.parametrize("name", ["mps2-an386", "riscv-virt"])
def test_top_k(name: str, random_ids: np.ndarray, host: Board, tmp_path: Path) -> None:
    """Each token's largest inputs and neurons, by scores with norms of columns."""
    board = load_board(name)
    need(board)
    columns = ("qkv o gate up",) * small().spec.n_layers
    needs = Needs(columns, norms=("q", "xg", "h"), top_k=True)
    pack(small(), tmp_path / "m.sfm", Formats("q4", "q8", "q8"), needs)
    image = Image(tmp_path / "m.sfm")
    thresholds = dense_thresholds(image)
    for site, share in (("q", 0.5), ("o", 0.7), ("xg", 0.6), ("xu", 0.3), ("h", 0.4)):
        thresholds[:, THRESHOLDS.index(site)] = int(share * width_of(image.spec, site))
    expected = host_tokens(image, thresholds, host, tmp_path / "host", TOKENS)
    compare(board, image, random_ids, thresholds, expected, tmp_path)


@pytest.mark.parametrize("kind", ["predicted", "ahead", "exact"])
def test_predictor(kind: str, random_ids: np.ndarray, tmp_path: Path) -> None:
    """Neurons by a low-rank predictor, whose gate rows come by DMA while attention computes; once
    with projections in factors, once with a prediction that only reads early."""
    ahead = kind != "predicted"
    board = load_board("ast1030-evb")
    need(board)
    predictor = random_predictor(small().spec, 32, ahead)
    formats = Formats("q8", "q8", "q8")
    factors = random_factors(small().spec, "q8", "q8") if kind == "ahead" else None
    pack(small(), tmp_path / "m.sfm", formats, Needs(predictor=predictor, factors=factors))
    image, ids = Image(tmp_path / "m.sfm"), random_ids
    thresholds = dense_thresholds(image)
    thresholds[:, 5] = 0.3
    exact = thresholds.copy()
    speculate = "lowrank-32" if kind == "exact" else ""
    if speculate:
        thresholds[:, 1] = exact[:, 1] = 0.1
        exact[:, 5] = 0
    want = Reference(image).run(ids, exact).neurons
    assert 0 < want < 0.9 * len(ids) * image.spec.n_layers * image.spec.ffn_dim
    place, plan = flashed(board, image, thresholds, tmp_path, speculate)
    process = start_board(board, place)
    assert isinstance(process, EmulatorProcess)
    with process:
        timeout = reply_seconds(board)
        with Device.connect(process.port, process.url, image.sha256, plan, timeout) as device:
            assert validate(device, image, ids, exact) is None
            c = device.counters()
            assert c["neurons"] == want
            assert (c["bytes_early"] > 0) == ahead
            assert (c["bytes_missed"] > 0) == (kind == "exact")  # else all of it was early


@pytest.mark.parametrize(
    ("name", "down"),
    [("mps2-an386", "rows"), ("mps2-an386", "columns"), ("ast1030-evb", "rows")],
)
def test_one_scale_a_row(
    name: str, down: str, random_ids: np.ndarray, host: Board, tmp_path: Path
) -> None:
    board = load_board(name)
    need(board)
    pack(small(), tmp_path / "m.sfm", Formats("r8", "r8", "r8"), Needs(down=down))
    image = Image(tmp_path / "m.sfm")
    thresholds = half_thresholds(image, random_ids)
    expected = host_tokens(image, thresholds, host, tmp_path / "host", TOKENS)
    compare(board, image, random_ids, thresholds, expected, tmp_path / name)


def test_columns_by_layer(random_ids: np.ndarray, host: Board, tmp_path: Path) -> None:
    """Each layer stores other matrices by columns, as `marginal` does; all of it is streamed."""
    board = load_board("ast1030-evb")
    need(board)
    columns = ("qkv o gate up", "o gate", "qkv up", "", "gate")
    pack(small(), tmp_path / "m.sfm", Formats("q8", "q8", "q8"), Needs(columns))
    image = Image(tmp_path / "m.sfm")
    t = half_thresholds(image, random_ids)
    sites = {"qkv": ((6, 7, 8), 0.3), "o": ((9,), 0.1), "gate": ((10,), 0.2), "up": ((11,), 0.2)}
    for i, names in enumerate(columns):
        for name in names.split():
            which, limit = sites[name]
            t[i, which] = limit
    expected = host_tokens(image, t, host, tmp_path / "host", 8)
    compare(board, image, random_ids[:8], t, expected, tmp_path)


def test_larger_than_sram(host: Board, tmp_path: Path) -> None:
    """A random Llama of 8M parameters: 5 MB of weights through 768 KB of SRAM."""
    board = load_board("ast1030-evb")
    need(board)
    model = random_model(
        n_layers=6, vocab=8192, dim=288, ffn_dim=768, n_heads=6, n_kv_heads=6, head_dim=48
    )
    pack(model, tmp_path / "m.sfm", Formats("q4", "q4", "q8"))
    image = Image(tmp_path / "m.sfm")
    assert image.size > 6 * board.sram_bytes
    ids = np.random.default_rng(2).integers(0, image.spec.vocab, 6)
    thresholds = half_thresholds(image, ids)
    expected = host_tokens(image, thresholds, host, tmp_path / "host", 4)
    compare(replace(board, kv_len_default=64), image, ids, thresholds, expected, tmp_path)


@pytest.mark.parametrize("name", BARE)
def test_footprint(name: str, image: Image, tmp_path: Path) -> None:
    """No heap, a stack within the board's limit, and every byte of the sections has a part."""
    board = load_board(name)
    for absent in filter(None, [missing(board.toolchain["cc"])]):
        pytest.skip(absent)
    if image.size > board.flash_bytes:
        pack(small(), tmp_path / "small.sfm", Formats())
        image = Image(tmp_path / "small.sfm")
    generate(make_plan(image, board, dense_thresholds(image)), tmp_path / "gen", board)
    firmware = build_firmware(board, tmp_path / "gen", tmp_path / "firmware")
    tool = board.toolchain["objcopy"].removesuffix("objcopy")
    names = subprocess.run(
        [tool + "nm", firmware], capture_output=True, text=True, check=True
    ).stdout
    assert "sf_step" in names
    for forbidden in ("malloc", "calloc", "realloc", "free", "_sbrk"):
        assert f" {forbidden}\n" not in names
    assert 0 < stack(board, firmware).bytes <= board.reserve["stack"]
    parts = sizes(board, firmware)
    assert {"kernels", "model", "link", "runtime", "stack"} <= set(parts)
    listed = subprocess.run(
        [tool + "size", "-A", firmware], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for line in listed:
        fields = line.split()
        if len(fields) == 3 and fields[0] in SECTIONS:
            found = sum(row.get(fields[0], 0) for row in parts.values())
            assert abs(found - int(fields[1])) <= 256, f"{fields[0]}: {found} of {fields[1]}"


@pytest.mark.parametrize("name", ["ast1030-evb", "pico", "pico2"])
@pytest.mark.parametrize("ffn_dim", [172, 8192])
def test_plan_covers_the_linked_program(name: str, ffn_dim: int, tmp_path: Path) -> None:
    """What is linked into the SRAM is no more than the plan says, also of a model with long rows,
    of which as much is resident as the plan allows."""
    board = load_board(name)
    for absent in filter(None, [missing(board.toolchain["cc"])]):
        pytest.skip(absent)
    model = random_model(ffn_dim=ffn_dim, vocab=160 if ffn_dim < 1000 else 8192)
    pack(model, tmp_path / "m.sfm", Formats())
    image = Image(tmp_path / "m.sfm")
    plan = make_plan(image, board, dense_thresholds(image), 32)
    generate(plan, tmp_path / "gen", board)
    firmware = build_firmware(board, tmp_path / "gen", tmp_path / "firmware")
    tool = board.toolchain["objcopy"].removesuffix("objcopy")
    listed = subprocess.run(
        [tool + "size", "-A", firmware], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    sram = board.memory("data")
    linked = sum(
        int(row[1])
        for row in map(str.split, listed)
        if row and row[0] in SECTIONS and 0 <= int(row[2]) - sram.origin < sram.length
    )
    assert linked <= plan["memory"]["total"] + sum(board.reserve.values()) <= board.sram_bytes


UNBOUNDED = {
    "recursion": "int f(int n) { return n < 2 ? 1 : f(n - 1) * f(n - 2) + n; }",
    "variable-length": "int g(char *p); int f(int n) { char a[n]; return g(a) + a[0]; }",
    "through a pointer": "int (*p)(int); int f(int n) { return p(n) + 1; }",
}


@pytest.mark.parametrize("what", UNBOUNDED)
def test_unbounded_stack(what: str, tmp_path: Path) -> None:
    board = load_board("mps2-an386")
    for absent in filter(None, [missing(board.toolchain["cc"])]):
        pytest.skip(absent)
    source = tmp_path / "f.c"
    source.write_text(
        UNBOUNDED[what] + "\nint g(char *a) { return *a; }\nint f(int n);\n"
        "int sf_start(void);\nint sf_start(void) { return f(3); }\n"
    )
    (tmp_path / "objects").mkdir()
    chain = [board.toolchain["cc"], *board.toolchain["machine"], "-O1", "-fno-inline"]
    flags = ["-fcallgraph-info=su,da", "-nostdlib", "-Wl,-e,sf_start", "-dumpdir"]
    command = [*chain, *flags, f"{tmp_path / 'objects'}/", str(source), "-o", tmp_path / "firmware"]
    subprocess.run(command, check=True)
    with pytest.raises(SparseflashError, match=what):
        stack(board, tmp_path / "firmware")
