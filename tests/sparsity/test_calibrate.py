"""Calibration: percentiles against exact ones, files, and the guard between texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import random_model
from sparseflash.base.errors import InputError, UsageError
from sparseflash.model.spec import Activation
from sparseflash.model.torch_model import Hooks, TorchModel
from sparseflash.sparsity import calibrate as cal
from sparseflash.sparsity.calibrate import (
    BINS,
    CHUNK,
    SITES,
    Calibration,
    assert_disjoint,
    calibrate,
)


def of_values(values: np.ndarray, site: str = "h") -> Calibration:
    counts = np.zeros((1, len(SITES), BINS), np.int64)
    counts[0, SITES.index(site)] = cal.histogram(torch.from_numpy(values.astype(np.float32)))
    return Calibration(counts, np.empty(0, np.uint64))


def ids_of(n: int, vocab: int = 160, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, n)


def test_edges_are_the_bins() -> None:
    edges = cal.bin_edges()
    assert len(edges) == BINS + 1
    assert (np.diff(edges) > 0).all()
    widths = edges[2:-1] / edges[1:-2] - 1
    assert widths.max() <= 1 / 128 + 1e-12
    for k in (1, 2, 1000, BINS - 2):
        counts = cal.histogram(torch.tensor([edges[k]], dtype=torch.float32))
        assert counts.sum() == 1 and counts[k] == 1
        below = np.nextafter(np.float32(edges[k]), np.float32(0))
        assert cal.histogram(torch.tensor([below]))[k - 1] == 1


def test_histogram_takes_magnitudes_of_any_layout() -> None:
    x = torch.randn(7, 33, generator=torch.Generator().manual_seed(1))
    whole = cal.histogram(x)
    assert whole.sum() == x.numel()
    assert (cal.histogram(-x) == whole).all()
    assert (cal.histogram(x.T) == whole).all()
    assert (cal.histogram(x[:, ::2]) + cal.histogram(x[:, 1::2]) == whole).all()
    ends = cal.histogram(torch.tensor([0.0, -0.0, 1e-30, 3e30]))
    assert ends[0] == 3 and ends[-1] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_histogram_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(InputError, match="not finite"):
        cal.histogram(torch.tensor([1.0, bad]))


@pytest.mark.parametrize("kind", ["normal", "heavy", "tiny", "uniform", "product"])
@pytest.mark.parametrize("sparsity", [0.05, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_threshold_is_the_quantile(kind: str, sparsity: float) -> None:
    rng = np.random.default_rng(11)
    n = 200_000
    values = {
        "normal": rng.standard_normal(n),
        "heavy": rng.standard_t(2, n) * 30,
        "tiny": rng.standard_normal(n) * 1e-6,
        "uniform": rng.random(n),
        "product": rng.standard_normal(n) * rng.standard_normal(n) ** 3,
    }[kind].astype(np.float32)
    t = of_values(values).threshold(0, "h", sparsity)
    exact = np.quantile(np.abs(values), sparsity)
    assert abs(t / exact - 1) < 0.01
    assert abs((np.abs(values) < np.float32(t)).mean() - sparsity) < 0.005


def test_dropped_inverts_threshold() -> None:
    c = of_values(np.random.default_rng(2).standard_normal(10_000))
    for s in (0.1, 0.5, 0.93):
        assert c.dropped(0, "h", c.threshold(0, "h", s)) == pytest.approx(s, abs=1e-9)
    assert c.dropped(0, "h", 0.0) == 0.0


def test_threshold_of_relu_zeros_and_of_dense() -> None:
    x = np.random.default_rng(4).standard_normal(40_000)
    c = of_values(np.maximum(x, 0))
    assert c.threshold(0, "h", 0.0) == 0.0
    assert 0 < c.threshold(0, "h", 0.3) < 2.0**-30  # exact zeros go, and nothing else
    exact = np.quantile(np.maximum(x, 0), 0.8)
    assert c.threshold(0, "h", 0.8) == pytest.approx(exact, rel=0.01)


def test_threshold_refusals() -> None:
    c = of_values(np.ones(4))
    for sparsity in (-0.1, 1.0, 50.0, float("nan")):
        with pytest.raises(UsageError, match="50 % is written"):
            c.threshold(0, "h", sparsity)
    with pytest.raises(UsageError, match="no calibration site"):
        c.threshold(0, "x", 0.5)
    with pytest.raises(UsageError, match="no calibration site"):
        c.thresholds({"x": 0.5})
    with pytest.raises(UsageError, match="not measured"):
        c.threshold(0, "gate", 0.5)
    with pytest.raises(UsageError, match="no layer 1"):
        c.threshold(1, "h", 0.5)


@pytest.mark.parametrize(
    ("activation", "gated"),
    [(Activation.SILU, True), (Activation.GELU_TANH, True), (Activation.RELU, True)],
)
def test_calibrate_counts_what_the_model_computes(activation: Activation, gated: bool) -> None:
    model = random_model(activation=activation, gated=gated)
    ids = ids_of(4 * 64).reshape(4, 64)
    seen: dict[tuple[int, str], list[np.ndarray]] = {}

    class Keep(Hooks):
        def ffn(
            self, layer: int, gate: torch.Tensor, up: torch.Tensor, h: torch.Tensor
        ) -> torch.Tensor:
            act = {
                Activation.SILU: torch.nn.functional.silu,
                Activation.RELU: torch.relu,
                Activation.GELU_TANH: lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
            }[activation](gate)
            for site, value in (("gate", gate), ("act", act), ("up", up), ("h", h)):
                seen.setdefault((layer, site), []).append(value.numpy().copy())
            return h

        def ffn_out(self, layer: int, o: torch.Tensor) -> torch.Tensor:
            seen.setdefault((layer, "down"), []).append(o.numpy().copy())
            return o

    TorchModel(model).hidden(torch.from_numpy(ids), Keep())
    got = calibrate(model, ids, batch=4)
    for layer in range(model.spec.n_layers):
        for site in SITES:
            values = np.abs(np.concatenate([v.ravel() for v in seen[layer, site]]))
            assert got.counts[layer, SITES.index(site)].sum() == values.size
            exact = np.quantile(values, 0.7)
            assert got.threshold(layer, site, 0.7) == pytest.approx(exact, rel=0.01)
    table = got.thresholds({"h": 0.5, "act": 0.25})
    assert table.dtype == np.float32 and table.shape == (2, 5)
    assert table[1, SITES.index("h")] == np.float32(got.threshold(1, "h", 0.5))
    assert (table[:, [SITES.index(s) for s in ("gate", "up", "down")]] == 0).all()


def test_batches_and_order_do_not_matter_and_memory_is_fixed() -> None:
    model = random_model()
    ids = ids_of(6 * 64).reshape(6, 64)
    one = calibrate(model, ids, batch=1)
    two = calibrate(model, ids.ravel(), window=64, batch=1)
    assert (one.counts == two.counts).all()
    assert one.meta == two.meta
    half = calibrate(model, ids[:2])
    assert half.counts.shape == one.counts.shape
    flipped = calibrate(model, ids[::-1], batch=1)
    assert (flipped.counts == one.counts).all()


def test_ungated_model_has_no_gate() -> None:
    model = random_model(gated=False)
    for layer in model.layers:
        layer.gate_proj = None
    got = calibrate(model, ids_of(128), window=64)
    assert got.meta["sites"] == ["up", "h", "down"]
    with pytest.raises(UsageError, match="not measured"):
        got.threshold(0, "act", 0.5)


def test_calibrate_refusals() -> None:
    model = random_model()
    with pytest.raises(UsageError, match="no tokens"):
        calibrate(model, np.empty(0, np.int64))
    with pytest.raises(UsageError, match="outside"):
        calibrate(model, np.array([5, 160]))
    with pytest.raises(UsageError, match="exceed the context"):
        calibrate(model, ids_of(600).reshape(1, 600))
    with pytest.raises(UsageError, match="no calibration site"):
        calibrate(model, ids_of(64), sites=("x",))


def test_save_and_load(tmp_path: Path) -> None:
    model = random_model()
    model.source["sha256"] = "ab" * 32
    got = calibrate(model, ids_of(256), window=64, texts={"t": "cd" * 32})
    path = tmp_path / "deep" / "calibration.npz"
    got.save(path)
    back = Calibration.load(path)
    assert (back.counts == got.counts).all() and (back.chunks == got.chunks).all()
    assert back.meta == got.meta and back.model_sha256 == "ab" * 32
    readable = json.loads(path.with_suffix(".json").read_text())
    for key in ("model", "model_sha256", "texts", "windows_sha256", "tokens", "seed"):
        assert readable[key] == got.meta[key]
    assert readable["thresholds"]["h"]["50%"][1] == pytest.approx(
        got.threshold(1, "h", 0.5), rel=1e-5
    )
    assert list(readable["thresholds"]["h"]) == [f"{p}%" for p in range(30, 100, 10)]
    first = path.read_bytes()
    got.save(path)
    assert path.read_bytes() == first
    assert sorted(p.name for p in path.parent.iterdir()) == ["calibration.json", "calibration.npz"]


def test_the_order_of_what_was_recorded_changes_no_byte(tmp_path: Path) -> None:
    got = of_values(np.ones(9))
    for name, meta in (("a", {"seed": 1, "texts": "t"}), ("b", {"texts": "t", "seed": 1})):
        Calibration(got.counts, got.chunks, meta).save(tmp_path / f"{name}.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no calibration"):
        Calibration.load(tmp_path / "none.npz")
    path = tmp_path / "calibration.npz"
    of_values(np.random.default_rng(0).standard_normal(5000)).save(path)
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="damaged"):
            Calibration.load(path)
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 0xFF
    path.write_bytes(bytes(damaged))
    with pytest.raises(InputError):
        Calibration.load(path)
    np.savez(path, counts=np.zeros((1, 5, 7), np.int64), chunks=np.empty(0, np.uint64),
             meta=np.frombuffer(b"{}", np.uint8))  # fmt: skip
    with pytest.raises(InputError, match="another version"):
        Calibration.load(path)


@pytest.mark.parametrize("shift", [0, 1, 17, 31])
def test_shared_text_is_found_at_any_place(shift: int) -> None:
    model = random_model()
    ids = ids_of(4 * 64).reshape(4, 64)
    c = calibrate(model, ids)
    clean = ids_of(500, seed=99)
    assert_disjoint(c, clean)
    shared = clean.copy()
    shared[100 + shift : 100 + shift + 63] = ids[2, 1:64]
    with pytest.raises(UsageError, match="evaluate on another text"):
        assert_disjoint(c, shared)
    shared = clean.copy()
    shared[100 : 100 + CHUNK - 1] = ids[2, : CHUNK - 1]
    assert_disjoint(c, shared)
    assert_disjoint(c, clean[: CHUNK - 1])


def test_same_text_is_found_by_its_hash() -> None:
    c = Calibration(np.zeros((1, 5, BINS), np.int64), np.empty(0, np.uint64), {"texts": {"a": "1"}})
    assert_disjoint(c, ids_of(64), "2")
    with pytest.raises(UsageError, match="text 'a'"):
        assert_disjoint(c, ids_of(64), "1")


def test_windows_are_spread_and_repeatable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Bytes:
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

    model = random_model(vocab=256)
    model.tokenizer = Bytes()  # type: ignore[assignment]
    for name in ("a.txt", "b.txt"):
        letters = np.random.default_rng(ord(name[0])).integers(97, 123, 9000).astype(np.uint8)
        (tmp_path / name).write_bytes(letters.tobytes())
    names = [str(tmp_path / n) for n in ("a.txt", "b.txt")]
    ids, hashes = cal.calibration_windows(model, names, tokens=10 * 64, window=64, seed=5)
    again, _ = cal.calibration_windows(model, names, tokens=10 * 64, window=64, seed=5)
    other, _ = cal.calibration_windows(model, names, tokens=10 * 64, window=64, seed=6)
    assert ids.shape == (10, 64) and (ids == again).all() and (ids != other).any()
    assert list(hashes) == names
    for k, name in enumerate(names):
        text = Path(name).read_bytes()
        starts = [text.index(bytes(row.astype(np.uint8))) for row in ids[5 * k : 5 * k + 5]]
        assert starts == sorted(starts)
        assert [s // 1800 for s in starts] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="too short"):
        cal.calibration_windows(model, names, tokens=400 * 64, window=64)


def test_random_windows() -> None:
    """As many whole windows as the tokens need, of every id of the vocabulary."""
    model = random_model()
    ids, hashes = cal.calibration_windows(model, ["random"], tokens=65 * 64 - 63, window=64, seed=2)
    assert ids.shape == (65, 64) and ids.dtype == np.int64 and list(hashes) == ["random"]
    assert set(ids.ravel()) == set(range(model.spec.vocab))
    other, _ = cal.calibration_windows(model, ["random"], tokens=65 * 64, window=64, seed=3)
    assert other.shape == ids.shape and (other != ids).any()


@pytest.mark.parametrize("fault", ["texts", "window", "tokens", "context"])
def test_windows_that_cannot_be(fault: str, tmp_path: Path) -> None:
    model = random_model(vocab=256)
    model.tokenizer = type("Bytes", (), {"encode": lambda _, t: list(t.encode())})()  # type: ignore
    (tmp_path / "a.txt").write_text("some words and more of them " * 400)
    texts = [str(tmp_path / "a.txt")]
    good = {"texts": texts, "tokens": 1, "window": CHUNK}
    ids, _ = cal.calibration_windows(model, **good)  # type: ignore[arg-type]
    assert ids.shape == (1, CHUNK)
    bad = {"texts": {"texts": []}, "window": {"window": CHUNK - 1}, "tokens": {"tokens": 0}}
    if fault == "context":
        whole, _ = cal.calibration_windows(model, texts, 256, model.spec.context)
        assert whole.shape == (1, 256)
        clipped, _ = cal.calibration_windows(model, texts, 512, 2 * model.spec.context)
        assert clipped.shape == (2, 256)
        return
    with pytest.raises((InputError, UsageError)):
        cal.calibration_windows(model, **(good | bad[fault]))  # type: ignore[arg-type]


def test_thresholds_of_few_values_to_the_digit() -> None:
    """Between the edges of a bin a threshold is on the line."""
    c = of_values(np.array([1.0, 1.0, 2.0, 4.0]))
    assert c.threshold(0, "h", 0.25) == 1 + 1 / 256
    assert c.threshold(0, "h", 0.5) == 1 + 1 / 128
    assert c.threshold(0, "h", 0.75) == 2 + 2 / 128
    assert c.threshold(0, "h", 0.875) == 4 + 2 / 128
    assert c.dropped(0, "h", 1 + 1 / 256) == 0.25 and c.dropped(0, "h", 3.0) == 0.75
    edges = cal.bin_edges()
    assert (edges[1], edges[-2], edges[-1]) == (2.0**-30, 2.0**20, 2.0**21)
    assert BINS == 50 * 128 + 2 and edges[129] == 2.0**-29
    high = of_values(np.array([2.0**20, 1e9]))
    assert high.threshold(0, "h", 0.5) == 2.0**20 + 2.0**19
    assert of_values(np.array([2.0**-31] * 2)).threshold(0, "h", 0.5) == 2.0**-31


def test_last_layers_and_negative_ones() -> None:
    c = of_values(np.ones(4))
    for layer in (-1, 1):
        with pytest.raises(UsageError, match=f"no layer {layer}; the calibration has 1"):
            c.threshold(layer, "h", 0.5)
    assert c.n_layers == 1 and c.model_sha256 == ""


def test_what_was_measured_is_recorded() -> None:
    model = random_model()
    model.source["factors"] = "f" * 64
    c = calibrate(model, ids_of(3 * 64 + 5), window=64, texts={"t": "1"}, seed=9)
    assert (c.meta["tokens"], c.meta["window"], c.meta["seed"]) == (192, 64, 9)
    assert c.meta["texts"] == {"t": "1"} and c.meta["sites"] == list(SITES)
    assert c.meta["factors"] == "f" * 64 and c.measured(model)
    assert c.counts[:, SITES.index("h")].sum() == 192 * 2 * model.spec.ffn_dim
    assert len(c.chunks) == 3 * 64 // CHUNK
    model.source["factors"] = "0"
    assert not c.measured(model)
    one = calibrate(model, ids_of(40), window=64, sites=("up",))
    assert one.meta["sites"] == ["up"] and (one.meta["tokens"], one.meta["window"]) == (40, 40)
    for bad in (np.array([-1, 3]), np.array([3, 160]), np.zeros((2, 3, 4), np.int64)):
        with pytest.raises(UsageError):
            calibrate(model, bad)
    calibrate(model, np.array([0, 159]))
    calibrate(model, ids_of(256).reshape(1, 256))


def test_the_message_of_shared_text_says_where() -> None:
    c = calibrate(random_model(), ids_of(64), window=64, texts={"t": "1", "u": "2"})
    other = np.concatenate([ids_of(50, seed=7), ids_of(64)[:CHUNK], ids_of(9, seed=8)])
    with pytest.raises(
        UsageError, match=r"^1 runs of 32 tokens, the first at token 50, .*\(t, u\)"
    ):
        assert_disjoint(c, other)
    with pytest.raises(UsageError, match="text 'u'"):
        assert_disjoint(c, ids_of(9, seed=8), "2")
    assert_disjoint(c, ids_of(100, seed=8), None)


@pytest.mark.parametrize("part", ["shape", "sites", "type", "chunks"])
def test_arrays_of_another_kind_are_refused(part: str, tmp_path: Path) -> None:
    counts, chunks = np.zeros((2, len(SITES), BINS), np.int64), np.empty(0, np.uint64)
    changed = {
        "shape": (counts[0], chunks),
        "sites": (counts[:, 1:], chunks),
        "type": (counts.astype(np.int32), chunks),
        "chunks": (counts, chunks.astype(np.int64)),
    }
    Calibration(counts, chunks).save(tmp_path / "good.npz")
    Calibration.load(tmp_path / "good.npz")
    np.savez(tmp_path / "c.npz", counts=changed[part][0], chunks=changed[part][1],
             meta=np.frombuffer(b"{}", np.uint8))  # fmt: skip
    with pytest.raises(InputError, match="another version"):
        Calibration.load(tmp_path / "c.npz")
