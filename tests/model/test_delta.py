"""The delta of a distilled model: exact both ways, small, and refused when it does not fit."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from sparseflash.base.errors import InputError
from sparseflash.base.limits import round_limits
from sparseflash.model.load import delta as fmt
from sparseflash.model.spec import Layer, LayerSpec, Model, ModelSpec, S4Blocks, S4Columns

DIM, FFN, LAYERS = 64, 96, 2


def base_model(seed: int = 0) -> Model:
    g = np.random.default_rng(seed)

    def r(*size: int) -> np.ndarray:
        return g.standard_normal(size).astype(np.float32)

    spec = ModelSpec("llama", 50, DIM, FFN, LAYERS, 4, 2, 16, 64, (LayerSpec(),) * LAYERS)
    layers = [
        Layer(
            attn_norm=r(DIM),
            q_proj=r(64, DIM),
            k_proj=r(32, DIM),
            v_proj=r(32, DIM),
            o_proj=r(DIM, 64),
            ffn_norm=r(DIM),
            gate_proj=r(FFN, DIM),
            up_proj=r(FFN, DIM),
            down_proj=r(DIM, FFN),
        )
        for _ in range(LAYERS)
    ]
    layers[0].up_proj[3, :32] = 0.0  # type: ignore[index]
    return Model(spec, r(50, DIM), layers, r(DIM), source={"sha256": "ab"})


def lines(model: Model) -> list[dict[str, np.ndarray]]:
    return [{m: fmt.lines_of(y, m) for m in fmt.MATRICES} for y in model.layers]


def moved(model: Model, sigma: float, seed: int = 1) -> fmt.Delta:
    g = np.random.default_rng(seed)
    codes = []
    for layer in lines(model):
        found = {}
        for m, w in layer.items():
            e = g.integers(-fmt.SCALE_CODES, fmt.SCALE_CODES + 1, fmt.base_scales(w).shape)
            v = fmt.positions(w, fmt.scales(fmt.base_scales(w), e))
            q = np.clip(np.rint(v + sigma * g.standard_normal(v.shape)), -8, 7)
            found[m] = fmt.fit(w, q, e)
        codes.append(found)
    t = {
        s: np.abs(g.standard_normal((LAYERS, DIM if s == "x" else FFN))).astype(np.float16)
        for s in fmt.SITES
    }
    scale = {b: g.random((LAYERS, 3)).astype(np.float32) for b in (25, 50)}
    norms = {
        b: {
            n: g.random(DIM if n == "final_norm" else (LAYERS, DIM)).astype(np.float32)
            for n in fmt.NORMS
        }
        for b in (25, 50)
    }
    return fmt.Delta(codes, t, scale, norms, {"note": "x"})


@pytest.mark.parametrize("sigma", [0.0, 0.6, 3.0, 20.0])
def test_round_trip_is_exact(tmp_path: Path, sigma: float) -> None:
    model = base_model()
    made = moved(model, sigma)
    fmt.write_delta(tmp_path / "d", made, lines(model))
    read = fmt.read_delta(tmp_path / "d", lines(model))
    for a, b in zip(made.codes, read.codes):
        for m in fmt.MATRICES:
            assert np.array_equal(a[m].q, b[m].q) and np.array_equal(a[m].e, b[m].e)
    for s in fmt.SITES:
        assert np.array_equal(made.threshold[s], read.threshold[s])
    for b in (25, 50):
        assert np.array_equal(made.scale[b], read.scale[b])
        for n in fmt.NORMS:
            assert np.array_equal(made.norms[b][n], read.norms[b][n])
    assert read.meta["note"] == "x"


def test_same_delta_gives_the_same_bytes(tmp_path: Path) -> None:
    model = base_model()
    for n in "ab":
        fmt.write_delta(tmp_path / n, moved(model, 0.5), lines(model))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_size_is_near_the_entropy() -> None:
    """A weight that moves by 0.6 codes costs the entropy of its code given where it was."""
    g = np.random.default_rng(5)
    w = g.standard_normal((512, 512)).astype(np.float32)
    d = fmt.base_scales(w)
    v = fmt.positions(w, d)
    q = np.clip(np.rint(v + 0.6 * g.standard_normal(v.shape)), -8, 7)
    words = fmt.encode(w, fmt.fit(w, q, np.zeros(d.shape)))["words"]
    edges = np.arange(-8, 9)[:, None] + 0.5 - np.linspace(0, 1, 101)
    normal = np.vectorize(lambda x: 0.5 * (1 + math.erf(x / (0.6 * math.sqrt(2)))))
    p = np.maximum(np.diff(normal(edges), axis=0), 1e-30)
    entropy = float(-(p * np.log2(p)).sum(0).mean())
    assert 0.97 * entropy < words.nbytes * 8 / w.size < 1.03 * entropy


def test_regrid_is_the_nearest_code_and_zero_groups_stay_zero() -> None:
    w = lines(base_model())[0]["up"]
    c = fmt.regrid(w)
    d = fmt.scales(fmt.base_scales(w), c.e)
    back = c.q * np.repeat(d.astype(np.float32), 32, axis=-1)
    assert not back[3, :32].any() and np.isfinite(back).all()
    step = np.repeat(np.abs(d.astype(np.float32)), 32, axis=-1)
    # The largest of each group is code -8; the other side ends at 7, one step nearer.
    assert (np.abs(back - w) <= 1.01 * step).all()
    assert np.mean(np.abs(back - w) <= 0.51 * step) > 0.97


def test_apply_gives_blocks_along_what_is_read(tmp_path: Path) -> None:
    model = base_model()
    made = moved(model, 0.7)
    fmt.write_delta(tmp_path / "d", made, lines(model))
    got = fmt.apply_delta(model, tmp_path / "d", 50)
    assert got.spec.own_thresholds and not model.spec.own_thresholds
    for i, layer in enumerate(got.layers):
        assert isinstance(layer.gate_proj, S4Columns) and isinstance(layer.down_proj, S4Columns)
        assert isinstance(layer.up_proj, S4Blocks)
        for m, blocks in (
            ("gate", layer.gate_proj),
            ("up", layer.up_proj),
            ("down", layer.down_proj),
        ):
            w = lines(model)[i][m]
            c = made.codes[i][m]
            d = fmt.scales(fmt.base_scales(w), c.e).astype(np.float32)
            want = c.q.astype(np.float32) * np.repeat(d, 32, axis=-1)
            assert np.array_equal(blocks.float32(), want if m == "up" else want.T)
        assert layer.thresholds is not None
        x = made.threshold["x"][i].astype(np.float32) * made.scale[50][i, 0]
        x = round_limits(x)
        assert layer.thresholds.x.dtype == np.float32 and np.array_equal(layer.thresholds.x, x)
        assert layer.thresholds.h.shape == (FFN,)
        assert layer.q_proj is model.layers[i].q_proj
    tight = fmt.apply_delta(model, tmp_path / "d")
    assert tight.source["budget"] == "25"
    assert len({got.source["sha256"], tight.source["sha256"], "ab"}) == 3


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = base_model()
    path = tmp_path / "d"
    fmt.write_delta(path, moved(model, 0.7), lines(model))
    with pytest.raises(InputError, match="it has 25, 50"):
        fmt.apply_delta(model, path, 35)
    with pytest.raises(InputError, match=r"base"):
        fmt.apply_delta(base_model(seed=9), path, 50)
    with pytest.raises(InputError, match="not a whole delta"):
        fmt.read_delta(tmp_path / "missing", lines(model))
    data = path.read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="not a whole delta"):
        fmt.read_delta(tmp_path / "cut", lines(model))
    with pytest.raises(InputError, match="2 layers, the base model has 1"):
        fmt.read_delta(path, lines(model)[:1])


def test_a_flipped_byte_never_passes(tmp_path: Path) -> None:
    model = base_model()
    path = tmp_path / "d"
    fmt.write_delta(path, moved(model, 0.7), lines(model))
    data = path.read_bytes()
    want = fmt.read_delta(path, lines(model))
    g = np.random.default_rng(2)
    for at in g.integers(0, len(data), 40):
        broken = bytearray(data)
        broken[at] ^= 1 << int(g.integers(8))
        path.write_bytes(bytes(broken))
        try:
            got = fmt.read_delta(path, lines(model))
        except InputError:
            continue
        # Only bytes that say nothing (times, names of the archive) may differ.
        for a, b in zip(want.codes, got.codes):
            assert all(np.array_equal(a[m].q, b[m].q) for m in fmt.MATRICES)
        assert all(np.array_equal(want.scale[b], got.scale[b]) for b in want.scale)


def test_a_missing_coder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = base_model()
    fmt.write_delta(tmp_path / "d", moved(model, 0.7), lines(model))
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(InputError, match="needs the package constriction"):
        fmt.read_delta(tmp_path / "d", lines(model))
