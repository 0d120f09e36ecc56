"""What a plan may do with q, k, v, with o and with the FFN of a layer, and what each option costs.

q, k, v of a layer, or its o, are pinned and dense, or streamed at one of ``marginal``'s levels. The
FFN has more options: all of it pinned; gate, or gate and up, pinned, so that masks of true values
pick what streams; nothing pinned, at levels of its input, act and h; or neurons picked by a
predictor, which streams or is pinned itself. Bytes are those that the board reads
(``expected_reads``), RAM is what is pinned, tables of scales of columns among it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sparseflash.image.formats import Formats, shape_of
from sparseflash.image.grids import column_bytes, row_bytes, table_bytes, tables
from sparseflash.model.spec import ModelSpec
from sparseflash.plan.reads import Reading
from sparseflash.plan.solver import Units
from sparseflash.sparsity.prices import GRID, KIND, KINDS, Curves, PredictorPrices
from sparseflash.sparsity.registry import Levels
from sparseflash.sparsity.sites import Use


@dataclass(frozen=True)
class FfnOption:
    """``held``: what is pinned, of all, gate, up and predictor. Indices of GRID for the input (x),
    act, h, and what a predictor predicts; at 0 nothing is dropped."""

    held: frozenset[str]
    x: int = 0
    act: int = 0
    h: int = 0
    prediction: int = 0


def ffn_options(inputs: bool, prediction: bool) -> Iterator[FfnOption]:
    """All that an FFN may do; ``inputs``: columns of gate and up can be left out."""
    none: frozenset[str] = frozenset()
    levels = range(len(GRID))
    yield FfnOption(frozenset({"all"}))
    for x in levels if inputs else (0,):
        for a in levels:
            for s in levels:
                yield FfnOption(none, x, a, s)
    for a in levels:
        for s in levels:
            yield FfnOption(frozenset({"gate"}), 0, a, s)
    for s in levels:
        yield FfnOption(frozenset({"gate", "up"}), h=s)
    for g in levels[1:] if prediction else ():
        yield FfnOption(none, prediction=g)
        yield FfnOption(frozenset({"predictor"}), prediction=g)


def indices(options: list[FfnOption]) -> list[np.ndarray]:
    """Of the input, act, h and prediction, int (options,) each."""
    return [np.array([getattr(o, n) for o in options]) for n in ("x", "act", "h", "prediction")]


@dataclass
class Chosen:
    """Options of every layer, spelled out."""

    levels: Levels
    use: Use
    """Share of rows or columns that a token uses, by kind of part or site of input."""
    whole: dict[str, np.ndarray]
    """Layers that drop nothing of it, bool, by kind of part: qkv, o, gate, up, down."""


class Options:
    """The units ``attn``, ``o`` and ``ffn`` of a model on a board."""

    def __init__(
        self,
        spec: ModelSpec,
        formats: Formats,
        reading: Reading,
        curves: Curves,
        drift: dict[str, np.ndarray],
        predicted: PredictorPrices | None = None,
    ) -> None:
        self.spec, self.formats = spec, formats
        self.reading, self.curves, self.drift, self.predicted = reading, curves, drift, predicted
        self.ffn = list(ffn_options(self.formats.ffn != "r8", predicted is not None))
        self.units = {k: self._attention(k) for k in ("attn", "o")} | {"ffn": self._ffn()}

    def _columns(self, name: str, kept: np.ndarray) -> np.ndarray:
        """Bytes read of a projection by columns, its scales being pinned."""
        outputs, inputs = shape_of(self.spec, name)
        size = column_bytes(outputs, self.formats.grid_of(name))
        return inputs * size * self.reading.share(size, kept)

    def _tables(self, name: str) -> int:
        outputs, inputs = shape_of(self.spec, name)
        fmt = self.formats.grid_of(name)
        return tables(inputs, fmt) * table_bytes(outputs, fmt)

    def _row(self, name: str) -> int:
        return row_bytes(shape_of(self.spec, name)[1], self.formats.grid_of(name))

    def _attention(self, kind: str) -> Units:
        n, names = self.spec.n_layers, KINDS[kind]
        levels = range(1, len(GRID)) if self.formats.attn != "r8" else range(0)
        whole = float(sum(shape_of(self.spec, m)[0] * self._row(m) for m in names))
        kept = self.curves.kept[kind]
        by_columns = [sum(self._columns(m, kept[:, j]) for m in names) for j in levels]
        streamed = np.stack([np.zeros(n), np.full(n, whole), *by_columns], axis=1)
        held = [whole, 0.0, *(float(sum(map(self._tables, names))) for _ in levels)]
        at = [0, 0, *levels]
        return Units(
            {kind: self.curves.cost[kind][:, at]},
            self.drift[kind][:, at],
            streamed,
            np.broadcast_to(held, streamed.shape),
        )

    def _ffn(self) -> Units:
        spec, c, reading = self.spec, self.curves, self.reading
        x, a, s, g = indices(self.ffn)
        held = {
            n: np.array([n in o.held for o in self.ffn]) for n in ("all", "gate", "up", "predictor")
        }
        row, column = self._row("gate"), column_bytes(spec.dim, self.formats.ffn)
        rows, columns = spec.ffn_dim * row, spec.ffn_dim * column
        picked, predictor = np.ones((spec.n_layers, len(x))), 0.0
        if self.predicted is not None:
            picked = np.where(g > 0, self.predicted.kept[:, g], 1.0)
            predictor = self.predicted.size
        by_input = {m: self._columns(m, c.kept["x"])[:, x] for m in ("gate", "up")}
        gate = np.where(x > 0, by_input["gate"], rows * reading.share(row, picked))
        up_rows = rows * reading.share(row, np.minimum(c.rows[:, a], picked))
        up = np.where(x > 0, np.minimum(by_input["up"], up_rows), up_rows)
        self.up_by_rows = (x == 0) | (up_rows <= by_input["up"])
        down = columns * reading.share(column, np.minimum(c.columns[:, a, s], picked))
        free = ~held["all"]
        streamed = (
            gate * (free & ~held["gate"])
            + up * (free & ~held["up"])
            + down * free
            + predictor * ((g > 0) & ~held["predictor"])
        )
        ram = (
            held["all"] * float(2 * rows + columns)
            + held["gate"] * float(rows)
            + held["up"] * float(rows)
            + held["predictor"] * predictor
            + (x > 0) * float(self._tables("gate"))
            + ~self.up_by_rows * float(self._tables("up"))
        )
        cost = {"x": c.cost["x"][:, x], "ffn": c.cost["ffn"][:, a, s]}
        drift = self.drift["x"][:, x] + self.drift["ffn"][:, a, s]
        if self.predicted is not None:
            cost[KIND] = self.predicted.cost[:, g]
        return Units(cost, drift, streamed, ram)

    def spell(self, pick: dict[str, np.ndarray]) -> Chosen:
        """Levels, reads and what stays whole for an option of each layer, (layers,) by unit."""
        grid, c = np.array(GRID), self.curves
        at = np.arange(self.spec.n_layers)
        x, a, s, g = indices([self.ffn[i] for i in pick["ffn"]])
        by_rows = self.up_by_rows[at, pick["ffn"]]
        levels = {"xg": grid[x], "xu": np.where(by_rows, 0.0, grid[x])}
        levels |= {"act": grid[a], "h": grid[s], "proxy": grid[g]}
        up, columns = c.rows[at, a], c.columns[at, a, s]
        use: Use = {"down_scales": c.column_blocks[at, a, s]}
        if self.predicted is not None:
            kept = self.predicted.kept[at, g]
            use["gate"] = np.where(g > 0, kept, 1.0)
            up, columns = (np.where(g > 0, kept, v) for v in (up, columns))
            use["down_scales"] = np.where(g > 0, self.predicted.blocks[at, g], use["down_scales"])
        use |= {"up": up, "down": columns}
        use |= {"xg": c.kept["x"][at, x], "xu": c.kept["x"][at, x]}
        use |= {f"{m}_scales": c.blocks["x"][at, x] for m in ("gate", "up")}
        for kind in ("attn", "o"):
            j = np.maximum(pick[kind] - 1, 0)
            for site in KINDS[kind]:
                levels[site] = grid[j]
                use |= {site: c.kept[kind][at, j], f"{site}_scales": c.blocks[kind][at, j]}
        used = {"qkv": use["q"], "o": use["o"], "gate": use["xg"] * (g == 0)}
        used |= {"up": np.where(by_rows, up, use["xu"]), "down": columns}
        return Chosen(
            {k: v for k, v in levels.items() if v.any()},
            {k: np.minimum(v, 1.0) for k, v in use.items()},
            {k: v >= 1.0 for k, v in used.items()},
        )
