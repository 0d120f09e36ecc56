"""Perplexity of the C on the host against the float model, in windows, with error bars."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparseflash.base.files import write_csv, write_json
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine
from sparseflash.measure.stats import (
    mean_over_windows,
    perplexity,
    perplexity_ratio,
    plot_perplexity,
    same_top,
    token_kl,
    token_nll,
)
from sparseflash.model.spec import Model
from sparseflash.model.torch_model import TorchModel

DECODED = 64


@dataclass
class Row:
    """One variant. Bytes are weight bytes read for a token, from the runtime's counters.

    Tokens go through the layers in blocks. The last ``DECODED`` of each window go one by one, as
    when a device writes them; bytes and neurons are those.
    """

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
    ffn_bytes: float = 0.0


def float_logits(
    model: Model, windows: np.ndarray, progress: Callable[[], None]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits of the dequantised model less their maximum, float16 (W, T, vocab), and the losses.

    The halves only serve KL and the top token, and halve the memory; losses are from float32.
    """
    runner = TorchModel(model)
    out = np.empty((*windows.shape, model.spec.vocab), np.float16)
    losses = []
    for i, w in enumerate(windows):
        logits = runner.forward(torch.from_numpy(w)[None])[0]
        losses.append(token_nll(logits[:-1].numpy(), w[1:]))
        out[i] = (logits - logits.max(-1, keepdim=True).values).numpy()
        progress()
    return out, losses


_state: dict[str, Any] = {}
"""What a worker needs; set before the fork, so the float logits are shared and not copied."""


def _open(library: Path, image: Path) -> None:
    _state["engine"] = Engine(library, Image(image, verify=False))


def _window(
    job: tuple[int, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]:
    """Loss, KL and same top of every predicted token of a window, and counters of its last."""
    index, thresholds = job
    engine: Engine = _state["engine"]
    ids, want = _state["windows"][index], _state["want"][index]
    engine.set_thresholds(thresholds)
    engine.reset()
    one_by_one = max(0, len(ids) - DECODED)
    loss, kl, top = [], [], []
    at = 0
    while at < len(ids):
        if at == one_by_one:
            engine.counters(clear=True)
        n = min(engine.most, one_by_one - at) if at < one_by_one else 1
        for got in engine.block(ids[at : at + n])[:, None]:  # a row, so that it stays in cache
            if at + 1 < len(ids):
                right = want[at][None].astype(np.float32)
                loss.append(token_nll(got, ids[at + 1 : at + 2]))
                kl.append(token_kl(right, got))
                top.append(same_top(right, got))
            at += 1
    return np.concatenate(loss), np.concatenate(kl), np.concatenate(top), engine.counters()


def measure(
    model: Model,
    image: Image,
    library: Path,
    windows: np.ndarray,
    variants: list[tuple[str, float, np.ndarray]],
    progress: Callable[[], None] = lambda: None,
    workers: int = 0,
) -> list[Row]:
    """Rows for the float model and each (method, percent, thresholds) on windows (W, T).

    workers: processes that run the C; 0 takes the CPUs that this one may use.
    """
    floats = float_logits(model, windows, progress)
    p = perplexity(floats[1])
    count = sum(len(b) for b in floats[1])
    first = Row("fp32", "fp32", 0.0, p.value, p.error, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, count)
    return [first, *measure_c(floats, image, library, windows, variants, progress, workers)]


def measure_c(
    floats: tuple[np.ndarray, list[np.ndarray]],
    image: Image,
    library: Path,
    windows: np.ndarray,
    variants: list[tuple[str, float, np.ndarray]],
    progress: Callable[[], None] = lambda: None,
    workers: int = 0,
) -> list[Row]:
    """Those of the C alone, against what :func:`float_logits` gave for the same windows."""
    want, base = floats
    rows = []
    _state.update(want=want, windows=windows)
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(
        workers or len(os.sched_getaffinity(0)),
        mp_context=context,
        initializer=_open,
        initargs=(library, image.path),
    ) as pool:
        for method, percent, thresholds in variants:
            losses, kls, tops = [], [], []
            total: dict[str, int] = {}
            jobs = [(i, thresholds) for i in range(len(windows))]
            for loss, kl_window, top, counters in pool.map(_window, jobs):
                losses.append(loss)
                kls.append(kl_window)
                tops.append(top)
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
                    p.nll.tokens,
                    total["bytes_ffn"] / total["tokens"],
                )
            )
    return rows


def write_report(rows: list[Row], folder: Path, about: dict[str, Any]) -> None:
    """perplexity.json, .csv and .png in ``folder``."""
    data = [asdict(r) for r in rows]
    write_json(folder / "perplexity.json", {"about": about, "rows": data})
    write_csv(folder / "perplexity.csv", data)
    points = [dict(d, group=d["method"]) for d in data if d["bytes"]]
    title = f"{about['model']} on {about['text']}, {about['tokens']:,} tokens"
    plot_perplexity(points, folder / "perplexity.png", title)
