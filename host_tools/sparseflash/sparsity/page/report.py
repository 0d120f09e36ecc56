"""Tables and plots of a study: perplexity against bytes, levels by layer, distributions."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseflash.base.files import write_bytes, write_csv, write_json, write_text
from sparseflash.base.sizes import with_error
from sparseflash.sparsity.calibrate import bin_edges
from sparseflash.sparsity.evaluate import Losses
from sparseflash.sparsity.registry import method
from sparseflash.sparsity.study import Result, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
OURS = "marginal"
TARGETS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Bytes a token, as shares of the dense model's layers, at which methods are compared."""


def row_of(study: Study, result: Result, base: Losses, percent: float | None = None) -> Row:
    """One line of the table; bytes are of one token."""
    m, b, dense = method(result.method), result.bytes, study.dense_bytes()
    ratio, error = result.losses.ratio(base)
    return {
        "method": m.name,
        "what": m.title,
        "source": m.source,
        "budget": m.budget,
        "percent": round(100 * result.level if percent is None else percent, 3),
        "perplexity": result.losses.perplexity,
        "perplexity_error": result.losses.error,
        "ratio": ratio,
        "ratio_error": error,
        "bytes": b.total,
        "bytes_layers": b.layers,
        "bytes_attention": b.attention,
        "bytes_ffn": b.ffn,
        "bytes_predictor": b.proxy,
        "bytes_metadata": b.metadata,
        "share": b.total / dense.total,
        "share_layers": b.layers / dense.layers,
        "device": m.device,
        "tokens": int(result.losses.sizes.sum()),
    }


def at_bytes(rows: Sequence[Row], method: str, share: float) -> float:
    """Ratio of perplexity of a method where its layers read ``share`` of the dense bytes.

    The logarithm of the ratio is taken as straight between measured points, from (1, 1) on; nan
    beyond the last point.
    """
    points = [(1.0, 0.0)]
    points += [(r["share_layers"], math.log(r["ratio"])) for r in rows if r["method"] == method]
    points = sorted(p for p in points if p[0] <= 1.0 or p == (1.0, 0.0))
    x, y = np.array(points).T
    if share < x[0] or len(points) < 2:
        return math.nan
    return float(np.exp(np.interp(share, x, y)))


def compare(rows: Sequence[Row], ours: str = OURS) -> list[Row]:
    """Each method at TARGETS, and whether ours is at or below it there."""
    names = list(dict.fromkeys(r["method"] for r in rows if r["method"] != "dense"))
    out = []
    for share in TARGETS:
        line: Row = {"share_layers": share}
        for name in names:
            line[name] = at_bytes(rows, name, share)
        mine = line.get(ours, math.nan)
        others = [v for k, v in line.items() if k not in ("share_layers", ours)]
        others = [v for v in others if not math.isnan(v)]
        line["ours_is_least"] = bool(others) and not math.isnan(mine) and mine <= min(others)
        out.append(line)
    return out


def _cell(value: float, digits: int = 3) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def markdown(rows: Sequence[Row], lines: Sequence[Row], about: dict[str, Any]) -> str:
    """The table and the comparison at equal bytes."""
    text = [
        f"{about['model']}, {about['text']}, {about['tokens']} tokens in windows of "
        f"{about['window']}; float weights as packed. Bytes are read for one token: weights, "
        "predictors, proxies and norms; "
        f"dense is {about['dense_bytes']:,.0f}, of that {about['dense_bytes_layers']:,.0f} in the "
        "layers. Ratio is perplexity over dense, with its paired standard error.",
        "",
        "| method | % | perplexity | ratio | MB a token | of dense | of dense, layers |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        text.append(
            f"| {r['method']} | {r['percent']:g} | {r['perplexity']:.2f} | "
            f"{with_error(r['ratio'], r['ratio_error'], 4)} | {r['bytes'] / 1e6:.2f} | "
            f"{r['share']:.3f} | {r['share_layers']:.3f} |"
        )
    if lines:
        names = [n for n in lines[0] if n not in ("share_layers", "ours_is_least")]
        text += [
            "",
            "Ratio of perplexity at equal bytes in the layers, between measured points:",
            "",
            "| of dense, layers | " + " | ".join(names) + " |",
            "|---|" + "---|" * len(names),
        ]
        for line in lines:
            cells = " | ".join(_cell(line[n]) for n in names)
            text.append(f"| {line['share_layers']:.2f} | {cells} |")
    return "\n".join(text) + "\n"


def predictability_markdown(found: Sequence[dict[str, Any]]) -> str:
    """Means over layers of every prediction, a table for each level."""
    text: list[str] = []
    for one in found:
        text += [
            "",
            f"Predictions of the active neurons at {100 * one['level']:g} %, "
            f"{one['tokens']} tokens of {one['prompts']} prompts, means over layers:",
            "",
            "| prediction | predicted | recall | precision | lift |",
            "|---|---|---|---|---|",
        ]
        for name, g in one["predictions"].items():
            m = g["mean"]
            text.append(
                f"| {name} | {m['predicted']:.2f} | {m['recall']:.3f} | {m['precision']:.3f} | "
                f"{m['lift']:.2f} |"
            )
    return "\n".join(text) + ("\n" if text else "")


def _save(figure: Figure, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.tight_layout()
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    plt.close(figure)
    write_bytes(path, data.getvalue())


def plot_bytes(rows: Sequence[Row], path: Path, title: str = "") -> None:
    """Ratio of perplexity against bytes a token, a line a method; points beyond 4 lie outside."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8.5, 5.5), dpi=120)
    names = list(dict.fromkeys(r["method"] for r in rows if r["method"] != "dense"))
    for k, name in enumerate(names):
        points = sorted((r for r in rows if r["method"] == name), key=lambda r: -r["bytes"])
        style = {"linewidth": 1.0, "color": plt.get_cmap("tab20")(k % 20)}
        if name == OURS:
            style = {"linewidth": 2.5, "color": "black"}
        axes.errorbar(
            [r["bytes"] / 1e6 for r in points],
            [r["ratio"] for r in points],
            yerr=[0.0 if math.isnan(r["ratio_error"]) else r["ratio_error"] for r in points],
            marker="osv^D<>ph*"[k % 10],
            markersize=4,
            capsize=2,
            label=name,
            **style,  # type: ignore[arg-type]
        )
    axes.set_yscale("log")
    ratios = [r["ratio"] for r in rows]
    axes.set_ylim(0.98 * min(1.0, *ratios), 1.02 * max(2.0, min(4.0, max(ratios))))
    axes.set_title(title, fontsize=9)
    axes.set_yticks([1, 1.1, 1.25, 1.5, 2, 3], ["1", "1.1", "1.25", "1.5", "2", "3"])
    axes.minorticks_off()
    axes.set_xlabel("weight bytes read a token, MB (predictors, proxies and norms included)")
    axes.set_ylabel("perplexity over dense")
    axes.grid(alpha=0.3)
    if names:
        axes.legend(fontsize=7, ncol=2)
    _save(figure, path)


def plot_layers(results: Sequence[Result], path: Path) -> None:
    """Levels of every site by layer, a panel a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [r for r in results if r.levels][:8]
    if not shown:
        return
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    size = (5.0 * columns, 2.8 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, dpi=120, squeeze=False)
    for ax, r in zip(axes.flat, shown):
        for site, values in r.levels.items():
            ax.plot(values, label=site, linewidth=1.2)
        ax.set_title(f"{r.method} {100 * r.level:g} %", fontsize=9)
        ax.set_ylim(0, 1)
        ax.set_xlabel("layer", fontsize=8)
        ax.set_ylabel("share dropped", fontsize=8)
        ax.legend(fontsize=6, ncol=4)
        ax.grid(alpha=0.3)
    for ax in list(axes.flat)[len(shown) :]:
        ax.axis("off")
    _save(figure, path)


def plot_histograms(study: Study, path: Path, level: float = 0.5) -> None:
    """Distributions of the magnitudes at four sites in three layers, with thresholds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    keys = [k for k in ("gate", "act", "up", "h", "ffn_in", "attn_in") if k in study.scores.counts]
    n = study.model.spec.n_layers
    layers = sorted({0, n // 2, n - 1})
    size = (2.6 * len(keys), 2.2 * len(layers))
    figure, axes = plt.subplots(len(layers), len(keys), figsize=size, dpi=120, squeeze=False)
    edges = np.log2(bin_edges()[1:-1])
    for i, layer in enumerate(layers):
        for j, k in enumerate(keys):
            counts = study.scores.counts[k][layer][1:-1].astype(float)
            # Half an octave of mantissas a bar; heights are per octave.
            bars = counts[: len(counts) // 64 * 64].reshape(-1, 64).sum(1)
            ends = edges[: len(bars) * 64 + 1 : 64]
            x, width = ends[:-1], np.diff(ends)
            axes[i, j].bar(x, bars / width, width=width, align="edge", color="tab:blue")
            for share, style in ((level, "-"), (0.7, "--"), (0.9, ":")):
                t = study.scores.threshold(layer, k, share)
                if t > 0:
                    axes[i, j].axvline(np.log2(t), color="tab:red", linestyle=style, linewidth=1)
            used = np.flatnonzero(bars > 1e-4 * bars.max())
            if len(used):
                axes[i, j].set_xlim(x[used[0]] - 1, x[used[-1]] + 1)
            axes[i, j].set_title(f"|{k}|, layer {layer}", fontsize=7)
            axes[i, j].tick_params(labelsize=6)
            axes[i, j].set_yticks([])
    figure.suptitle(f"log2 magnitude; thresholds at {100 * level:g}, 70 and 90 %", fontsize=8)
    _save(figure, path)


def plot_predictability(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Lift by layer of every prediction, a panel a level."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if not found:
        return
    size = (5.5 * len(found), 4.0)
    figure, axes = plt.subplots(1, len(found), figsize=size, dpi=120, squeeze=False)
    for ax, one in zip(axes.flat, found):
        for k, (name, g) in enumerate(one["predictions"].items()):
            rows = g["layers"]
            x = [i for i, r in enumerate(rows) if r["predicted"] > 0]
            style = ("-", "--", ":")[k // 10 % 3]
            ax.plot(x, [rows[i]["lift"] for i in x], style, label=name, linewidth=1.1)
        ax.axhline(1.0, color="grey", linewidth=0.8)
        ax.set_title(f"active at {100 * one['level']:g} %", fontsize=9)
        ax.set_xlabel("layer")
        ax.set_ylabel("lift over a random mask of the same size")
        ax.legend(fontsize=6)
        ax.grid(alpha=0.3)
    _save(figure, path)


def write_report(
    study: Study,
    rows: list[Row],
    results: list[Result],
    about: dict[str, Any],
    folder: Path,
    found: Sequence[dict[str, Any]] = (),
) -> None:
    """sparsity.md, .csv, .json and the plots in ``folder``."""
    dense = study.dense_bytes()
    about = {**about, "dense_bytes": dense.total, "dense_bytes_layers": dense.layers}
    lines = compare(rows) if len(rows) > 1 else []
    text = markdown(rows, lines, about) + predictability_markdown(found)
    write_text(folder / "sparsity.md", text)
    write_csv(folder / "sparsity.csv", rows)
    whole = {"about": about, "rows": rows, "at_equal_bytes": lines, "predictability": list(found)}
    write_json(folder / "sparsity.json", whole)
    title = f"{about['model']} on {about['text']}, {about['tokens']:,} tokens"
    plot_bytes(rows, folder / "sparsity.png", title)
    plot_layers(results, folder / "sparsity_layers.png")
    plot_histograms(study, folder / "sparsity_histograms.png")
    plot_predictability(found, folder / "sparsity_predictability.png")
