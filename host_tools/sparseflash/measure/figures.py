"""Plots of the report, each a piece of SVG that takes the colours of the page it stands in."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Of text and lines; becomes the page's own colour."""
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#64748b", "#ec4899", "#84cc16")
LANES = ("compute", "wait", "read")


def svg(draw: Callable[[Axes], None], width: float, height: float, label: str) -> str:
    """What ``draw`` puts on axes of so many inches, as an SVG element without a background.

    Text stays text; the same data gives the same bytes.
    """
    import matplotlib
    from cycler import cycler

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    words = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[str, Any] = {name: INK for name in words}
    style |= {"svg.fonttype": "none", "svg.hashsalt": label, "font.size": 9.5}
    style |= {"font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False}
    style |= {"axes.prop_cycle": cycler(color=COLOURS), "legend.frameon": False}
    with plt.rc_context(style):  # type: ignore[arg-type]
        figure, axes = plt.subplots(figsize=(width, height))
        try:
            draw(axes)
            out = io.StringIO()
            meta = {"Date": None, "Creator": None}
            figure.savefig(out, format="svg", transparent=True, bbox_inches="tight", metadata=meta)
        finally:
            plt.close(figure)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    # Ids are the page's, and one of several figures must not meet those of another.
    key = re.sub(r"\W+", "-", label)
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{key}-", text)
    opening = f'<svg role="img" aria-label="{label}"'
    text = re.sub(r'<svg( [^>]*?) width="[\d.]+pt" height="[\d.]+pt"', rf"{opening}\1", text)
    return re.sub(r"(<svg[^>]*?) height=\"[\d.]+pt\"| width=\"[\d.]+pt\"", r"\1", text, count=1)


def perplexity_by_bytes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with name, group, bytes and perplexity; lines join those of a group."""

    def draw(axes: Axes) -> None:
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for r in rows:
            groups.setdefault(str(r["group"]), []).append(r)
        for k, (name, members) in enumerate(groups.items()):
            points = sorted(members, key=lambda r: float(r["bytes"]))
            x = [float(r["bytes"]) / 1e6 for r in points]
            y = [float(r["perplexity"]) for r in points]
            errors = [float(r.get("error") or 0.0) for r in points]
            axes.errorbar(
                x, y, yerr=errors, marker="osD^v<>"[k % 7], ms=5, capsize=2, lw=1.2, label=name
            )
        axes.margins(x=0.08, y=0.12)  # the best and the worst point lie inside
        axes.set_xlabel("weight bytes read a token, MB")
        axes.set_ylabel("perplexity")
        axes.grid(alpha=0.25)
        if len(groups) <= 10:
            axes.legend(fontsize=8.5)

    return svg(draw, 7.2, 3.8, "perplexity against bytes")


def shares_by_layer(lines: Mapping[str, Sequence[float]], what: str) -> str:
    """One line a name, of a share between 0 and 1 for each layer; equal lines are one."""
    from matplotlib import ticker

    equal: dict[tuple[float, ...], list[str]] = {}
    for name, values in lines.items():
        equal.setdefault(tuple(values), []).append(name)

    def draw(axes: Axes) -> None:
        for k, (values, names) in enumerate(equal.items()):
            style: dict[str, Any] = {"marker": "osD^v<>"[k % 7], "ms": 4, "lw": 1.2}
            axes.plot(range(len(values)), values, label=", ".join(names), **style)
        axes.set_ylim(0, 1.04)
        axes.set_xlabel("layer")
        axes.set_ylabel(what)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8.5, ncol=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return svg(draw, 7.2, 3.0, what)


def bars(rows: Sequence[tuple[str, float]], limit: float, label: str) -> str:
    """Bytes, one bar a name, beside what the memory has."""

    def draw(axes: Axes) -> None:
        names = [n for n, _ in rows][::-1]
        values = [v / 1024 for _, v in rows][::-1]
        axes.barh(names, values, color=COLOURS[0], height=0.62)
        for i, v in enumerate(values):
            axes.annotate(
                f"{v:,.1f}", (v, i), xytext=(4, 0), textcoords="offset points", va="center"
            )
        axes.margins(x=0.14)
        axes.set_xlabel(f"KiB; the board has {limit / 1024:,.0f}")
        axes.grid(axis="x", alpha=0.25)

    return svg(draw, 6.2, 0.6 + 0.27 * len(rows), label)


def stages(shares: Mapping[str, float], waiting: float) -> str:
    """A token's time by stage as one bar, and under it how much of it waits for the flash."""

    def draw(axes: Axes) -> None:
        left = 0.0
        for k, (name, share) in enumerate(shares.items()):
            colour = COLOURS[k] if name != "rest" else COLOURS[5]
            axes.barh(1, share, left=left, height=0.7, color=colour, label=name)
            if share > 0.06:
                axes.text(left + share / 2, 1, f"{100 * share:.0f} %", ha="center", va="center")
            left += share
        axes.barh(0, waiting, height=0.7, color=COLOURS[3], label="waits for flash")
        axes.set_yticks([1, 0], ["computing", "waiting"])
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.set_xlabel("share of a token's time")
        axes.legend(fontsize=8.5, ncol=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return svg(draw, 7.2, 1.5, "time of a token by stage")


def timeline(events: Sequence[Mapping[str, Any]]) -> str:
    """One token of a Chrome trace: lanes of computing, waiting and reading, in milliseconds."""

    def draw(axes: Axes) -> None:
        start = min(float(e["ts"]) for e in events)
        names: dict[str, str] = {}
        for lane, title in enumerate(LANES):
            for e in (e for e in events if e["tid"] == lane):
                name = str(e["name"]) if lane == 0 else title
                colour = names.setdefault(name, COLOURS[len(names) % len(COLOURS)])
                at, long = (float(e["ts"]) - start) / 1e3, float(e["dur"]) / 1e3
                axes.barh(len(LANES) - lane, long, left=at, height=0.75, color=colour)
        axes.set_yticks([len(LANES) - k for k in range(len(LANES))], LANES)
        axes.set_xlabel("milliseconds")
        for name, colour in names.items():
            axes.barh(0, 0, color=colour, label=name)
        axes.set_ylim(0.4, len(LANES) + 0.6)
        axes.legend(fontsize=8.5, ncol=6, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return svg(draw, 7.2, 1.9, "timeline of a token")


def last_token(trace: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Events of the last whole token of a Chrome trace: from one ``head`` to the next."""
    events = [e for e in trace.get("traceEvents", []) if e.get("ph") == "X"]
    ends = sorted(float(e["ts"]) + float(e["dur"]) for e in events if e["name"] == "head")
    if len(ends) < 2:
        return []
    return [e for e in events if ends[-2] <= float(e["ts"]) < ends[-1]]
