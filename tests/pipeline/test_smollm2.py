"""SmolLM2-135M-Instruct: bit-exactness of the real model, its answers and its perplexity.

SPARSEFLASH_FULL=1 compares more positions, calibrates with the recipe's tokens, and runs the whole
perplexity protocol, 40,960 tokens in windows of 1,024.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from conftest import make_workspace
from sparseflash.base.errors import InputError
from sparseflash.base.files import root
from sparseflash.codegen.build import build_library
from sparseflash.device.chat import Chat
from sparseflash.device.session import Session
from sparseflash.device.validate import validate
from sparseflash.image.reference import Reference, Run
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.measure.perplexity import measure
from sparseflash.model.recipes import Recipe, file_sha256, load_recipe, text, text_path
from sparseflash.model.spec import Model
from sparseflash.pipeline import device as on_device
from sparseflash.pipeline import stages as pipeline
from sparseflash.pipeline.places import Places
from sparseflash.plan.boards import load_board
from sparseflash.sparsity.calibrate import Calibration, assert_disjoint
from sparseflash.sparsity.setting import Setting
from sparseflash.sparsity.texts import evaluation_text

NAME = "smollm2-135m"
FULL = os.environ.get("SPARSEFLASH_FULL") == "1"
POSITIONS = 64 if FULL else 24
LEVELS = ("-O0", "-O2", "-O3", "-O3 -march=native")


@dataclass
class Smol:
    recipe: Recipe
    model: Model
    image: Image
    calibration: Calibration
    setting: Setting
    ids: np.ndarray
    want: Run


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Smol]:
    path = root() / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.skip(f"no {path}; `make fetch` brings it")
    recipe = load_recipe(NAME)
    if not FULL:
        recipe = replace(recipe, calibration={**recipe.calibration, "tokens": 1536})
    try:
        for name in recipe.calibration["texts"]:
            text_path(name)
    except InputError as e:
        pytest.skip(f"no calibration text: {e}")
    base = make_workspace(tmp_path_factory.mktemp("smollm2"), "-O3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEFLASH_ROOT", str(base))
        model = pipeline.open_model(recipe)
        image = pipeline.pack_model(model, recipe)
        setting = pipeline.setting_for(model, recipe, "h", 50)
        assert model.tokenizer is not None
        words = "The tower was built in 1889 and stands on the left bank of the river. " * 8
        ids = np.array(model.tokenizer.encode(words)[:POSITIONS])
        assert len(ids) == POSITIONS
        want = Reference(image).run(ids, setting.thresholds)
        pipeline.host_engine(image, recipe)
        yield Smol(recipe, model, image, pipeline.calibrated(model, recipe), setting, ids, want)


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_c_equals_reference(cc: str, smol: Smol, tmp_path: Path) -> None:
    """All logits at every optimisation level, of 8 positions where it is slow, and every site
    at one of them."""
    if shutil.which(cc) is None:
        pytest.skip(f"{cc} is not installed")
    gen = Places(NAME).folder / "gen"
    hashes = smol.want.hashes()

    def differences(level: str) -> list[str]:
        library = build_library(gen, tmp_path / f"lib{level}.so", cc, level.split())
        engine = Engine(library, smol.image)
        engine.set_thresholds(smol.setting.thresholds)
        engine.reset()
        engine.trace(level == "-O2")
        out = []
        for p, token in enumerate(smol.ids[:8] if level == "-O0" else smol.ids):
            logits = engine.step(int(token))
            assert logits is not None
            if not np.array_equal(logits.view(np.uint32), smol.want.logits[p].view(np.uint32)):
                out.append(f"{level}: logits of position {p}")
            if level == "-O2" and not np.array_equal(engine.hashes(), hashes[p]):
                out.append(f"{level}: sites of position {p}")
        assert level == "-O0" or engine.counters()["neurons"] == smol.want.neurons
        return out

    with ThreadPoolExecutor(2) as pool:
        found = [d for level in pool.map(differences, LEVELS) for d in level]
    assert not found


@pytest.fixture(scope="module")
def session(smol: Smol) -> Iterator[Session]:
    board = load_board("host")
    pipeline.plan_and_generate(smol.image, board, smol.setting, smol.recipe)
    on_device.build_board(board, NAME)
    on_device.flash_board(board, NAME)
    with on_device.session(NAME, "host") as opened:
        yield opened


def test_link_equals_reference(smol: Smol, session: Session) -> None:
    ids = smol.ids if FULL else smol.ids[:8]  # the reference computes them again
    found = validate(session.device, session.image, ids, session.thresholds)
    assert found is None


def test_chat_over_the_link(smol: Smol, session: Session) -> None:
    """The dense model knows two capitals; the second question needs the first."""
    assert smol.model.tokenizer is not None
    session.device.reset()
    for layer in range(smol.image.spec.n_layers):
        session.device.set_thresholds(layer, [0.0] * 12)
    talk = Chat(session.device, smol.model.tokenizer, smol.model.spec.eos_ids)
    for question, answer in (
        ("What is the capital of France?", "The capital of France is Paris."),
        ("And of Italy?", "The capital of Italy is Rome."),
    ):
        start = session.device.position
        assert b"".join(talk.ask(question, 40)).decode() == answer
        assert session.device.position > start, "the history stays in the cache"


def test_perplexity(smol: Smol) -> None:
    rows_wanted, window = (40, 1024) if FULL else (2, 512)
    n = rows_wanted * window
    name = evaluation_text(smol.recipe, None)
    assert smol.model.tokenizer is not None
    ids = np.array(smol.model.tokenizer.encode(text(name)[: 12 * n])[:n]).reshape(-1, window)
    assert_disjoint(smol.calibration, ids, file_sha256(text_path(name)))
    variants = [("dense", 0.0, dense_thresholds(smol.image)), ("h", 50.0, smol.setting.thresholds)]
    library = Places(NAME).folder / "libsparseflash.so"
    fp32, dense, sparse = measure(smol.model, smol.image, library, ids, variants)
    for r in (fp32, dense, sparse):
        print(f"{r.name}: {r.perplexity:.3f}, {r.ratio:.4f} ± {r.ratio_error:.4f} of fp32")
    # A short text is only known to its error.
    slack = 0.0 if FULL else 2 * sparse.ratio_error
    assert dense.ratio < 1.01 + slack
    assert sparse.perplexity / dense.perplexity < 1.04 + slack
    assert abs(sparse.neurons / smol.image.spec.ffn_dim - 0.5) < 0.05
    assert 0 < dense.kl < 0.02 and dense.same_top > 0.9
    assert sparse.bytes < dense.bytes
