"""Low-rank predictors: their definition by direct loops, their files, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_methods import SMALL, check, seen, silu

from conftest import random_model, random_predictor
from sparseflash.base.errors import InputError, SparseflashError, UnsupportedError, UsageError
from sparseflash.image.formats import Formats
from sparseflash.image.needs import Needs
from sparseflash.image.pack import pack
from sparseflash.image.predictor import Predictor, load_predictor, predictor_bytes
from sparseflash.image.proxy import Proxies, Signs
from sparseflash.image.sfm import Image
from sparseflash.model.recipes import PredictorFile, load_recipe
from sparseflash.model.spec import Activation, as_float32
from sparseflash.model.torch_model import Hooks
from sparseflash.pipeline.stages import setting_for
from sparseflash.sparsity.evaluate import evaluate, losses
from sparseflash.sparsity.levels import levels_of, measured
from sparseflash.sparsity.page.report import row_of
from sparseflash.sparsity.predict import lowrank
from sparseflash.sparsity.registry import method
from sparseflash.sparsity.setting import Setting, needs_for
from sparseflash.sparsity.study import Study

SHA = "5" * 64


def study_with(folder: Path, ahead: bool) -> Study:
    """A tiny model whose recipe names one predictor, lowrank-32."""
    model = random_model(seed=5, **SMALL)
    model.source = {"sha256": SHA}
    path = folder / "p.npz"
    random_predictor(model.spec, 32, ahead).save(path, {"model_sha256": SHA})
    file = PredictorFile(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    rng = np.random.default_rng(2)
    return Study(
        model,
        Formats("q8", "q8", "q8"),
        rng.integers(0, 60, (6, 40)),
        rng.integers(0, 60, (2, 14)),
        trained={"lowrank-32": file},
    )


@pytest.mark.parametrize("name", ["lowrank-32", "lowrank-32-ahead", "svd-64"])
def test_definition(name: str, tmp_path: Path) -> None:
    """A neuron lives when |act(A_gate B x) * (A_up B x)| reaches the threshold."""
    ahead = name.endswith("ahead")
    study = study_with(tmp_path, ahead)
    study.trained = {name: study.trained["lowrank-32"]}
    m = method(name)
    predictor = study.predictor(m)
    assert predictor.ahead == ahead and predictor.rank == m.rank
    factors = [[b.float32().astype(np.float64) for b in predictor.blocks(i, 32)] for i in range(2)]
    site = "attn_in" if ahead else "ffn_in"

    def prediction(layer: int, x: np.ndarray) -> np.ndarray:
        b, gate, up = factors[layer]
        z = np.array([sum(w * v for w, v in zip(row, x)) for row in b])
        return np.abs(silu(gate @ z) * (up @ z))

    tensors = seen(study.model, study.calibration_ids)
    limits = []
    for i, rules in enumerate(study.rules(m, levels_of(study, m, 0.5))):
        assert rules.proxy is not None
        limits.append(rules.proxy.rule.threshold)
        scores = [prediction(i, x) for x in tensors[i][site]]
        assert limits[i] == pytest.approx(np.quantile(scores, 0.5), rel=0.02)

    def drop(layer: int, where: str, x: np.ndarray, know: dict[str, np.ndarray]) -> np.ndarray:
        if where != "h":
            return x
        return np.where(prediction(layer, know[site]) >= limits[layer], x, 0.0)

    reads = check(study, name, 0.5, drop)
    assert (reads.gate_rows == reads.columns).all()
    rows = m.rank * 20 + 2 * 48 * m.rank // 32 * 20  # dim is one group of 20 bytes
    assert study.extra(m).proxy == rows == predictor_bytes(study.model.spec, m.rank)
    result = measured(study, m, 0.5)
    row = row_of(study, result, result.losses)
    assert (row["method"], row["device"]) == (name, True)


def test_signs(tmp_path: Path) -> None:
    """A neuron lives when enough signs of its gate row are those of the input, one by one."""
    study = study_with(tmp_path, False)
    m = method("signs")
    with pytest.raises(UsageError, match="it is for ReLU gates and this one has silu"):
        study.rules(m, levels_of(study, m, 0.5))
    with pytest.raises(UnsupportedError, match="ReLU"):
        pack(study.model, tmp_path / "m.sfm", needs=Needs(predictor=Signs()))
    study = Study(
        random_model(seed=5, activation=Activation.RELU, **SMALL),
        study.formats,
        study.calibration_ids,
        study.windows,
    )
    seen_x: list[list[np.ndarray]] = [[], []]

    class See(Hooks):
        def ffn_in(self, layer: int, x: torch.Tensor) -> torch.Tensor:
            seen_x[layer] += list(x.reshape(-1, 32).numpy())
            return x

        def ffn(
            self, layer: int, g: torch.Tensor, u: torch.Tensor, h: torch.Tensor
        ) -> torch.Tensor:
            k = len(masked[layer])
            x = seen_x[layer][k : k + h.shape[1]]
            want = [
                [
                    sum((a < 0) == (b < 0) for a, b in zip(row, v)) >= limits[layer]
                    for row in w[layer]
                ]
                for v in x
            ]
            masked[layer] += want
            return h * torch.tensor(want)

    rules = study.rules(m, levels_of(study, m, 0.5))
    limits = [r.proxy.rule.threshold for r in rules if r.proxy]
    w = [as_float32(layer.gate_proj) for layer in study.model.layers]
    masked: list[list[list[bool]]] = [[], []]
    want = losses(study.runner, study.windows, See())
    got, reads = evaluate(study.runner, study.windows, rules)
    np.testing.assert_allclose(got.sums, want.sums, rtol=1e-5)
    assert reads.gate_rows.tolist() == [sum(map(sum, one)) for one in masked]
    assert 0.3 < np.mean(masked) < 0.8
    assert study.extra(m).proxy == 48 * 32 / 8


def test_shared_factors_lose_least_output() -> None:
    """The error of both outputs is the tail of the spectrum; absent ranks are zeros."""
    rng = np.random.default_rng(5)
    gate, up = rng.standard_normal((2, 12, 16))
    x = rng.standard_normal((500, 16)) @ rng.standard_normal((16, 16))
    c = x.T @ x / len(x)
    both = np.concatenate([gate, up])
    values = np.sort(np.linalg.eigvalsh(both @ c @ both.T))
    for rank, lost in ((4, values[:-4].sum()), (32, 0.0)):
        b, ag, au = lowrank.shared_factors(*map(torch.tensor, (gate, up, c)), rank)
        assert b.shape == (rank, 16) and ag.shape == au.shape == (12, rank)
        prediction = np.concatenate([(a @ b).numpy() @ x.T for a in (ag, au)])
        error = ((both @ x.T - prediction) ** 2).sum() / len(x)
        assert error == pytest.approx(lost, rel=1e-3, abs=1e-6)


def test_singular_vectors_follow_h(tmp_path: Path) -> None:
    """At full rank the prediction is h but for the grid, so it finds nearly the neurons of h."""
    study = study_with(tmp_path, False)
    tensors = seen(study.model, study.calibration_ids)
    for i, (gate, up) in enumerate(study.copies(method("svd-64"))):
        x, h = tensors[i]["ffn_in"], np.abs(tensors[i]["h"])
        prediction = np.abs(silu(x @ gate.double().numpy().T) * (x @ up.double().numpy().T))
        active = h >= np.median(h)
        assert (active == (prediction >= np.median(prediction))).mean() > 0.9
    w = study.model.layers[0]
    assert (
        np.corrcoef(study.copies(method("svd-64"))[0][0].ravel(), as_float32(w.gate_proj).ravel())[
            0, 1
        ]
        > 0.9
    )


def test_files(tmp_path: Path) -> None:
    spec = random_model(**SMALL).spec
    path = tmp_path / "p.npz"
    kept = random_predictor(spec, 64, ahead=True)
    kept.save(path, {"model_sha256": SHA, "seed": 3})
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    got = load_predictor(path, spec, SHA, sha)
    assert got.digest == kept.digest and got.ahead and got.rank == 64
    assert got.digest != Predictor(kept.b, kept.gate, kept.up).digest

    def refused(kind: type[SparseflashError], what: str, *args: str) -> None:
        with pytest.raises(kind, match=what) as e:
            load_predictor(path, spec, *(args or (SHA,)))
        assert "\n" not in str(e.value)

    refused(InputError, "trained for the weights", "6" * 64)
    refused(InputError, "not that of the recipe", SHA, "0" * 64)
    whole = path.read_bytes()
    path.write_bytes(whole[:-700])
    refused(InputError, "damaged")
    path.unlink()
    refused(InputError, "not there")
    random_predictor(spec, 32).save(path, {})
    refused(InputError, "damaged")
    random_predictor(spec, 40).save(path, {"model_sha256": SHA})
    refused(UnsupportedError, "multiple of 32")
    random_predictor(random_model(dim=64).spec, 32).save(path, {"model_sha256": SHA})
    refused(InputError, "made for another model")
    huge = random_predictor(spec, 32)
    huge.up[0, 3, 16:18] = np.array([99.0], np.float16).view(np.uint8)
    huge.save(path, {"model_sha256": SHA})
    refused(UnsupportedError, "64 or more")
    kept.save(path, {"model_sha256": SHA})
    path.with_suffix(".json").write_text(json.dumps([1]))
    refused(InputError, "damaged")


def test_refusals(tmp_path: Path) -> None:
    study = study_with(tmp_path, False)
    with pytest.raises(UsageError, match="names no predictor 'lowrank-64'; it names lowrank-32"):
        study.predictor(method("lowrank-64"))
    study.trained = {"lowrank-64": study.trained["lowrank-32"]}
    with pytest.raises(InputError, match="has rank 32"):
        study.predictor(method("lowrank-64"))
    with pytest.raises(UsageError, match=re.escape("lowrank-<rank>")):
        method("lowrank-x")
    recipe = load_recipe("random-8m")
    one = {"proxy": np.full(2, 0.5)}
    asked = [
        Setting(name, 50, one if "-" in name else {"h": one["proxy"]}, np.zeros((2, 12)))
        for name in ("lowrank-64-ahead", "h", "svd-64", "lowrank-64")
    ]
    needs_for(recipe, asked[:2])
    with pytest.raises(UsageError, match="one predictor"):
        needs_for(recipe, asked[2:])
    model = random_model()
    with pytest.raises(UnsupportedError, match="rows of gate and up"):
        needs = Needs(("gate up",) * 2, predictor=random_predictor(model.spec, 32))
        pack(model, tmp_path / "m.sfm", needs=needs)
    with pytest.raises(InputError, match="made for another model"):
        other = random_predictor(random_model(dim=96).spec, 32)
        pack(model, tmp_path / "m.sfm", needs=Needs(predictor=other))
    with pytest.raises(UnsupportedError, match="proxies of 5 bits"):
        pack(model, tmp_path / "m.sfm", needs=Needs(predictor=Proxies(5)))


def test_speculation_needs_a_prediction_and_a_mask() -> None:
    model, recipe = random_model(), load_recipe("random-8m")
    for method_name, prediction in (("cats", "h"), ("svd-64", "prox-2"), ("dense", "svd-64")):
        with pytest.raises(UsageError, match="drops neurons by their true values"):
            setting_for(model, recipe, method_name, 50, prediction)


def test_image_and_order(tmp_path: Path) -> None:
    """The image holds the rows of the file; a neuron order moves those of A."""
    model = random_model()
    p = random_predictor(model.spec, 32, ahead=True)
    rng = np.random.default_rng(1)
    order = np.stack(
        [
            np.concatenate(
                [rng.permutation(np.arange(a, min(a + 32, 172))) for a in range(0, 172, 32)]
            )
        ]
        * 2
    )
    for formats, moved in (
        (Formats(), None),
        (Formats(order="coactivation"), order),
    ):
        pack(model, tmp_path / "m.sfm", formats, Needs(predictor=p), moved)
        image = Image(tmp_path / "m.sfm")
        assert image.ahead and image.needs["predictor"] == p.digest
        for i in range(2):
            want = p.blocks(i, 64)
            for k, (a, b) in enumerate(zip(image.predictor(i), want)):
                rows = b.float32() if moved is None or k == 0 else b.float32()[moved[i]]
                assert np.array_equal(a.float32(), rows)
