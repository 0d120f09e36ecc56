"""Budget for a device that pins part of its weights: pinned bytes cost nothing, for none is read.

Each unit takes one of its ``options``. What remains is a sum of costs under two sums, bytes
streamed a token and RAM, so it has two prices: for a price of streamed bytes the price of RAM is
bisected until the pinned units fit, and the first price until the streamed bytes are as asked. The
choice is then improved two units at a time under the same two limits, for prices reach only some
of the choices. The head is pinned before all units: it has no sparse form, and no unit saves more
bytes for its RAM.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparseflash.base.errors import UsageError
from sparseflash.sparsity.prices import LEAST_SLOPE, RISE_COSTS, Rises

STEPS = 20
SWEEPS = 10
STARTS = 3
REACH = 2 * max(RISE_COSTS)
"""Nats that a kind may cost by prediction: the fits of true rises end not far below."""
MOST_RISE = 0.3
"""Nats; what loses more than a third of the perplexity is no plan."""

Pick = dict[str, np.ndarray]
"""An option of each layer, (layers,) by kind of unit."""


@dataclass
class Units:
    """Options of a kind of unit, (layers, options) each; the first is pinned and dense."""

    cost: dict[str, np.ndarray]
    """Predicted nats by kind of ``marginal``, or of a prediction."""
    drift: np.ndarray
    streamed: np.ndarray
    """Bytes read a token."""
    ram: np.ndarray


@dataclass
class Solved:
    """An option of each layer, the bytes it streams a token and its predicted rise in nats."""

    pick: Pick
    streamed: float
    rise: float


@dataclass
class Problem:
    """Units, fits of true rises by kind of cost, and the limits of RAM and of bytes a token."""

    units: dict[str, Units]
    rises: Rises
    budget: float
    goal: float

    def sum(self, pick: Pick, name: str) -> float:
        """Of ``drift``, ``streamed`` or ``ram``."""
        at = np.arange(len(next(iter(pick.values()))))
        return float(sum(getattr(self.units[k], name)[at, p].sum() for k, p in pick.items()))

    def costs(self, pick: Pick) -> dict[str, float]:
        at = np.arange(len(next(iter(pick.values()))))
        return {
            k: float(c[at, pick[u]].sum())
            for u in self.units
            for k, c in self.units[u].cost.items()
        }

    def rise(self, pick: Pick) -> float:
        """Predicted nats; infinite beyond what the fits were measured for."""
        costs = self.costs(pick)
        if max(costs.values()) > REACH:
            return np.inf
        found = sum(a * costs[k] + b * costs[k] ** 2 for k, (a, b) in self.rises.items())
        found += self.sum(pick, "drift")
        return found if found <= MOST_RISE else np.inf

    def cheapest(self, slopes: dict[str, float], price: float) -> Pick:
        """The options at a price of streamed bytes; the price of RAM is bisected."""
        value = {
            kind: sum(slopes[k] * c for k, c in u.cost.items()) + u.drift + price * u.streamed
            for kind, u in self.units.items()
        }

        def at(ram_price: float) -> Pick:
            return {
                k: np.argmin(v + ram_price * self.units[k].ram, axis=1) for k, v in value.items()
            }

        more = at(0.0)
        if self.sum(more, "ram") <= self.budget:
            return more
        low, high = np.log10(price) - 8.0, np.log10(price) + 4.0
        best = at(10.0**high)
        for _ in range(STEPS):
            middle = (low + high) / 2
            pick = at(10.0**middle)
            fits = self.sum(pick, "ram") <= self.budget
            low, high = (low, middle) if fits else (middle, high)
            best, more = (pick, more) if fits else (best, pick)
        # Units of equal worth change together: as many as fit.
        left = self.budget - self.sum(best, "ram")
        for kind, u in self.units.items():
            for i in np.flatnonzero(best[kind] != more[kind]):
                needs = u.ram[i, more[kind][i]] - u.ram[i, best[kind][i]]
                if needs <= left:
                    best[kind][i] = more[kind][i]
                    left -= needs
        return best

    def settle(self, price: float) -> Pick:
        """The choice at a price when costs have the slopes of the true rises at that choice."""
        slopes = dict.fromkeys(self.rises, 1.0)
        for _ in range(STEPS):
            costs = self.costs(self.cheapest(slopes, price))
            for k, (a, b) in self.rises.items():
                slopes[k] = 0.6 * slopes[k] + 0.4 * max(a + 2 * b * costs[k], LEAST_SLOPE)
        return self.cheapest(slopes, price)

    def worth(self, pick: Pick) -> list[tuple[str, int, np.ndarray]]:
        """Kind, layer and the options that are cheapest at some prices; last the one it has."""
        costs = self.costs(pick)
        slopes = {k: max(a + 2 * b * costs[k], LEAST_SLOPE) for k, (a, b) in self.rises.items()}
        prices = 10.0 ** np.linspace(-12, -3, 19)
        out = []
        for kind, u in self.units.items():
            value = sum(slopes[k] * c for k, c in u.cost.items()) + u.drift
            found = [
                np.argmin(value + stream * u.streamed + ram * u.ram, axis=1)
                for stream in prices
                for ram in (0.0, *prices)
            ]
            for i, old in enumerate(pick[kind]):
                best = {int(f[i]) for f in found} - {int(old)}
                out.append((kind, i, np.array([*sorted(best), old])))
        return out

    def improve(self, pick: Pick) -> Pick:
        """Two units at a time the best options that keep both limits, until none are better."""
        pick = {k: v.copy() for k, v in pick.items()}
        units, names = self.worth(pick), list(self.rises)
        factors = np.array([self.rises[k] for k in names])

        def row(kind: str, i: int, options: np.ndarray) -> np.ndarray:
            """Streamed, RAM, drift and every cost of options, (3 + kinds, options)."""
            u = self.units[kind]
            none = np.zeros(len(options))
            costs = [u.cost[k][i, options] if k in u.cost else none for k in names]
            return np.stack(
                [u.streamed[i, options], u.ram[i, options], u.drift[i, options], *costs]
            )

        rows = [row(*u) for u in units]
        at = [len(options) - 1 for _, _, options in units]
        total = sum((r[:, j] for r, j in zip(rows, at, strict=True)), np.zeros(3 + len(names)))
        rise = self.rise(pick)
        for _ in range(SWEEPS):
            before = rise
            for m in range(len(units)):
                for n in range(m + 1, len(units)):
                    rest = total - rows[m][:, at[m]] - rows[n][:, at[n]]
                    both = rest[:, None, None] + rows[m][:, :, None] + rows[n][:, None, :]
                    fits = (both[0] <= self.goal) & (both[1] <= self.budget)
                    c = both[3:]
                    fits &= (c <= REACH).all(0)
                    value = both[2] + np.tensordot(factors.T[0], c, 1)
                    value += np.tensordot(factors.T[1], c * c, 1)
                    value = np.where(fits, value, np.inf)
                    best = int(np.argmin(value))
                    if value.flat[best] < rise - 1e-9:
                        rise = float(value.flat[best])
                        at[m], at[n] = (int(v) for v in np.unravel_index(best, value.shape))
                        total = rest + rows[m][:, at[m]] + rows[n][:, at[n]]
            if rise >= before:
                break
        for (kind, i, options), j in zip(units, at, strict=True):
            pick[kind][i] = options[j]
        return pick


def solve(problem: Problem) -> Solved:
    """The options that stream at most the goal for the least rise.

    Raises:
        UsageError: none does; it says what can be reached.
    """
    low, high = -16.0, 0.0
    seen = [problem.settle(10.0**p) for p in (low, high)]
    for _ in range(STEPS):
        middle = (low + high) / 2
        seen.append(problem.settle(10.0**middle))
        enough = problem.sum(seen[-1], "streamed") <= problem.goal
        enough |= not np.isfinite(problem.rise(seen[-1]))
        low, high = (low, middle) if enough else (middle, high)
    sound = [p for p in seen if np.isfinite(problem.rise(p))]
    good = [p for p in sound if problem.sum(p, "streamed") <= problem.goal]
    if not good:
        least = min((problem.sum(p, "streamed") for p in sound), default=np.inf)
        raise TooMuchError(least)
    starts = sorted(good, key=problem.rise)[:STARTS]
    best = min((problem.improve(p) for p in starts), key=problem.rise)
    return Solved(best, problem.sum(best, "streamed"), problem.rise(best))


class TooMuchError(UsageError):
    """More bytes than can be saved; ``least`` is what can still be reached."""

    def __init__(self, least: float, sentence: str = "") -> None:
        said = f"no plan streams so little; the least is {least:,.0f} bytes a token"
        super().__init__(sentence or said)
        self.least = least
