"""Figures with errors, against closed forms and simulation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sparseflash.base.errors import UsageError
from sparseflash.base.sizes import with_error
from sparseflash.measure import stats
from sparseflash.measure.perplexity import Row, write_report


def test_nll_and_kl_equal_torch() -> None:
    rng = np.random.default_rng(1)
    p, q = (rng.standard_normal((50, 300)).astype(np.float32) * 20 for _ in range(2))
    targets = rng.integers(0, 300, 50)
    want = torch.nn.functional.cross_entropy(
        torch.from_numpy(p).double(), torch.from_numpy(targets), reduction="none"
    )
    assert np.allclose(stats.token_nll(p, targets), want.numpy(), rtol=1e-12)
    kl = torch.nn.functional.kl_div(
        torch.log_softmax(torch.from_numpy(q).double(), -1),
        torch.log_softmax(torch.from_numpy(p).double(), -1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    assert np.allclose(stats.token_kl(p, q), kl.numpy(), rtol=1e-9)
    assert (stats.token_kl(p, q) > 0).all()
    assert np.abs(stats.token_kl(p, p + 7)).max() < 1e-9


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, 0.0, -1e4]], np.float32)
    assert stats.token_nll(logits, np.array([0]))[0] == 0.0
    assert stats.token_nll(logits, np.array([2]))[0] == pytest.approx(2e4)


def test_same_top() -> None:
    a = np.array([[1, 2, 0], [3, 3, 1], [0, 1, 2]])
    b = np.array([[0, 5, 0], [1, 3, 1], [0, 1, 2]])
    assert stats.same_top(a, b).tolist() == [1.0, 0.0, 1.0]


def test_uniform_model_has_perplexity_of_its_vocabulary() -> None:
    nll = stats.token_nll(np.zeros((20, 64)), np.arange(20))
    p = stats.perplexity([nll[:10], nll[10:]])
    assert p.value == pytest.approx(64.0)
    assert p.error == pytest.approx(0.0, abs=1e-9)
    assert (p.nll.tokens, p.nll.windows) == (20, 2)


def test_mean_of_equal_windows_is_the_textbook_error() -> None:
    x = np.random.default_rng(3).standard_normal((12, 40)) + 2
    m = stats.mean_over_windows(list(x))
    assert m.value == pytest.approx(x.mean())
    assert m.error == pytest.approx(x.mean(axis=1).std(ddof=1) / math.sqrt(12))


def test_error_covers_the_truth_of_uneven_dependent_windows() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(50, 150, 40)
    inside = 0
    for _ in range(400):
        windows = [1.5 + 0.3 * rng.standard_normal() + rng.standard_normal(n) for n in sizes]
        m = stats.mean_over_windows(windows)
        inside += abs(m.value - 1.5) < 1.96 * m.error
    assert 0.91 < inside / 400 < 0.98


def test_delta_method() -> None:
    windows = list(np.random.default_rng(6).random((30, 100)) * 4)
    p = stats.perplexity(windows)
    assert p.value == pytest.approx(math.exp(p.nll.value))
    assert p.error == pytest.approx(p.value * p.nll.error)


def test_one_window_has_no_error() -> None:
    m = stats.mean_over_windows([np.ones(5)])
    assert m.value == 1.0 and math.isnan(m.error)


def test_paired_ratio_is_sharper_than_two_perplexities() -> None:
    rng = np.random.default_rng(7)
    base = [rng.random(200) * 3 + rng.standard_normal() for _ in range(20)]
    other = [b + 0.02 + 0.05 * rng.standard_normal(200) for b in base]
    ratio = stats.perplexity_ratio(other, base)
    assert ratio.value == pytest.approx(
        stats.perplexity(other).value / stats.perplexity(base).value
    )
    assert ratio.error < 0.1 * stats.perplexity(base).error / stats.perplexity(base).value
    with pytest.raises(UsageError, match="same tokens"):
        stats.perplexity_ratio(other[:-1], base)


def test_nothing_to_average() -> None:
    with pytest.raises(UsageError, match="no tokens"):
        stats.mean_over_windows([np.empty(0)])


def test_plot_is_a_whole_png_and_repeatable(tmp_path: Path) -> None:
    rows = [
        {"name": "dense", "bytes": 9e7, "perplexity": 19.3, "error": 0.4, "group": "h"},
        {"name": "h 50 %", "bytes": 7e7, "perplexity": 19.8, "error": 0.4, "group": "h"},
        {"name": "act 50 %", "bytes": 6e7, "perplexity": 24.0, "error": math.nan, "group": "act"},
    ]
    path = tmp_path / "deep" / "plot.png"
    stats.plot_perplexity(rows, path)
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG\r\n\x1a\n") and first.endswith(b"IEND\xaeB`\x82")
    stats.plot_perplexity(rows, path)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["plot.png"]
    with pytest.raises(UsageError, match="no rows"):
        stats.plot_perplexity([], path)


def test_one_window_has_no_error_and_prints_none(tmp_path: Path) -> None:
    """Neither the table, nor the CSV, nor JSON, which has no word for what is no number."""
    assert with_error(1.25, math.nan, 3) == "1.250"
    assert with_error(1.25, 0.5, 3) == "1.250 ± 0.500"
    error = stats.perplexity([np.ones(8)]).error
    assert math.isnan(error)
    row = Row("h", "h", 50.0, 2.7, error, 1.1, error, 0.1, error, 0.9, 1e6, 3.0, 8)
    write_report([row], tmp_path, {"model": "m", "text": "one window", "tokens": 8})
    assert "nan" not in (tmp_path / "perplexity.csv").read_text()
    found = json.loads((tmp_path / "perplexity.json").read_text(), parse_constant=pytest.fail)
    assert found["rows"][0]["error"] is None and found["rows"][0]["perplexity"] == 2.7
