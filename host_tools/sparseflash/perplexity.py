"""Perplexity of the C on the host against the float model, in windows, with error bars."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparseflash.engine import Engine
from sparseflash.files import write_json, write_text
from sparseflash.sfm import Image
from sparseflash.spec import Model
from sparseflash.stats import (
    mean_over_windows,
    perplexity,
    perplexity_ratio,
    plot_perplexity,
    same_top,
    token_kl,
    token_nll,
)
from sparseflash.torch_model import TorchModel


@dataclass
class Row:
    """One variant. Bytes are weight bytes read for a token, from the runtime's counters."""

    name: str
    method: str
    sparsity: float
    perplexity: float
    error: float
    ratio: float
    ratio_error: float
    kl: float
    kl_error: float
    same_top: float
    bytes: float
    neurons: float
    tokens: int


def float_logits(model: Model, windows: np.ndarray, progress: Callable[[], None]) -> np.ndarray:
    """float32 logits of the dequantised model, (W, T, vocab), kept as float16 differences.

    Logits of each position are stored minus their maximum in float16: 2^-11 relative, far
    under what the comparison resolves, and half the memory.
    """
    runner = TorchModel(model)
    out = np.empty((*windows.shape, model.spec.vocab), np.float16)
    for i, w in enumerate(windows):
        logits = runner.forward(torch.from_numpy(w)[None])[0]
        out[i] = (logits - logits.max(-1, keepdim=True).values).numpy()
        progress()
    return out


_state: dict[str, Any] = {}


def _open(library: Path, image: Path) -> None:
    _state["engine"] = Engine(library, Image(image, verify=False))


def _window(job: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, dict[str, int]]:
    """float16 logits of a window and the counters it cost."""
    ids, thresholds = job
    engine: Engine = _state["engine"]
    engine.set_thresholds(thresholds)
    engine.reset()
    engine.counters(clear=True)
    out = np.empty((len(ids), engine.image.spec.vocab), np.float16)
    for i, token in enumerate(ids):
        logits = engine.step(int(token))
        assert logits is not None
        out[i] = logits - logits.max()
    return out, engine.counters()


def measure(
    model: Model,
    image: Image,
    library: Path,
    windows: np.ndarray,
    variants: list[tuple[str, float, np.ndarray]],
    progress: Callable[[], None] = lambda: None,
    workers: int = 2,
) -> list[Row]:
    """Rows for the float model and each (method, percent, thresholds) on windows (W, T)."""
    want = float_logits(model, windows, progress)
    targets = [w[1:] for w in windows]
    base = [token_nll(x[:-1].astype(np.float32), y) for x, y in zip(want, targets)]
    p = perplexity(base)
    count = sum(len(t) for t in targets)
    rows = [Row("fp32", "fp32", 0.0, p.value, p.error, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, count)]
    with ProcessPoolExecutor(workers, initializer=_open, initargs=(library, image.path)) as pool:
        for method, percent, thresholds in variants:
            losses, kls, tops = [], [], []
            total: dict[str, int] = {}
            jobs = [(w, thresholds) for w in windows]
            for i, (logits, counters) in enumerate(pool.map(_window, jobs)):
                got = logits[:-1].astype(np.float32)
                ref = want[i][:-1].astype(np.float32)
                losses.append(token_nll(got, targets[i]))
                kls.append(token_kl(ref, got))
                tops.append(same_top(ref, got))
                for k, v in counters.items():
                    total[k] = total.get(k, 0) + v
                progress()
            p, r = perplexity(losses), perplexity_ratio(losses, base)
            kl = mean_over_windows(kls)
            name = method if not percent else f"{method} {percent:g} %"
            rows.append(
                Row(
                    name,
                    method,
                    percent,
                    p.value,
                    p.error,
                    r.value,
                    r.error,
                    kl.value,
                    kl.error,
                    float(np.mean([np.mean(t) for t in tops])),
                    total["bytes"] / total["tokens"],
                    total["neurons"] / total["tokens"] / image.spec.n_layers,
                    count,
                )
            )
    return rows


def write_report(rows: list[Row], folder: Path, about: dict[str, Any]) -> None:
    """perplexity.json, .csv and .png in ``folder``."""
    data = [asdict(r) for r in rows]
    write_json(folder / "perplexity.json", {"about": about, "rows": data})
    names = list(data[0])
    lines = [",".join(names)] + [",".join(str(d[n]) for n in names) for d in data]
    write_text(folder / "perplexity.csv", "\n".join(lines) + "\n")
    points = [dict(d, group=d["method"]) for d in data if d["bytes"]]
    plot_perplexity(points, folder / "perplexity.png")
