"""Neurons in co-activation order: fewer reads, the same logits."""

from __future__ import annotations

from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest

from conftest import make_workspace, random_model
from small import add_small
from sparseflash.base.errors import InputError
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.reference import Reference
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine
from sparseflash.pipeline import stages as pipeline
from sparseflash.plan.boards import load_board
from sparseflash.plan.plan import make_plan
from sparseflash.sparsity.neuron_order import (
    apart,
    load_order,
    measure_order,
    order_of,
    path_through,
    save_order,
)
from sparseflash.sparsity.texts import calibration_tokens


def test_apart_counts_what_one_neuron_does_without_the_other() -> None:
    active = np.random.default_rng(1).random((50, 40)) < 0.5
    got = apart(active)
    assert got.shape == (2, 32, 32)
    for i in range(40):
        for j in range(i // 32 * 32, min(40, i // 32 * 32 + 32)):
            want = sum(bool(a[i]) != bool(a[j]) for a in active)
            assert got[i // 32, i % 32, j % 32] == want


def test_path_is_the_shortest_of_few_points() -> None:
    rng = np.random.default_rng(2)
    points = rng.random((6, 2))
    d = np.linalg.norm(points[:, None] - points[None], axis=-1)

    def length(p: tuple[int, ...] | list[int]) -> float:
        return sum(d[a, b] for a, b in pairwise(p))

    path = path_through(d)
    assert sorted(path) == list(range(6))
    assert length(path) <= 1.0001 * min(length(p) for p in permutations(range(6)))


@pytest.mark.parametrize("fmt", ["q4", "q8"])
def test_order_keeps_logits_and_moves_h(tmp_path: Path, fmt: str) -> None:
    model = random_model()
    order = np.stack(
        [
            np.concatenate(
                [g + np.random.default_rng(7 * i + g).permutation(min(32, 172 - g))
                 for g in range(0, 172, 32)]
            )
            for i in range(2)
        ]
    )  # fmt: skip
    pack(model, tmp_path / "a.sfm", Formats(ffn=fmt))
    pack(model, tmp_path / "b.sfm", Formats(ffn=fmt, order="coactivation"), order=order)
    ids = np.random.default_rng(3).integers(0, 160, 12)
    limits = np.tile(np.float32([0.02] * 5 + [0] * 7), (2, 1))
    a, b = (Reference(Image(tmp_path / f"{n}.sfm")).run(ids, limits) for n in "ab")
    np.testing.assert_array_equal(a.logits.view(np.uint32), b.logits.view(np.uint32))
    assert a.neurons == b.neurons < 12 * 2 * 172
    for i in range(2):
        np.testing.assert_array_equal(a.sites[i]["h"][:, order[i]], b.sites[i]["h"])


def test_an_order_that_leaves_groups_is_refused(tmp_path: Path) -> None:
    order = np.tile(np.arange(172), (2, 1))
    order[1, [0, 40]] = 40, 0
    with pytest.raises(InputError, match="groups of 32"):
        pack(random_model(), tmp_path / "m.sfm", Formats(order="coactivation"), order=order)
    assert not (tmp_path / "m.sfm").exists()


def test_order_file_is_of_one_model(tmp_path: Path) -> None:
    order = np.tile(np.arange(172), (2, 1))
    save_order(tmp_path / "order.npz", order, "abc")
    np.testing.assert_array_equal(load_order(tmp_path / "order.npz", "abc"), order)
    assert load_order(tmp_path / "order.npz", "other") is None
    (tmp_path / "order.npz").write_bytes(b"PK broken")
    with pytest.raises(InputError, match="damaged"):
        load_order(tmp_path / "order.npz", "abc")


def test_fewer_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neurons that are alike lie apart in the file; the order puts them side by side."""
    base = make_workspace(tmp_path)
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(base))
    recipe = add_small(base)
    model = pipeline.open_model(recipe)
    like = np.arange(172) // 32 * 32 + np.arange(172) % 8
    for layer in model.layers:
        assert layer.gate_proj is not None
        layer.gate_proj = (layer.gate_proj[like] + 0.3 * layer.gate_proj).astype(np.float32)
        layer.up_proj = (layer.up_proj[like] + 0.3 * layer.up_proj).astype(np.float32)
    calibration = pipeline.calibrated(model, recipe)
    ids, _ = calibration_tokens(model, recipe)
    order = measure_order(model, ids, calibration)
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(172), (5, 1)))
    seen, logits = {}, {}
    for name, given in (("file", None), ("coactivation", order)):
        folder = tmp_path / name
        formats = Formats(**recipe.formats, order=name)
        folder.mkdir()
        pack(model, folder / "m.sfm", formats, order=given)
        image = Image(folder / "m.sfm")
        limits = pipeline.setting_for(model, recipe, "h", 70).thresholds
        generate(make_plan(image, load_board("host"), limits), folder)
        engine = Engine(build_library(folder, folder / "libm.so", flags=["-O1"]), image)
        fresh, _ = calibration_tokens(model, recipe, seed=9, tokens=512)
        text = fresh[0][:256]
        logits[name] = [engine.step(int(t)) for t in text]
        seen[name] = engine.counters()
    np.testing.assert_array_equal(np.stack(logits["file"]), np.stack(logits["coactivation"]))
    assert seen["file"]["bytes"] == seen["coactivation"]["bytes"]
    assert seen["coactivation"]["reads"] < seen["file"]["reads"]


def test_order_of_the_last_short_group() -> None:
    order = order_of(apart(np.random.default_rng(4).random((30, 44)) < 0.4), 44)
    assert sorted(order[32:]) == list(range(32, 44))
