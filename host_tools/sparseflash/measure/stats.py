"""Figures about a model's output, each with its error, and the plot of quality against bytes.

Losses are in nats a token. Tokens of one window depend on each other, so errors are taken over
windows, which are treated as independent: with sums s_w over n_w tokens, the mean is
sum(s) / sum(n) and its variance that of a ratio estimator,
m / (m - 1) * sum((s_w - mean * n_w)^2) / sum(n)^2 for m windows.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparseflash.base.errors import UsageError
from sparseflash.base.files import write_bytes


@dataclass(frozen=True)
class Mean:
    """A mean over tokens and its standard error over windows (nan for one window)."""

    value: float
    error: float
    tokens: int
    windows: int


def mean_over_windows(windows: Sequence[np.ndarray]) -> Mean:
    """Mean of a quantity given for every token.

    Args:
        windows: one array (tokens,) for each window; lengths may differ.
    """
    parts = [np.asarray(w, np.float64).ravel() for w in windows]
    parts = [p for p in parts if p.size]
    if not parts:
        raise UsageError("there are no tokens to take a mean of; give a longer text")
    sums = np.array([p.sum() for p in parts])
    sizes = np.array([p.size for p in parts], np.float64)
    n, m = sizes.sum(), len(parts)
    mean = sums.sum() / n
    error = math.nan
    if m > 1:
        error = math.sqrt(m / (m - 1) * float(((sums - mean * sizes) ** 2).sum())) / n
    return Mean(float(mean), float(error), int(n), m)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, float64, the shape of ``logits``."""
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def token_nll(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-log p of each target, nats: logits (tokens, vocab), targets integer (tokens,)."""
    targets = np.asarray(targets)
    return -log_softmax(logits)[np.arange(len(targets)), targets]


def token_kl(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL(reference || logits) of each token, nats (tokens,): both are logits (tokens, vocab)."""
    p, q = log_softmax(reference), log_softmax(logits)
    return (np.exp(p) * (p - q)).sum(axis=-1)


def same_top(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """1.0 where both have the same most likely token (the lowest id on a tie), (tokens,)."""
    same = np.argmax(reference, axis=-1) == np.argmax(logits, axis=-1)
    return same.astype(np.float64)


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss; ``error`` by the delta method, perplexity * error of the loss."""

    value: float
    error: float
    nll: Mean


def perplexity(windows: Sequence[np.ndarray]) -> Perplexity:
    """Perplexity from the losses of :func:`token_nll`, one array for each window."""
    nll = mean_over_windows(windows)
    value = math.exp(nll.value) if nll.value < 700.0 else math.inf
    return Perplexity(value, value * nll.error, nll)


def perplexity_ratio(windows: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> Perplexity:
    """Perplexity over that of ``base`` on the same tokens, with the error of the paired losses.

    The windows of both are subtracted token by token, so what makes a text hard cancels and the
    error is far smaller than from two separate perplexities.
    """
    if [np.size(w) for w in windows] != [np.size(b) for b in base]:
        raise UsageError("a ratio of perplexities needs the same tokens on both sides")
    pairs = zip(windows, base, strict=True)
    return perplexity([np.asarray(w, np.float64) - np.asarray(b, np.float64) for w, b in pairs])


def plot_perplexity(rows: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """PNG of perplexity against bytes read a token; the same rows give the same bytes.

    Args:
        rows: each with ``name``, ``bytes`` (read a token), ``perplexity``, and optionally
            ``error`` (one standard error) and ``group`` (rows of a group share a line).
        path: written whole or not at all.
        title: names the model, the text and its tokens.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if not rows:
        raise UsageError("there are no rows to plot; measure a variant first")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row.get("group", row["name"])), []).append(row)
    figure, axes = plt.subplots(figsize=(7.0, 4.5), dpi=120)
    try:
        for name, members in groups.items():
            points = sorted(members, key=lambda r: float(r["bytes"]))
            x = [float(r["bytes"]) / 1e6 for r in points]
            y = [float(r["perplexity"]) for r in points]
            errors = [float(r.get("error") or 0.0) for r in points]
            errors = [0.0 if math.isnan(e) else e for e in errors]
            axes.errorbar(x, y, yerr=errors, marker="o", capsize=3, label=name)
            for r, a, b in zip(points, x, y, strict=True):
                offset = (5, 5)
                label = str(r["name"])
                axes.annotate(label, (a, b), xytext=offset, textcoords="offset points", fontsize=8)
        axes.margins(x=0.12, y=0.1)  # names of the points stay inside
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("weight bytes read a token, MB")
        axes.set_ylabel("perplexity (bars: one standard error)")
        axes.grid(alpha=0.3)
        if len(groups) > 1:
            axes.legend(fontsize=8)
        figure.tight_layout()
        data = io.BytesIO()
        figure.savefig(data, format="png", metadata={"Software": None})
    finally:
        plt.close(figure)
    write_bytes(path, data.getvalue())
