"""Distillation on a tiny random model: it learns, keeps to its bytes, resumes, and is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparseflash.base.errors import InputError
from sparseflash.model.load import delta as fmt
from sparseflash.train.distill import SPLITS, Distiller, Pace, Settings, split
from sparseflash.train.evaluate import dense_of, hidden, measure, sparse_of, with_budget
from sparseflash.train.student import Quantise, Shape, bytes_of, drop, random_base
from sparseflash.train.windows import Mixture

SHAPE = Shape(128, 64, 96, 2, 4, 2, 16, 10000.0, 1e-5)
SETTINGS = Settings(
    budgets=(54, 39), shares=(0.5, 0.5), windows=4, window=24, lr=3e-3, warm=5, every=5, chunk=64
)


def mixture(window: int = 24) -> Mixture:
    g = np.random.default_rng(3)
    texts = {"a": (g.integers(0, 128, 4000), 1.0), "b": (g.integers(0, 20, 900), 0.5)}
    return Mixture(texts, window, "cpu", 1)


def distiller(settings: Settings = SETTINGS) -> Distiller:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return Distiller(random_base(SHAPE), settings, "cpu", torch.float32)


@pytest.fixture(scope="module")
def trained() -> tuple[Distiller, Mixture]:
    d, m = distiller(), mixture()
    d.begin(m)
    d.run(m, Pace(steps=100))
    return d, m


def lines(d: Distiller) -> list[dict[str, np.ndarray]]:
    return [d.base.lines(i) for i in range(SHAPE.layers)]


def test_learning_beats_thresholds_alone(trained: tuple[Distiller, Mixture]) -> None:
    d, m = trained
    m.generator.manual_seed(99)
    ids = m.draw(16)
    learned = d.delta(ids)
    untrained = distiller()
    untrained.begin(mixture())
    rounded = untrained.delta(ids)
    dense = dense_of(d.student)
    for b in SETTINGS.budgets:
        after = measure(dense, sparse_of(d.student, learned, d.base, b), ids)
        before = measure(dense, sparse_of(d.student, rounded, d.base, b), ids)
        assert after["kl"] < 0.95 * before["kl"]
        # Same bytes: otherwise the comparison says nothing.
        assert after["bytes"] == pytest.approx(b / 100, abs=0.01)
        assert before["bytes"] == pytest.approx(b / 100, abs=0.01)


def test_densities_reach_their_targets(trained: tuple[Distiller, Mixture]) -> None:
    d, _ = trained
    for k, b in enumerate(SETTINGS.budgets):
        want = torch.tensor(split(SHAPE, b - SETTINGS.margin))
        assert torch.allclose(d.densities[k].mean(0), want, atol=0.05)


def test_resume_equals_one_run(tmp_path: Path) -> None:
    a, m = distiller(), mixture()
    a.begin(m)
    a.run(m, Pace(steps=24))
    b = distiller()
    b.begin(mixture())
    b.run(mixture(), PartialPace(24, 11))
    assert b.step == 11
    b.save(tmp_path / "c.pt")
    c = distiller()
    c.load(tmp_path / "c.pt")
    c.run(mixture(), Pace(steps=24))
    assert c.step == a.step == 24
    for n in ("gate", "up", "down"):
        assert torch.equal(a.student.change[n], c.student.change[n])
        assert torch.equal(a.student.d[n], c.student.d[n])
    assert torch.equal(a.student.log_t, c.student.log_t)
    assert a.progress == c.progress


def test_a_finished_delta_is_gone_on_from(trained: tuple[Distiller, Mixture]) -> None:
    """Same weights, thresholds and norms; then norms of the budgets part."""
    d, m = trained
    delta = d.delta()
    again = distiller(Settings(**{**vars(SETTINGS), "ramp": 0.0, "quantise_from": 0.0}))
    again.start_from(delta)
    assert again.quantised
    made = again.delta()
    for a, b in zip(delta.codes, made.codes):
        for n in fmt.MATRICES:
            assert np.array_equal(a[n].q, b[n].q) and np.array_equal(a[n].e, b[n].e)
    for site in fmt.SITES:
        assert np.array_equal(delta.threshold[site], made.threshold[site])
    for b in SETTINGS.budgets:
        assert np.allclose(delta.scale[b], made.scale[b], rtol=1e-5)
        for n in fmt.NORMS:
            assert np.array_equal(delta.norms[b][n], made.norms[b][n])
    again.run(m, Pace(steps=3))
    large, small = (again.delta().norms[b]["ffn_norm"] for b in SETTINGS.budgets)
    assert not np.array_equal(large, small)
    other = distiller(Settings(budgets=(70,), shares=(1.0,), windows=4, window=24))
    with pytest.raises(InputError, match="this run"):
        other.start_from(delta)


def test_processes_step_at_the_first_ones_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress moves by what the first process says is left, not by each process's clock."""
    d, m = distiller(), mixture()
    d.begin(m)
    monkeypatch.setattr(d, "_together", lambda *v: [8.0, *v[1:]])
    d.run(m, PartialPace(1000, 4))
    assert d.progress == pytest.approx(1 - 7 / 8 * 6 / 7 * 5 / 6 * 4 / 5)


class PartialPace(Pace):
    """A run of ``steps`` that stops earlier, as one whose time is up."""

    def __init__(self, steps: int, stop: int) -> None:
        super().__init__(steps=steps)
        self.stop = stop

    def over(self, step: int) -> bool:
        return step >= self.stop


def test_checkpoint_of_other_budgets_is_refused(tmp_path: Path) -> None:
    d = distiller()
    d.save(tmp_path / "c.pt")
    other = distiller(Settings(budgets=(70,), shares=(1.0,), windows=4, window=24))
    with pytest.raises(InputError, match="other budgets"):
        other.load(tmp_path / "c.pt")
    (tmp_path / "bad.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:1000])
    with pytest.raises(InputError, match="no whole checkpoint"):
        d.load(tmp_path / "bad.pt")


def test_change_stays_cheap_to_code() -> None:
    tight = Settings(**{**vars(SETTINGS), "bits": 0.6, "lr": 1e-2})
    d, m = distiller(tight), mixture()
    d.begin(m)
    d.run(m, Pace(steps=60))
    assert d.bits < 0.7
    loose = Settings(**{**vars(SETTINGS), "bits": 9.0, "lr": 1e-2})
    e, m = distiller(loose), mixture()
    e.begin(m)
    e.run(m, Pace(steps=60))
    assert e.bits > 0.85


def test_a_pull_ends_small_changes_and_takes_the_same_from_large_ones() -> None:
    d = distiller()
    s = d.student
    with torch.no_grad():
        for m in s.change:
            step = s.d[m].float().abs().repeat_interleave(fmt.GROUP, -1)
            s.change[m].copy_(step * torch.randn_like(step))
    before = {m: t.detach().clone() for m, t in s.change.items()}
    bits = s.mean_bits()
    s.pull(0.25)
    assert s.mean_bits() < bits
    for m, t in s.change.items():
        step = s.d[m].float().abs().repeat_interleave(fmt.GROUP, -1)
        was, now = before[m] / step, t.detach() / step
        small = was.abs() <= 0.25
        assert small.any() and (now[small] == 0).all()
        torch.testing.assert_close((was - now)[~small].abs(), torch.full_like(was[~small], 0.25))
        assert (was * now >= 0).all()


def test_rounding_in_the_loop_is_what_the_delta_holds(trained: tuple[Distiller, Mixture]) -> None:
    d, _ = trained
    assert d.quantised
    delta = d.delta()
    w = d.student.ffn_weights(True, torch.float32)
    p = sparse_of(d.student, delta, d.base, None)
    for m in fmt.MATRICES:
        assert torch.equal(w[m], p.weights[m])


def test_student_and_measured_model_agree(trained: tuple[Distiller, Mixture]) -> None:
    d, m = trained
    ids = m.draw(4)
    delta = d.delta()
    for k, b in enumerate(SETTINGS.budgets):
        which = torch.full((4,), k)
        got, density = d.student.forward(ids, which, True)
        p = with_budget(sparse_of(d.student, delta, d.base, None), delta, b)
        # Those of the delta are rounded, and a few entries more or less reach them.
        scale = d.student.log_t[k].exp()
        exact = {s: scale[:, i : i + 1] * d.student.vector[s] for i, s in enumerate(fmt.SITES)}
        assert p.thresholds is not None
        for s in fmt.SITES:
            assert torch.allclose(p.thresholds[s], exact[s], rtol=1 / 63)
        want, measured = hidden(replace(p, thresholds=exact), ids)
        assert torch.allclose(density.mean(-1), measured, atol=2e-3)
        assert (got - want).abs().median() < 1e-4


def test_bytes_equal_a_count_of_what_is_read(trained: tuple[Distiller, Mixture]) -> None:
    d, m = trained
    ids = m.draw(2)
    p = sparse_of(d.student, d.delta(), d.base, 39)
    seen: list[np.ndarray] = []

    def spy(v: torch.Tensor, t: torch.Tensor) -> None:
        seen.append((v.abs() >= t).numpy())

    total, tokens = 0, ids.numel()
    x = torch.nn.functional.embedding(ids, p.weights["embed"])
    assert p.thresholds is not None
    from sparseflash.train.student import attention, rms

    cos = torch.arange(24).float()[:, None] * torch.cat(
        [10000.0 ** -(torch.arange(0, 16, 2).float() / 16)] * 2
    )
    for i in range(SHAPE.layers):
        w = {k: v[i] for k, v in p.weights.items() if k not in ("embed", "final_norm")}
        x = attention(SHAPE, x, cos.cos(), cos.sin(), w["attn_norm"], w["qkv"], w["out"])
        y = rms(x, w["ffn_norm"], SHAPE.eps)
        t = {s: p.thresholds[s][i] for s in fmt.SITES}
        kept = {"x": y.abs() >= t["x"]}
        a = torch.nn.functional.silu(torch.where(kept["x"], y, 0.0) @ w["gate"])
        kept["act"] = a.abs() >= t["act"]
        h = torch.where(kept["act"], a, 0.0) * (y @ w["up"].T)
        kept["h"] = h.abs() >= t["h"]
        for site, length in (("x", 96), ("act", 64), ("h", 64)):
            groups = length // 32
            total += int(kept[site].sum()) * groups * (16 + 2)
        total += tokens * (64 + 96 + 96 + 12)
        x = x + torch.where(kept["h"], h, 0.0) @ w["down"]
    dense = tokens * SHAPE.layers * (3 * 64 * 96 // 32) * (16 + 2 + 2)
    _, density = hidden(p, ids)
    assert float(bytes_of(SHAPE, density)) == pytest.approx(total / dense, rel=1e-5)


def test_split_meets_the_budget_and_refuses_what_is_out_of_reach() -> None:
    for percent in (80, 50, 35, 25):
        x, act, h = split(SHAPE, percent)
        d = torch.tensor([[x, act, h]] * SHAPE.layers)
        assert 100 * float(bytes_of(SHAPE, d)) == pytest.approx(percent, abs=0.1)
        assert 0 < h < act < 1 and 0 < x < 1
    assert SPLITS[0] == (1.0, 1.0, 1.0)
    for percent in (120, 1):
        with pytest.raises(InputError, match="out of reach"):
            split(SHAPE, percent)


def test_drop_keeps_entries_at_the_threshold_and_gives_edges_a_gradient() -> None:
    v = torch.tensor([[[1.0, -2.0, 2.1, 0.1]]], requires_grad=True)
    inverse, scale = torch.full((4,), 0.5), torch.ones(1)  # thresholds of 2
    kept, density = drop(v, inverse, scale)
    assert kept.tolist() == [[[0.0, -2.0, pytest.approx(2.1), 0.0]]]
    assert density.tolist() == [0.5]
    kept.sum().backward()
    g = v.grad[0, 0].tolist()  # type: ignore[index]
    # Kept: 1. Within half a threshold of the edge: v * (1/2B) * sign(v) / t more. Far below: 0.
    assert g == [pytest.approx(0.5), pytest.approx(2.0), pytest.approx(2.05), 0.0]


def test_quantise_passes_gradient_only_where_the_grid_reaches() -> None:
    base = torch.zeros(1, 32)
    base[0, 0], base[0, 1], base[0, 2] = -8.0, 7.4, 20.0
    change = torch.zeros(1, 32, requires_grad=True)
    w = Quantise.apply(change, base, torch.ones(1, 1), torch.float32)
    assert w[0, :3].tolist() == [-8.0, 7.0, 7.0]
    w.sum().backward()
    assert change.grad[0, :3].tolist() == [1.0, 1.0, 0.0]  # type: ignore[index]


def test_short_texts_are_refused() -> None:
    with pytest.raises(InputError, match="no training text"):
        Mixture({"a": (np.arange(10), 1.0)}, 24, "cpu", 1)
