"""Low-rank predictors of an FFN's neurons, trained inside the model (docs/METHODS.md).

For FFN input x, z = B x (rank), g' = A_gate z and u' = A_up z predict gate and up, and a neuron is
computed when |act(g') u'| reaches a threshold. Factors start at the whitened singular vectors of
[W_gate; W_up]. Training keeps the model as it is: the loss is the divergence of its next-token
distribution under the predicted masks of all layers from that of the dense model, so that what
counts is not whether a mask is right but what its errors cost. The share of active neurons is
drawn for each step; gradients pass the threshold through a sigmoid of log magnitudes. Factors are
rounded to the q4 grid in every step, so that what is trained is what is stored.

``ahead`` reads the normed input of the layer's attention instead: the prediction is ready while
attention runs.

Text is the calibration text and continuations of it that the model writes itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflash import __version__
from sparseflash.base.errors import UnsupportedError, UsageError
from sparseflash.base.files import file_sha256
from sparseflash.image.bfp import GROUP
from sparseflash.image.grids import pack_rows, quantize
from sparseflash.image.predictor import NAMES, Predictor
from sparseflash.model.recipes import text, text_path
from sparseflash.model.spec import Model
from sparseflash.model.torch_model import Hooks, TorchModel, activate

SOFTNESS = 0.5
"""Width of the sigmoid that gradients see, in units of log magnitude."""
SAMPLE = 1 << 16
"""Magnitudes of a layer from which its threshold is read."""


@dataclass(frozen=True)
class Settings:
    """What a training run depends on, with the model and the text."""

    rank: int
    ahead: bool = False
    steps: int = 1200
    batch: int = 12
    """Windows in a step."""
    rate: float = 1e-3
    """Peak of Adam's learning rate, which rises over 100 steps and falls as a cosine."""
    least: float = 0.3
    most: float = 0.7
    """Range of the share of neurons that a step leaves alive."""
    seed: int = 1


class Trainable:
    """B (layers, rank, dim), A_gate and A_up (layers, ffn, rank), float32."""

    def __init__(self, b: Tensor, gate: Tensor, up: Tensor) -> None:
        self.all = [b, gate, up]

    @property
    def rank(self) -> int:
        return int(self.all[0].shape[1])

    def layer(self, i: int) -> list[Tensor]:
        """B, A_gate and A_up of a layer on the q4 grid, as gradients pass."""
        return [on_grid(t[i]) for t in self.all]

    def stored(self, ahead: bool) -> Predictor:
        """On the grid, packed."""

        def packed(m: torch.Tensor) -> np.ndarray:
            return pack_rows(quantize(m.detach().float().cpu().numpy(), "q4"))

        rows = [[packed(m) for m in t] for t in self.all]
        return Predictor(**{n: np.stack(r) for n, r in zip(NAMES, rows, strict=True)}, ahead=ahead)


def on_grid(w: Tensor) -> Tensor:
    """float32 (out, in) rounded as grid ``q4`` does; its gradient is that of ``w``."""
    with torch.no_grad():
        x = w.reshape(w.shape[0], -1, GROUP)
        low = x.amin(-1, keepdim=True).half().float()
        d = ((x.amax(-1, keepdim=True) - low) / 15).half().float()
        q = ((x - low) / d.clamp_min(1e-12)).round().clamp(0, 15)
        error = (q * d + low).reshape(w.shape) - w
    return w + error


class Predicting(Hooks):
    """Drops the neurons that the factors predict to be small; ``alive`` is the share left.

    Thresholds are percentiles of the magnitudes at hand, as calibrated ones are of other text.
    """

    def __init__(self, runner: TorchModel, factors: Trainable, ahead: bool) -> None:
        self.runner, self.factors, self.ahead = runner, factors, ahead
        self.alive = 0.5
        self._x: Tensor | None = None

    def attn_in(self, layer: int, x: Tensor) -> Tensor:
        if self.ahead:
            self._x = x
        return x

    def ffn_in(self, layer: int, x: Tensor) -> Tensor:
        if not self.ahead:
            self._x = x
        return x

    def magnitudes(self, layer: int) -> Tensor:
        """|act(g') u'|, float32 (B, T, ffn)."""
        assert self._x is not None
        kind = self.runner.matmul
        b, gate, up = (t.to(kind) for t in self.factors.layer(layer))
        z = F.linear(self._x.to(kind), b)
        act = activate(self.runner.spec.activation, F.linear(z, gate).float())
        return (act * F.linear(z, up).float()).abs()

    def ffn(self, layer: int, gate: Tensor, up: Tensor, h: Tensor) -> Tensor:
        score = self.magnitudes(layer)
        with torch.no_grad():
            some = score.flatten()
            some = some[:: max(1, some.numel() // SAMPLE)]
            limit = some.kthvalue(max(1, round((1 - self.alive) * some.numel()))).values
            limit = limit.clamp_min(1e-20)
            hard = (score >= limit).float()
        soft = torch.sigmoid((score.clamp_min(1e-20) / limit).log() / SOFTNESS)
        return h * (hard + soft - soft.detach())


def logits(runner: TorchModel, ids: Tensor, hooks: Hooks | None = None) -> Tensor:
    """float32 (B, T, vocab), with gradients."""
    x, run = runner.begin(ids, hooks)
    for i in range(runner.spec.n_layers):
        x = x + runner.attention_branch(i, x, run)
        x = x + runner.ffn_branch(i, x, run)
    return F.linear(runner.end(x).to(runner.matmul), runner.head.to(runner.matmul)).float()


class _Second(Hooks):
    """Sums of x x^T of what the prediction reads, and of the FFN input times it."""

    def __init__(self, runner: TorchModel, ahead: bool) -> None:
        n, d = runner.spec.n_layers, runner.spec.dim
        self.ahead = ahead
        self.own = torch.zeros(n, d, d, dtype=torch.float64, device=runner.device)
        self.cross = torch.zeros_like(self.own)
        self._x: Tensor | None = None

    def attn_in(self, layer: int, x: Tensor) -> Tensor:
        self._x = x
        return x

    def ffn_in(self, layer: int, x: Tensor) -> Tensor:
        y = x.reshape(-1, x.shape[-1]).double()
        read = y
        if self.ahead:
            assert self._x is not None
            read = self._x.reshape(y.shape).double()
        self.own[layer] += read.T @ read
        self.cross[layer] += y.T @ read
        return x


def initial(runner: TorchModel, ids: np.ndarray, rank: int, ahead: bool) -> Trainable:
    """Reduced-rank regression of gate and up together on what the prediction reads.

    With C = E[x x^T] of the input that is read and W = [W_gate; W_up] E[y x^T] C^-1, the factors
    are the largest singular vectors of W C^(1/2), C^(1/2) put back; the pair is then scaled alike.
    """
    hooks = _Second(runner, ahead)
    for row in ids:
        runner.hidden(torch.from_numpy(np.asarray(row, np.int64))[None], hooks)
    parts: list[list[Tensor]] = [[], [], []]
    for i, w in enumerate(runner.layers):
        if w.gate_proj is None:
            raise UnsupportedError("a predictor of gate and up needs a gated FFN")
        c = hooks.own[i] / ids.size
        eye = torch.eye(len(c), dtype=c.dtype, device=c.device)
        c = c + 1e-4 * c.diagonal().mean() * eye
        root = torch.linalg.cholesky(c)
        both = torch.cat([w.gate_proj, w.up_proj]).double()
        best = torch.cholesky_solve((both @ (hooks.cross[i] / ids.size)).T, root).T
        u, sigma, vt = torch.linalg.svd(best @ root, full_matrices=False)
        half = sigma[:rank].sqrt()
        b = torch.linalg.solve_triangular(root.T, vt[:rank].T, upper=True).T
        a = u[:, :rank] * half
        ratio = (a.pow(2).mean() / (half[:, None] * b).pow(2).mean()) ** 0.25
        n = w.gate_proj.shape[0]
        for out, t in zip(parts, (ratio * half[:, None] * b, a[:n] / ratio, a[n:] / ratio)):
            out.append(t.float())
    return Trainable(*(torch.stack(p) for p in parts))


@torch.no_grad()
def continuations(
    runner: TorchModel, prompts: np.ndarray, length: int, draw: torch.Generator
) -> np.ndarray:
    """Windows (n, length): ``prompts`` (n, k), then next tokens that the model draws."""
    n, k = prompts.shape
    ids = torch.zeros(n, length, dtype=torch.int64, device=runner.device)
    ids[:, :k] = torch.from_numpy(np.asarray(prompts, np.int64)).to(runner.device)
    cache = runner.new_cache(length, n)
    for t in range(length - 1):
        scores = runner.step(ids[:, t], cache)
        if t + 1 >= k:
            ids[:, t + 1] = torch.multinomial(scores.float().softmax(-1), 1, generator=draw)[:, 0]
    return ids.cpu().numpy()


def written(
    model: Model,
    windows: np.ndarray,
    tokens: int,
    device: str = "cpu",
    seed: int = 1,
    rows: int = 1024,
    prompt: int = 32,
    progress: Callable[[str], None] = lambda _: None,
) -> np.ndarray:
    """At least ``tokens`` tokens as continuations of the windows' random places, (n, window)."""
    kind = torch.bfloat16 if device != "cpu" else torch.float32
    runner = TorchModel(model, kind, device)
    rng = np.random.default_rng(seed)
    draw = torch.Generator(runner.device).manual_seed(seed)
    length, out = windows.shape[1], []
    for done in range(0, tokens, rows * length):
        progress(f"{done:,} of {tokens:,} tokens written")
        row = rng.integers(len(windows), size=rows)
        at = rng.integers(length - prompt + 1, size=rows)
        out.append(
            continuations(
                runner, windows[row[:, None], at[:, None] + np.arange(prompt)], length, draw
            )
        )
    return np.concatenate(out)


def whole_texts(
    model: Model, texts: Sequence[str], window: int
) -> tuple[np.ndarray, dict[str, str]]:
    """All of the texts as windows (n, window) of tokens, and the SHA-256 of each."""
    if model.tokenizer is None:
        raise UsageError(f"model {model.name} carries no tokenizer; give one")
    rows, hashes = [], {}
    for name in texts:
        ids = np.array(model.tokenizer.encode(text(name)))
        hashes[name] = file_sha256(text_path(name))
        rows.append(ids[: len(ids) // window * window].reshape(-1, window))
    return np.concatenate(rows), hashes


def _batches(ids: np.ndarray, settings: Settings) -> Iterator[Tensor]:
    """Random windows, each once before any a second time."""
    rng = np.random.default_rng(settings.seed)
    order: list[int] = []
    while True:
        while len(order) < settings.batch:
            order += rng.permutation(len(ids)).tolist()
        picked, order = order[: settings.batch], order[settings.batch :]
        yield torch.from_numpy(ids[picked].astype(np.int64))


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean KL(teacher | student) in nats a token, of logits (..., vocab)."""
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


@torch.no_grad()
def held_out(runner: TorchModel, prediction: Predicting, ids: np.ndarray) -> dict[str, float]:
    """Divergence and loss on windows that training did not see, by percent dropped."""
    out: dict[str, float] = {}
    for percent in (0, 30, 40, 50, 60, 70):
        prediction.alive = 1 - percent / 100
        kl = loss = 0.0
        for row in ids:
            window = torch.from_numpy(row.astype(np.int64))[None].to(runner.device)
            teacher = logits(runner, window)
            student = logits(runner, window, prediction) if percent else teacher
            kl += float(divergence(teacher, student))
            loss += float(F.cross_entropy(student[0, :-1], window[0, 1:]))
        out[f"kl_{percent}"] = round(kl / len(ids), 5)
        out[f"loss_{percent}"] = round(loss / len(ids), 5)
    return out


@dataclass
class Trained:
    """Factors, and figures of the run."""

    factors: Trainable
    settings: Settings
    about: dict[str, Any]

    def save(self, path: Path, model: Model, texts: dict[str, str]) -> None:
        """``path`` (.npz), and the .json beside it with the recipe of the run and its figures."""
        predictor = self.factors.stored(self.settings.ahead)
        predictor.check(model.spec, str(path))
        about = {
            **asdict(self.settings),
            **self.about,
            "model": model.name,
            "model_sha256": model.source.get("sha256", ""),
            "texts": texts,
            "tool_version": __version__,
        }
        predictor.save(path, about)


def train(
    model: Model,
    ids: np.ndarray,
    test: np.ndarray,
    settings: Settings,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Trains on windows ``ids`` (n, tokens), measures on ``test``.

    Raises:
        UsageError: the rank is not a positive multiple of 32 below the model's dim.
    """
    dim = model.spec.dim
    if settings.rank % GROUP or not 0 < settings.rank <= dim:
        raise UsageError(f"rank {settings.rank} is no multiple of {GROUP} from {GROUP} to {dim}")
    torch.manual_seed(settings.seed)
    matmul = torch.bfloat16 if device != "cpu" else None
    runner = TorchModel(model, torch.float32, device, matmul)
    sample = ids[:: max(1, len(ids) * ids.shape[1] // 65536)]
    factors = initial(
        TorchModel(model, torch.float32, device), sample, settings.rank, settings.ahead
    )
    factors.all = [t.requires_grad_() for t in factors.all]
    prediction = Predicting(runner, factors, settings.ahead)
    before = held_out(runner, prediction, test)
    progress(f"untrained {before}")
    adam = torch.optim.Adam(factors.all, settings.rate, betas=(0.9, 0.98))
    rng = np.random.default_rng(settings.seed + 1)
    batches, start, total = _batches(ids, settings), time.monotonic(), 0.0
    for step in range(settings.steps):
        rise = min(1.0, (step + 1) / 100)
        fall = 0.5 + 0.5 * math.cos(math.pi * step / settings.steps)
        adam.param_groups[0]["lr"] = settings.rate * rise * (0.02 + 0.98 * fall)
        window = next(batches)
        prediction.alive = float(rng.uniform(settings.least, settings.most))
        with torch.no_grad():
            teacher = logits(runner, window)
        loss = divergence(teacher, logits(runner, window, prediction))
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors.all, 1.0)
        adam.step()
        if step % 100 == 99:
            total = time.monotonic() - start
            progress(
                f"step {step + 1}, {total:.0f} s, active {prediction.alive:.2f}, "
                f"{loss.item():.4f} nats"
            )
    after = held_out(runner, prediction, test)
    progress(f"trained {after}")
    about = {
        "tokens_seen": settings.steps * settings.batch * ids.shape[1],
        "tokens_of_text": int(ids.size),
        "window": int(ids.shape[1]),
        "held_out_tokens": int(test.size),
        "untrained": before,
        "trained": after,
        "trained_on": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "seconds": round(total),
    }
    return Trained(factors, settings, about)


def train_predictor(
    model: Model,
    windows: np.ndarray,
    texts: dict[str, str],
    settings: Settings,
    write: int,
    device: str,
    path: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Trains on all but each 40th of the windows and on ``write`` tokens that the model writes."""
    test = windows[::40]
    ids = np.delete(windows, np.s_[::40], axis=0)
    if write:
        more = written(model, ids, write, device, settings.seed, progress=progress)
        ids = np.concatenate([ids, more])
    out = train(model, ids, test, settings, device, progress)
    out.about["tokens_written"] = write
    out.save(path, model, texts)
    return out
