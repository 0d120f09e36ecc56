"""The whole path on a small model: pack, generate, build, flash, validate, bench, generate."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from conftest import make_workspace, random_model
from small import NAME, add_small
from sparseflash.base.errors import UnsupportedError, UsageError
from sparseflash.base.files import root
from sparseflash.cli.build import generate as generate_verb
from sparseflash.codegen.build import build_firmware, build_library
from sparseflash.codegen.generate import generate
from sparseflash.device.bench import bench
from sparseflash.device.host_board import start_host_device
from sparseflash.device.session import Session
from sparseflash.device.validate import validate
from sparseflash.image.factors import FACTORED, Factors
from sparseflash.image.formats import Formats
from sparseflash.image.grids import pack_rows
from sparseflash.image.pack import pack
from sparseflash.image.reference import THRESHOLDS, Reference
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.recipes import Recipe, load_recipe
from sparseflash.model.spec import Activation, LayerSpec, Model
from sparseflash.model.torch_model import TorchModel
from sparseflash.pipeline import device as on_device
from sparseflash.pipeline import stages as pipeline
from sparseflash.pipeline.places import Places
from sparseflash.plan.boards import load_board
from sparseflash.plan.kept import read_plan
from sparseflash.plan.plan import make_plan
from sparseflash.sparsity.texts import calibration_tokens

POSITIONS = 64
PROMPT = "Once upon a time"


@dataclass
class Built:
    """The model on the host board, flashed at 50 % of h."""

    base: Path
    recipe: Recipe
    model: Model
    image: Image
    engine: Engine
    thresholds: np.ndarray

    def prompt(self) -> list[int]:
        assert self.model.tokenizer is not None
        return self.model.tokenizer.encode(PROMPT, bos=True)

    def greedy(self, n: int) -> list[int]:
        """What the C in this process continues the prompt with, stopping after an end token."""
        self.engine.set_thresholds(self.thresholds)
        return greedy(self.engine, self.prompt(), n, self.model.spec.eos_ids)


def greedy(engine: Engine, prompt: list[int], n: int, eos: tuple[int, ...] = ()) -> list[int]:
    engine.reset()
    for token in prompt[:-1]:
        engine.step(token, logits=False)
    out = [prompt[-1]]
    while len(out) <= n and (len(out) == 1 or out[-1] not in eos):
        logits = engine.step(out[-1])
        assert logits is not None
        out.append(int(np.argmax(logits)))
    return out[1:]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    base = make_workspace(tmp_path_factory.mktemp("pipeline"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEFLASH_ROOT", str(base))
        recipe = add_small(base)
        recipe = replace(recipe, calibration={**recipe.calibration, "tokens": 2048})
        model = pipeline.open_model(recipe)
        image = pipeline.pack_model(model, recipe)
        setting = pipeline.setting_for(model, recipe, "h", 50)
        board = load_board("host")
        pipeline.plan_and_generate(image, board, setting, recipe, model=model)
        on_device.build_board(board, NAME)
        on_device.flash_board(board, NAME)
        engine = pipeline.host_engine(image, recipe)
        yield Built(base, recipe, model, image, engine, setting.thresholds)


@pytest.fixture(params=["pty", "tcp"])
def session(built: Built, request: pytest.FixtureRequest) -> Iterator[Session]:
    transport: Literal["pty", "tcp"] = request.param
    flashed = Places(NAME).flashed
    with (
        start_host_device(flashed / "firmware", flashed / "model.sfm", transport) as process,
        on_device.session(NAME, "host", process.url) as opened,
    ):
        yield opened


def some_ids(built: Built, n: int = POSITIONS) -> np.ndarray:
    return np.random.default_rng(4).integers(3, built.model.spec.vocab, n)


def test_formats_are_those_of_the_recipe(built: Built) -> None:
    assert built.image.formats == Formats("q8", "q8", "q8")
    assert built.image.spec.n_layers == 5


def test_device_equals_reference(built: Built, session: Session) -> None:
    steps: list[int] = []
    ids = some_ids(built)
    found = validate(session.device, session.image, ids, session.thresholds, steps.append)
    assert found is None
    assert steps == list(range(1, POSITIONS + 1))
    assert np.array_equal(session.thresholds, built.thresholds)
    assert (built.thresholds[:, THRESHOLDS.index("h")] > 0).all()


def test_started_by_the_session(built: Built) -> None:
    with on_device.session(NAME, "host") as session:
        info = session.device.info()
        assert (info.board, info.model, info.model_sha) == ("host", NAME, built.image.sha256.hex())
        assert info.arena_bytes == session.plan["memory"]["total"]


@pytest.mark.parametrize("site", ["h", "down"])
def test_first_difference_is_named(built: Built, session: Session, site: str) -> None:
    """One layer of the device gets a larger threshold than the plan has."""
    layer = 2
    wrong = built.thresholds[layer].copy()
    wrong[THRESHOLDS.index(site)] += 0.1
    session.device.set_thresholds(layer, [float(v) for v in wrong])
    found = validate(session.device, session.image, some_ids(built), session.thresholds)
    assert found is not None
    where = {"h": "h", "down": "ffn_out"}[site]
    assert (found.layer, found.site) == (layer, where)
    assert found.device == 0.0 and 0 < abs(found.reference) < wrong[THRESHOLDS.index(site)]
    assert f"layer {layer}, site {where}[{found.index}]" in str(found)


def test_bench_counts_what_was_read(built: Built, session: Session) -> None:
    result = bench(session.device, built.prompt(), tokens=20, repetitions=2)
    spec, image = built.image.spec, built.image
    assert result["board"] == "host" and result["tokens"] == 20
    assert len(result["digest"]) == 16, "repetitions give the same tokens"
    assert 0 < result["neurons_per_token"] < spec.n_layers * spec.ffn_dim
    assert 0 < result["ffn_bytes_per_token"] < result["bytes_per_token"] < image.size
    shares = [result[f"share_{s}"] for s in ("attention", "ffn", "head")]
    assert all(s > 0 for s in shares) and sum(shares) <= 1.0
    assert result["tokens_per_second"] > 0 and result["link_tokens_per_second"] > 0


def test_streamed_text_is_the_greedy_text(built: Built, session: Session) -> None:
    pieces = list(session.device.generate(built.prompt(), 50))
    want = built.greedy(50)
    tokenizer = built.model.tokenizer
    assert tokenizer is not None
    assert [token for token, _ in pieces] == want
    assert [text for _, text in pieces] == [tokenizer.token_bytes(t) for t in want]
    assert len(want) == 50


def test_greedy_text_equals_the_float_model(built: Built) -> None:
    """8-bit weights keep the greedy text, or the float model was near a tie where they part."""
    engine = built.engine
    engine.set_thresholds(dense_thresholds(built.image))
    got = greedy(engine, built.prompt(), 50)
    runner = TorchModel(built.model)
    cache = runner.new_cache(128)
    for token in built.prompt():
        logits = runner.step(token, cache).numpy()
    for i, token in enumerate(got):
        best = int(np.argmax(logits))
        if best != token:
            gap = float(logits[best] - logits[token])
            print(f"greedy text parts at token {i}: logit gap {gap:.4f}")
            assert gap < 0.1
            return
        logits = runner.step(token, cache).numpy()
    print("greedy text of 50 tokens is the same")


RUN = """
import sys
from sparseflash.cli import main
sys.argv = ["sparseflash", *sys.argv[1:]]
main()
"""


def run_in(base: Path, cwd: Path, locale: str, *arguments: str) -> None:
    environment = {
        **os.environ,
        "SPARSEFLASH_ROOT": str(base),
        "LC_ALL": locale,
        "LANGUAGE": locale,
        "TZ": "Asia/Kathmandu" if locale == "C" else "UTC",
        "PYTHONHASHSEED": str(len(locale)),
        "PYTHONPATH": str(root() / "host_tools"),
    }
    code = [sys.executable, "-c", RUN, *arguments]
    done = subprocess.run(
        code, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_generation_does_not_depend_on_folder_or_locale(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPARSEFLASH_ROOT")
    results = []
    for name, locale in (("first", "C"), ("a second, räumlich getrennt", "de_DE.UTF-8")):
        folder = tmp_path / name
        base = make_workspace(folder)
        with monkeypatch.context() as patch:
            patch.setenv("SPARSEFLASH_ROOT", str(base))
            add_small(base)
        cwd = folder if name == "first" else Path("/")
        run_in(
            *(base, cwd, locale, "generate", "--model", NAME, "--method", "h", "--sparsity", "40")
        )
        files = sorted(p for p in (base / "build").rglob("*") if p.is_file())
        results.append({str(p.relative_to(base)): p.read_bytes() for p in files})
    assert results[0] == results[1]
    names = set(results[0])
    assert {f"build/models/{NAME}/{n}" for n in ("model.sfm", "calibration.npz")} < names
    assert {f"build/host/{NAME}/{n}" for n in ("gen/plan.json", "gen/sf_model.c")} < names
    assert not [n for n in names if n.endswith(".part")]


@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("flags", ["-O2", "-O3 -march=native"])
def test_no_warning(cc: str, flags: str, tmp_path: Path) -> None:
    """Generated code, runtime, link and both ports under the strict flags, -Werror among them."""
    if shutil.which(cc) is None:
        pytest.skip(f"{cc} is not installed")
    model = random_model(
        qk_norm=True,
        sandwich_norms=True,
        attn_bias=True,
        tied_head=False,
        activation=Activation.GELU_TANH,
        embed_scale=8.0,
        layers=(LayerSpec(window=16), LayerSpec(rope_theta=1e6, rope_scale=8.0)),
    )
    pack(model, tmp_path / "model.sfm", Formats("q4", "q8", "q4"))
    image = Image(tmp_path / "model.sfm")
    board = load_board("host")
    board = replace(board, toolchain={"cc": cc, "cflags": flags.split()})
    generate(make_plan(image, board, dense_thresholds(image)), tmp_path / "gen")
    build_firmware(board, tmp_path / "gen", tmp_path / "firmware")
    build_library(tmp_path / "gen", tmp_path / "lib.so", cc, flags.split())
    with start_host_device(tmp_path / "firmware", tmp_path / "model.sfm") as process:
        assert process.process.poll() is None


def test_projections_in_factors(built: Built, tmp_path: Path) -> None:
    """ASVD's factors are searched once, and the device multiplies with them under a mask."""
    image = pipeline.pack_model(built.model, built.recipe, asvd=85)
    assert image.path.name == "model.asvd85.sfm"
    assert image.size < built.image.size and 0 < max(image.ranks) <= 64
    old = image.path.stat().st_mtime_ns
    pipeline.pack_model(built.model, built.recipe, asvd=85)
    assert image.path.stat().st_mtime_ns == old
    generate(make_plan(image, load_board("host"), built.thresholds, kv_len=96), tmp_path)
    engine = Engine(build_library(tmp_path, tmp_path / "lib.so", "cc", ["-O1"]), image)
    ids = np.array(built.prompt() + built.greedy(24))
    want = Reference(image).run(ids, built.thresholds).logits
    for token, logits in zip(ids, want):
        got = engine.step(int(token))
        assert got is not None and np.array_equal(got, logits)
    # The float model with the factors multiplied out says nearly the same.
    rows = {}
    for i in range(image.spec.n_layers):
        for name in FACTORED:
            pair = image.factors(i, name)
            if pair is not None:
                rows[i, name] = pack_rows(pair[0]), pack_rows(pair[1])
    dense = Reference(image).run(ids).logits
    model = Factors(rows).multiplied_out(built.model, image.formats)
    torch_logits = TorchModel(model)(torch.from_numpy(ids[None]))[0].numpy()
    assert np.abs(torch_logits - dense).mean() < 0.02 * np.abs(dense).max()
    for wrong in (-1.0, 100.0):
        with pytest.raises(UsageError, match="out of range"):
            pipeline.pack_model(built.model, built.recipe, asvd=wrong)
    with pytest.raises(UnsupportedError, match="drop no inputs"):
        pipeline.setting_for(built.model, built.recipe, "teal-x", 30, asvd=85)
    with pytest.raises(UnsupportedError, match="drop no inputs"):
        teal = pipeline.setting_for(built.model, built.recipe, "teal-x", 30)
        pipeline.pack_model(built.model, built.recipe, settings=[teal], asvd=85)


def test_thresholds_hold_with_factors(built: Built, tmp_path: Path) -> None:
    """On the device, with the factors in place, h at 50 % leaves half of the neurons."""
    generate_verb(NAME, "host-flash", "h", 50, asvd=85)
    plan = read_plan(Places(NAME, "host-flash").plan)
    recipe = load_recipe(NAME)
    image = pipeline.pack_model(built.model, recipe, asvd=85)
    setting = pipeline.setting_for(built.model, recipe, "h", 50, asvd=85)
    assert np.array_equal(np.array(plan["thresholds"], np.float32), setting.thresholds)
    generate(make_plan(image, load_board("host"), setting.thresholds, kv_len=256), tmp_path)
    engine = Engine(build_library(tmp_path, tmp_path / "lib.so", "cc", ["-O1"]), image)
    windows, _ = calibration_tokens(built.model, recipe)
    whole = pipeline.setting_for(built.model, recipe, "h", 50).thresholds
    shares = []
    for thresholds in (setting.thresholds, whole):
        engine.set_thresholds(thresholds)
        engine.counters(clear=True)
        for window in windows[::16]:
            engine.reset()
            for token in window:
                engine.step(int(token), logits=False)
        tokens = windows[::16].size
        shares.append(engine.counters()["neurons"] / tokens / image.spec.n_layers)
    half = image.spec.ffn_dim / 2
    assert shares[0] == pytest.approx(half, rel=0.01)
    assert shares[1] != pytest.approx(half, rel=0.03)


def test_generated_code_holds_no_weights(built: Built) -> None:
    text = (Places(NAME).target / "gen" / "sf_model.c").read_text()
    assert len(text) < 50_000  # of a model with 260,000 of them


@pytest.mark.parametrize(
    ("option", "model", "board", "rows"),
    [
        ("auto", "smollm2-135m", "host", 64),
        ("auto", "smollm2-135m", "linux-sbc", 64),
        ("auto", "smollm2-135m", "host-flash", 0),
        ("auto", "story", "host", 0),
        ("exact", "smollm2-135m", "host", 0),
        ("256", "story", "host-flash", 256),
    ],
)
def test_the_head_that_is_computed(option: str, model: str, board: str, rows: int) -> None:
    assert pipeline.rows_of_head(option, load_recipe(model), load_board(board)) == rows
