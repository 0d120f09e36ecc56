"""Self-distillation of a model to a budget of FFN bytes.

The loss is the KL from the dense model to the student at the logits. Each window of a batch has
one of the budgets, so one set of weights learns to work under all of them; the thresholds of each
budget follow densities that ramp down at the start. In the later part the weights are rounded to
grid s4 in the loop. The change against the base is kept cheap to code: whenever its entropy
passes ``bits``, every weight moves towards the base's by the same part of its grid step, so small
changes end and large ones stay.

Progress runs from 0 to 1, by a number of steps or by time (the first process's clock); everything
(learning rate, ramp, rounding) is a function of it, so a run can be cut into pieces that resume
from a checkpoint.
Several processes (torchrun) share a batch: gradients and densities are averaged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sparseflash.base.errors import InputError
from sparseflash.base.files import whole
from sparseflash.model.load import delta as fmt
from sparseflash.train import student as st
from sparseflash.train.evaluate import settle, sparse_of
from sparseflash.train.student import FFN, NORMS, Base, HeadKL, Shape, Student
from sparseflash.train.windows import Mixture

SPLITS = (
    (1.0, 1.0, 1.0),
    (0.75, 0.80, 0.60),
    (0.61, 0.51, 0.35),
    (0.51, 0.30, 0.21),
    (0.37, 0.19, 0.13),
    (0.10, 0.05, 0.04),
)
"""Densities of x, act and h that go well together, from dense to sparse."""


def split(shape: Shape, percent: float) -> tuple[float, float, float]:
    """Densities of x, act and h whose bytes are ``percent`` of the dense base's FFN.

    Raises:
        InputError: the budget lies outside what thresholds can reach.
    """
    table = np.array(SPLITS, np.float64)
    uniform = torch.from_numpy(table)[:, None, :].expand(-1, shape.layers, -1)
    costs = 100 * st.bytes_of(shape, uniform).numpy()
    if not costs[-1] <= percent <= costs[0]:
        raise InputError(
            f"a budget of {percent:g} % is out of reach; this model can have "
            f"{costs[-1]:.0f} to {costs[0]:.0f} % of its FFN bytes"
        )
    x, act, h = (float(np.interp(-percent, -costs, table[:, k])) for k in range(3))
    return x, act, h


@dataclass
class Settings:
    """What a run does. Budgets are percents of the dense base's FFN bytes a token."""

    budgets: tuple[int, ...] = (50, 35, 25)
    shares: tuple[float, ...] = (0.25, 0.375, 0.375)
    """Share of the windows that each budget gets."""
    start: tuple[float, float, float] = (0.75, 0.80, 0.60)
    windows: int = 32
    """Windows a step in each process."""
    window: int = 1024
    lr: float = 8e-4
    warm: int = 100
    ramp: float = 0.2
    quantise_from: float = 0.4
    settle_scales: float = 0.85
    """Progress after which the scale codes stay."""
    margin: float = 0.3
    """Percent of bytes that thresholds stay below a budget: other text is a little denser."""
    bits: float = 1.56
    """Largest entropy of a code given the base, in bits."""
    every: int = 25
    """Steps between controls of entropy and estimates of time."""
    chunk: int = 8192
    clip: float = 1.0
    seed: int = 1

    def counts(self) -> list[int]:
        """Windows of each budget in a step, by largest remainder, at least one each."""
        exact = [s * self.windows / sum(self.shares) for s in self.shares]
        n = [max(1, int(e)) for e in exact]
        order = sorted(range(len(n)), key=lambda i: int(exact[i]) - exact[i])
        i = 0
        while sum(n) < self.windows:
            n[order[i % len(n)]] += 1
            i += 1
        while sum(n) > self.windows and max(n) > 1:
            n[n.index(max(n))] -= 1
        if sum(n) != self.windows:
            raise InputError(f"{len(n)} budgets need at least {len(n)} windows a step")
        return n


class Pace:
    """How many steps are left: a fixed number, or what time allows."""

    def __init__(
        self, steps: int | None = None, seconds: float | None = None, later: float = 0.0
    ) -> None:
        """``steps`` in all; or ``seconds`` for this run and ``later`` for runs to come."""
        self.steps = steps
        self.deadline = None if seconds is None else time.time() + seconds
        self.later = later
        self.step_seconds = 0.2

    def left(self, step: int) -> float:
        if self.deadline is None:
            return (self.steps or 0) - step
        return max(1.0, (self.deadline - time.time() + self.later) / self.step_seconds)

    def over(self, step: int) -> bool:
        if self.deadline is None:
            return step >= (self.steps or 0)
        return time.time() >= self.deadline


class Distiller:
    """The state of a run and its steps."""

    def __init__(self, base: Base, settings: Settings, device: str, dtype: torch.dtype) -> None:
        self.base = base
        self.settings = c = settings
        self.student = Student(base, len(c.budgets), device, dtype)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.final = torch.tensor(
            [split(base.shape, b - c.margin) for b in c.budgets], device=device
        )
        counts = c.counts()
        which = [i for i, n in enumerate(counts) for _ in range(n)]
        # Budgets take turns, so that a part of a batch has all of them.
        self.which = torch.tensor(sorted(which, key=_turns(which)), device=device)
        self.micro = c.windows
        params = [*self.student.change.values(), *self.student.norms.values()]
        self.params = params
        self.optimizer = torch.optim.AdamW(
            params, lr=c.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=device.startswith("cuda")
        )
        self.step = 0
        self.progress = 0.0
        self.tokens = 0
        self.bits = 0.0
        self.slope = 2.0
        """Bits that a pull by one grid step saves, as last seen."""
        self.kl = float("nan")
        self.densities = torch.ones(len(c.budgets), base.shape.layers, 3, device=device)
        self.curve: list[dict[str, Any]] = []

    @property
    def quantised(self) -> bool:
        return self.progress >= self.settings.quantise_from

    def begin(self, mixture: Mixture) -> None:
        """Thresholds from the dense model, on windows of training text."""
        mixture.generator.manual_seed(self.settings.seed)
        self.student.calibrate(mixture.draw(min(16, self.settings.windows)), self.settings.start)

    def start_from(self, delta: fmt.Delta) -> None:
        """Goes on from a finished delta of this base: weights, thresholds and norms.

        Raises:
            InputError: the delta has other budgets.
        """
        s, budgets = self.student, self.settings.budgets
        if set(delta.scale) != set(budgets):
            raise InputError(
                f"the delta to start from has budgets {sorted(delta.scale)}, "
                f"this run {sorted(budgets)}; give the same"
            )

        def put(to: Tensor, values: np.ndarray) -> None:
            to.copy_(torch.from_numpy(np.array(values)))

        with torch.no_grad():
            for i, layer in enumerate(delta.codes):
                for m in FFN:
                    put(s.e[m][i], layer[m].e)
            s.d = s.scales_of(s.e)
            for i, layer in enumerate(delta.codes):
                for m in FFN:
                    put(s.change[m][i], layer[m].q)
                    s.change[m][i].mul_(s.d[m][i].float().repeat_interleave(fmt.GROUP, -1))
            for m in FFN:
                s.change[m].sub_(s.base[m])
            for site in fmt.SITES:
                put(s.vector[site], delta.threshold[site].astype(np.float32))
            for k, b in enumerate(budgets):
                put(s.log_t[k], np.log(delta.scale[b]))
                for n in NORMS:
                    put(s.norms[n][k], delta.norms[b][n])

    def targets(self) -> Tensor:
        """Densities wanted now, (budgets, 3)."""
        start = torch.tensor(self.settings.start, device=self.student.device)
        f = min(1.0, self.progress / self.settings.ramp) if self.settings.ramp else 1.0
        return torch.minimum(start, start + (self.final - start) * f)

    def _losses(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Backward through a batch in parts; mean KL and densities (L, 3, B)."""
        s = self.student
        parts = -(-len(ids) // self.micro)
        total = torch.zeros((), device=s.device)
        densities = []
        for part, which in zip(ids.split(self.micro), self.which.split(self.micro)):
            with torch.no_grad():
                want = s.teacher(part)
            got, density = s.forward(part, which, self.quantised)
            d = got.shape[-1]
            loss = HeadKL.apply(
                got.reshape(-1, d), want.reshape(-1, d), s.head, self.settings.chunk
            )
            (loss / parts).backward()
            total += loss.detach() / parts
            densities.append(density.detach())
        return total, torch.cat(densities, -1)

    def train_step(self, mixture: Mixture) -> None:
        """One step: gradients, update, thresholds; ``run`` moves the progress."""
        c, s = self.settings, self.student
        seed = (c.seed * 1_000_003 + self.step) * 64 + self.rank
        mixture.generator.manual_seed(seed % (2**63))
        ids = mixture.draw(c.windows)
        while True:
            try:
                kl, density = self._losses(ids)
                break
            except torch.cuda.OutOfMemoryError:
                if self.micro == 1:
                    raise
                self.optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                self.micro = -(-self.micro // 2)
        by_budget = torch.stack(
            [density[..., self.which == i].mean(-1) for i in range(len(c.budgets))]
        )
        if self.world > 1:
            both = torch.cat([by_budget.reshape(-1), kl.view(1)])
            for t in [p.grad for p in self.params if p.grad is not None] + [both]:
                dist.all_reduce(t)
                t.div_(self.world)
            by_budget, kl = both[:-1].view_as(by_budget), both[-1]
        with torch.no_grad():
            self.densities = by_budget
            gap = by_budget - self.targets()[:, None]
            s.log_t += (0.7 * gap).clamp(-0.05, 0.05)
            torch.nn.utils.clip_grad_norm_(self.params, c.clip)
            lr = c.lr * min(1.0, (self.step + 1) / c.warm) * (1 - self.progress)
            for g in self.optimizer.param_groups:
                g["lr"] = lr
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += ids.numel() * self.world
        self._last_kl = kl
        if self.step % c.every == 0:
            self._control()

    @torch.no_grad()
    def _control(self) -> None:
        """Holds the entropy of the change, and refreshes the scale codes."""
        c, s = self.settings, self.student
        self.kl = float(self._last_kl)
        if self.quantised and self.progress < c.settle_scales and self.step % (4 * c.every) == 0:
            s.refresh_scales()
        self.bits = s.mean_bits()
        if self.bits > c.bits:
            part = min((self.bits - c.bits) / self.slope, 0.1)
            s.pull(part)
            saved = (self.bits - s.mean_bits()) / part
            self.slope = min(max(saved, 0.2), 20.0)

    def run(
        self,
        mixture: Mixture,
        pace: Pace,
        report: Callable[[Distiller], None] | None = None,
        report_seconds: float = 10.0,
    ) -> None:
        """Steps until ``pace`` is over; ``report`` is called about every ``report_seconds``."""
        last_report = began = time.time()
        first = self.step
        over = pace.over(self.step)
        left = self._together(pace.left(self.step))[0]
        while not over:
            self.train_step(mixture)
            self.progress = min(1.0, self.progress + (1 - self.progress) / max(left, 1.0))
            left -= 1
            if self.step % self.settings.every == 0:
                now = time.time()
                if self.step - first >= 3 * self.settings.every:
                    n = self.settings.every
                    seconds = (now - began) / n
                    # Pauses for reports and checkpoints are no step time.
                    pace.step_seconds += 0.3 * (seconds - pace.step_seconds)
                elif self.step - first >= 2 * self.settings.every:
                    pace.step_seconds = (now - began) / self.settings.every
                due = now - last_report >= report_seconds
                # Every process must take the same steps at the same rates.
                left, ended, told = self._together(
                    pace.left(self.step), float(pace.over(self.step)), float(due)
                )
                over = bool(ended)
                if report is not None and told:
                    report(self)
                    last_report = time.time()
                began = time.time()
            elif pace.deadline is None:
                over = pace.over(self.step)

    def _together(self, *values: float) -> list[float]:
        """The first process's values, in all of them."""
        if self.world == 1:
            return list(values)
        t = torch.tensor(values, dtype=torch.float64, device=self.student.device)
        dist.broadcast(t, 0)
        return [float(v) for v in t]

    def line(self) -> dict[str, Any]:
        """Where the run stands, for a log."""
        d = self.densities.mean(1)
        b = st.bytes_of(self.base.shape, self.densities)
        return {
            "step": self.step,
            "progress": round(self.progress, 4),
            "tokens": self.tokens,
            "kl": round(self.kl, 4),
            "bits": round(self.bits, 3),
            "bytes": [round(float(x), 4) for x in b],
            "densities": [[round(float(y), 3) for y in x] for x in d],
            "quantised": self.quantised,
        }

    # ------------------------------------------------------------------ results

    @torch.no_grad()
    def delta(self, windows: Tensor | None = None, meta: dict[str, Any] | None = None) -> fmt.Delta:
        """Rounds the weights; thresholds are settled on ``windows`` under the rounded weights."""
        s, c = self.student, self.settings
        if not self.quantised:
            s.refresh_scales()
        codes: list[dict[str, fmt.Codes]] = []
        for i in range(self.base.shape.layers):
            layer = {}
            for m in FFN:
                step = s.d[m][i].float()[..., None]
                w = (s.base[m][i] + s.change[m][i]).view(*s.d[m][i].shape, fmt.GROUP)
                q = (w / step).round().clamp(-8, 7).reshape(s.base[m][i].shape)
                layer[m] = fmt.fit(self.base.lines(i)[m], q.cpu().numpy(), s.e[m][i].cpu().numpy())
            codes.append(layer)
        scale = {b: torch.exp(s.log_t[k]).float().cpu().numpy() for k, b in enumerate(c.budgets)}
        norms = {
            b: {n: t[k].detach().float().cpu().numpy() for n, t in s.norms.items()}
            for k, b in enumerate(c.budgets)
        }
        out = fmt.Delta(
            codes,
            {site: s.vector[site].half().cpu().numpy() for site in fmt.SITES},
            scale,
            norms,
            (meta or {}) | {"settings": asdict(c), "steps": self.step, "tokens": self.tokens},
        )
        if windows is not None:
            plain = sparse_of(s, out, self.base, None)
            for k, b in enumerate(c.budgets):
                target = self.final[k].expand(self.base.shape.layers, 3)
                settle(plain, out, b, target, windows)
        return out

    def save(self, path: Path) -> None:
        """Writes a checkpoint, whole or not at all."""
        s = self.student
        state = {
            "change": {m: t.detach() for m, t in s.change.items()},
            "norms": {n: t.detach() for n, t in s.norms.items()},
            "e": s.e,
            "vector": s.vector,
            "log_t": s.log_t,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "progress": self.progress,
            "tokens": self.tokens,
            "bits": self.bits,
            "slope": self.slope,
            "kl": self.kl,
            "densities": self.densities,
            "curve": self.curve,
            "settings": asdict(self.settings),
        }
        with whole(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint of the same model and budgets.

        Raises:
            InputError: missing, damaged, or of another model or other budgets.
        """
        s = self.student
        try:
            state = torch.load(path, map_location=s.device, weights_only=True)
        except Exception as e:
            raise InputError(
                f"{path}: no whole checkpoint ({type(e).__name__}); start anew without it"
            ) from e
        if tuple(state["settings"]["budgets"]) != tuple(self.settings.budgets) or any(
            state["change"][m].shape != s.change[m].shape for m in FFN
        ):
            raise InputError(
                f"{path}: a checkpoint of another model or other budgets; use another folder"
            )
        with torch.no_grad():
            for m in FFN:
                s.change[m].copy_(state["change"][m])
                s.e[m].copy_(state["e"][m])
            for n in NORMS:
                s.norms[n].copy_(state["norms"][n])
            for site in fmt.SITES:
                s.vector[site].copy_(state["vector"][site])
            s.log_t.copy_(state["log_t"])
        s.d = s.scales_of(s.e)
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("step", "progress", "tokens", "bits", "kl", "curve"):
            setattr(self, name, state[name])
        self.slope = state.get("slope", self.slope)  # checkpoints of earlier versions have none
        self.densities = state["densities"]


def _turns(which: list[int]) -> Callable[[int], float]:
    """Sort key that lets each budget appear evenly: the k-th of n comes at (k + 1/2) / n."""
    seen: dict[int, int] = {}
    total = {i: which.count(i) for i in set(which)}

    def key(i: int) -> float:
        seen[i] = seen.get(i, 0) + 1
        return (seen[i] - 0.5) / total[i]

    return key
