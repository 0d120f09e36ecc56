"""Training of low-rank predictors on a tiny model: what is trained is what is stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_methods import SMALL

from conftest import random_model
from sparseflash.base.errors import UsageError
from sparseflash.image.grids import quantize
from sparseflash.image.predictor import load_predictor
from sparseflash.model.torch_model import TorchModel
from sparseflash.sparsity.predict import train

SHA = "6" * 64


def test_steps_of_a_batch_are_those_of_each_alone() -> None:
    runner = TorchModel(random_model(seed=3, **SMALL))
    ids = np.random.default_rng(1).integers(0, 60, (3, 7))
    together = runner.new_cache(7, 3)
    rows = [runner.step(torch.from_numpy(ids[:, t]), together) for t in range(7)]
    for i, row in enumerate(ids):
        cache = runner.new_cache(7)
        for t, token in enumerate(row):
            torch.testing.assert_close(rows[t][i], runner.step(int(token), cache))


def test_grid_is_the_stored_one() -> None:
    w = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    stored = torch.from_numpy(quantize(w.numpy(), "q4").float32())
    torch.testing.assert_close(train.on_grid(w), stored, atol=1e-6, rtol=0)


def test_continuations_keep_prompts_and_are_drawn_by_the_model() -> None:
    """Greedy in effect: a head scaled up leaves one token all the probability."""
    model = random_model(seed=3, **SMALL)
    runner = TorchModel(model)
    runner._head = runner._head * 1000
    prompts = np.random.default_rng(1).integers(0, 60, (2, 3))
    out = train.continuations(runner, prompts, 8, torch.Generator().manual_seed(1))
    assert (out[:, :3] == prompts).all()
    for row in out:
        best = runner.logits(runner.hidden(torch.from_numpy(row)[None])[0]).argmax(-1)
        assert (best[2:-1].numpy() == row[3:]).all()


@pytest.mark.parametrize("ahead", [False, True])
def test_training_lowers_the_divergence(ahead: bool, tmp_path: Path) -> None:
    model = random_model(seed=5, **SMALL)
    model.source = {"sha256": SHA}
    rng = np.random.default_rng(2)
    settings = train.Settings(32, ahead, steps=60, batch=4, rate=3e-3)
    windows = rng.integers(0, 60, (40, 16))
    out = train.train(model, windows, windows[:8], settings)
    assert out.about["trained"]["kl_50"] < 0.9 * out.about["untrained"]["kl_50"]
    assert out.about["trained"]["kl_0"] == 0
    path = tmp_path / "p.npz"
    out.save(path, model, {"noise": "0" * 64})
    found = load_predictor(path, model.spec, SHA)
    assert (found.rank, found.ahead) == (32, ahead)
    for i in range(model.spec.n_layers):
        for stored, trained in zip(found.blocks(i, 32), out.factors.layer(i)):
            want = trained.detach()
            torch.testing.assert_close(
                torch.from_numpy(stored.float32()), want, atol=1e-5, rtol=1e-5
            )
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["steps"] == 60 and about["model_sha256"] == SHA
    with pytest.raises(UsageError, match="rank 48"):
        train.train(model, windows, windows[:8], replace(settings, rank=48))
