"""A decoder whose FFN is sparse from the first step, and its training.

The FFN of kind ``split`` gates with a part of its input (after Spark Transformer, arXiv
2506.06644): ``g = W_gate y[:r]``, ``u = W_up y[r:]``, ``h = g*u`` where ``g >= t`` and 0 elsewhere.
A neuron below its threshold costs its gate row only. A controller moves ``log t`` towards a density
that is ramped down in the first part of the training; a rectangle kernel around the threshold gives
the mask a gradient. The threshold is folded into the rows (gate / t, up * t), so the model that is
written compares with 1. Other kinds are controls: ``dense`` (the same shape, SiLU, no mask), and
``blocks`` (32 neurons to a block, a ReLU router; after BlockFFN, arXiv 2507.08771).

Matrices train with Muon, the rest with AdamW; in the last part the weights pass through the grids
of ``sparseflash.train.grid`` (4 bits in the loop).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from sparseflash.base.nibbles import GROUP
from sparseflash.train import grid

KERNEL = 0.5
"""Half width of the gradient's kernel, in thresholds."""
BLOCK = 32
MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "router")
TABLES = ("bigram", "table")
KINDS = ("split", "dense", "blocks")


@dataclass(frozen=True)
class Shape:
    """The model's architecture. ``gate_inputs`` 0: gate and up both see the whole input."""

    kind: str = "split"
    vocab: int = 4096
    dim: int = 256
    layers: int = 8
    heads: int = 8
    kv_heads: int = 1
    head_dim: int = 32
    ffn: int = 2304
    gate_inputs: int = 64
    context: int = 512
    theta: float = 10000.0
    eps: float = 1e-5
    bigram: int = 0
    """Rows of a table that adds a vector for (token before, token); 0 is none."""
    tables: str = ""
    """What each layer reads of a table of its own, a row a token: "" (none), "states" (added to the
    layer's input) or "values" (added to attention's values)."""

    @property
    def gate_in(self) -> int:
        return self.gate_inputs or self.dim

    @property
    def up_in(self) -> int:
        return self.dim - self.gate_inputs

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Shapes (layers, out, in); ``down`` is stored as (layers, ffn, dim), a neuron a row."""
        n, d = self.layers, self.dim
        shapes: dict[str, tuple[int, ...]] = {
            "q": (n, self.heads * self.head_dim, d),
            "k": (n, self.kv_heads * self.head_dim, d),
            "v": (n, self.kv_heads * self.head_dim, d),
            "o": (n, d, self.heads * self.head_dim),
            "gate": (n, self.ffn, self.gate_in),
            "up": (n, self.ffn, self.up_in),
            "down": (n, self.ffn, d),
        }
        if self.kind == "blocks":
            shapes["router"] = (n, self.ffn // BLOCK, d)
        return shapes

    def ffn_bytes(self, density: float) -> tuple[float, int]:
        """(read a token at this density, all) FFN bytes of the model, scales included."""
        m = {k: grid.s4_bytes(*v) for k, v in self.matrices().items()}
        rest = m["up"] + m["down"]
        if self.kind == "dense":
            return float(m["gate"] + rest), m["gate"] + rest
        if self.kind == "blocks":
            return m["router"] + density * (m["gate"] + rest), m["router"] + m["gate"] + rest
        return m["gate"] + density * rest, m["gate"] + rest

    def table_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the flash tables, (..., rows, width); a token reads one row of each layer."""
        wide = {"": 0, "states": self.dim, "values": self.kv_heads * self.head_dim}[self.tables]
        shapes: dict[str, tuple[int, ...]] = {}
        if self.bigram:
            shapes["bigram"] = (self.bigram, self.dim)
        if wide:
            shapes["table"] = (self.layers, self.vocab, wide)
        return shapes

    def table_bytes(self) -> tuple[int, int]:
        """(read a token, all) bytes of the flash tables, 4 bits a weight and their scales."""
        sizes = [(grid.s4_bytes(*v), v[-2]) for v in self.table_shapes().values()]
        return sum(n // rows for n, rows in sizes), sum(n for n, _ in sizes)

    def weights(self) -> int:
        n = sum(math.prod(s) for s in self.matrices().values())
        return n + self.vocab * self.dim + (2 * self.layers + 1) * self.dim


@dataclass(frozen=True)
class Plan:
    """How it is trained. Parts (``ramp``, ``decay``, ``rounding``) are fractions of ``steps``."""

    steps: int = 1000
    batch: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.1
    dropout: float = 0.0
    warmup: int = 100
    decay: float = 0.4
    density: float = 0.1
    first_density: float = 0.4
    ramp: float = 0.2
    rounding: float = 0.3
    ema: float = 0.998
    seed: int = 1

    def rate(self, step: int) -> float:
        """Multiple of the learning rate: warm-up, flat, then linear to 0."""
        left = 1 - step / self.steps
        return min(1.0, (step + 1) / max(1, self.warmup), left / self.decay if self.decay else 1.0)

    def target(self, step: int) -> float:
        """Density that the controller aims at."""
        part = min(1.0, step / max(1.0, self.ramp * self.steps))
        return self.first_density + (self.density - self.first_density) * part

    def rounds(self, step: int) -> bool:
        return step >= (1 - self.rounding) * self.steps


# --- the model ----------------------------------------------------------------------------------


def rmsnorm(x: torch.Tensor, w: torch.Tensor, eps: float) -> torch.Tensor:
    f = x.float()
    return (f * torch.rsqrt(f.square().mean(-1, keepdim=True) + eps) * w).to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE of heads (..., T, head_dim), half-split pairs."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def jump(g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mask with a kernel's gradient, mask): 1 where g >= 1."""
    on = (g >= 1).to(g.dtype)
    slope = ((g - 1) / (2 * KERNEL) + 0.5).clamp(0, 1)
    return on + (slope - slope.detach()), on


def block(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor],
    w: dict[str, torch.Tensor],
    shape: Shape,
    dropout: float,
    extra: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One layer: (x, mean of the mask a neuron or block, the mask (B, T, n)).

    ``extra``: the tokens' rows (B, T, kv_heads * head_dim) of the layer's table of values.
    """
    b, t, _ = x.shape
    hd = shape.head_dim
    y = rmsnorm(x, norms[0], shape.eps)
    q, k, v = (F.linear(y, w[n]) for n in ("q", "k", "v"))
    if extra is not None:
        v = v + extra
    q, k, v = (z.view(b, t, -1, hd).transpose(1, 2).contiguous() for z in (q, k, v))
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if shape.heads != shape.kv_heads:
        k = k.repeat_interleave(shape.heads // shape.kv_heads, 1)
        v = v.repeat_interleave(shape.heads // shape.kv_heads, 1)
    a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    a = F.linear(a.transpose(1, 2).reshape(b, t, -1), w["o"])
    x = x + F.dropout(a, dropout)

    y = rmsnorm(x, norms[1], shape.eps)
    g = F.linear(y[..., : shape.gate_in], w["gate"])
    u = F.linear(y[..., shape.dim - shape.up_in :], w["up"])
    if shape.kind == "split":
        mask, on = jump(g)
        h = g * mask * u
    elif shape.kind == "blocks":
        r = F.linear(y, w["router"])
        mask, on = jump(r)
        h = (r * mask).repeat_interleave(BLOCK, -1) * F.silu(g) * u
    else:
        on = torch.ones_like(g[..., :1])
        h = F.silu(g) * u
    x = x + F.dropout(h @ w["down"], dropout)
    return x, on.float().mean((0, 1)), on


class Story:
    """Parameters and forward pass. Masters are float32; ``log_t`` moves by the controller."""

    def __init__(self, shape: Shape, device: str = "cpu", seed: int = 1) -> None:
        if shape.kind not in KINDS:
            raise ValueError(f"kind {shape.kind!r} is none of {KINDS}")
        self.shape, self.device = shape, device
        draw = torch.Generator().manual_seed(seed)

        def normal(size: tuple[int, ...], std: float) -> torch.Tensor:
            return (torch.randn(*size, generator=draw) * std).to(device).requires_grad_()

        self.p: dict[str, torch.Tensor] = {"embed": normal((shape.vocab, shape.dim), 0.05)}
        for name, size in shape.matrices().items():
            last = name in ("o", "down")
            fan = shape.ffn if name == "down" else size[-1]
            self.p[name] = normal(size, (0.3 if last else 1.0) * fan**-0.5)
        for name, n in (("attn_norm", shape.layers), ("ffn_norm", shape.layers), ("final_norm", 0)):
            size = (n, shape.dim) if n else (shape.dim,)
            self.p[name] = torch.ones(*size, device=device).requires_grad_()
        for name, size in shape.table_shapes().items():
            self.p[name] = normal(size, 0.01)
        n = {"split": shape.ffn, "blocks": shape.ffn // BLOCK, "dense": 1}[shape.kind]
        self.log_t = torch.full((shape.layers, n), math.log(0.25), device=device)
        half = shape.head_dim // 2
        rates = shape.theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(shape.context, dtype=torch.float64)[:, None] * rates
        angle = torch.cat([angle, angle], -1).to(device)
        self.cos, self.sin = angle.cos().float(), angle.sin().float()
        cuda = device.startswith("cuda")
        self._block: Callable[..., Any] = torch.compile(block, dynamic=False) if cuda else block
        self._loss: Callable[..., Any] = torch.compile(_loss, dynamic=False) if cuda else _loss
        self._round: Callable[..., Any] = (
            torch.compile(grid.s4_round, dynamic=False) if cuda else grid.s4_round
        )

    def weights(self, rounded: bool) -> dict[str, torch.Tensor]:
        """All tensors with thresholds folded in, on the grids (straight through) if ``rounded``."""
        w = dict(self.p)
        t = self.log_t.exp().unsqueeze(-1)
        if self.shape.kind == "split":
            w["gate"], w["up"] = w["gate"] / t, w["up"] * t
        elif self.shape.kind == "blocks":
            w["router"] = w["router"] / t
        if rounded:
            names = [n for n in MATRICES + TABLES if n in w]
            flat = torch.cat([w[n].detach().reshape(-1, GROUP) for n in names])
            for name, part in zip(
                names, self._round(flat).split([w[n].numel() // GROUP for n in names])
            ):
                w[name] = grid.through(w[name], part.view_as(w[name]))
            w["embed"] = grid.through(w["embed"], grid.q8_round(w["embed"].detach()))
        return w

    def hidden(
        self,
        ids: torch.Tensor,
        w: dict[str, torch.Tensor],
        dropout: float = 0.0,
        keep: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Normed last states (B, T, dim), mean masks (layers, n), masks if ``keep``."""
        dtype = torch.bfloat16 if self.device.startswith("cuda") else torch.float32
        return self.hidden_in(ids, w, dtype, dropout, keep)

    def hidden_in(
        self,
        ids: torch.Tensor,
        w: dict[str, torch.Tensor],
        dtype: torch.dtype,
        dropout: float = 0.0,
        keep: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        t = ids.shape[1]
        x = F.embedding(ids, w["embed"]).to(dtype)
        if self.shape.bigram:
            before = F.pad(ids[:, :-1], (1, 0))
            x = x + F.embedding((before * 4099 + ids * 31) % self.shape.bigram, w["bigram"]).to(
                dtype
            )
        cos, sin = self.cos[:t].to(dtype), self.sin[:t].to(dtype)
        names = [n for n in MATRICES if n in w]
        layers = zip(*(w[n].to(dtype).unbind(0) for n in names))
        norms = zip(w["attn_norm"].unbind(0), w["ffn_norm"].unbind(0))
        tables = w["table"].unbind(0) if self.shape.tables else [None] * self.shape.layers
        means, masks = [], []
        for layer, norm, table in zip(layers, norms, tables):
            extra = None if table is None else F.embedding(ids, table).to(dtype)
            if extra is not None and self.shape.tables == "states":
                x, extra = x + extra, None
            x, mean, mask = self._block(
                x, cos, sin, norm, dict(zip(names, layer)), self.shape, dropout, extra
            )
            means.append(mean)
            if keep:
                masks.append(mask)
        return rmsnorm(x, w["final_norm"], self.shape.eps), torch.stack(means), masks

    def loss(
        self, ids: torch.Tensor, w: dict[str, torch.Tensor], dropout: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss in nats a token of ids (B, T+1), and mean masks."""
        x, means, _ = self.hidden(ids[:, :-1], w, dropout)
        return self._loss(x, w["embed"].to(x.dtype), ids[:, 1:]), means

    def parameters(self) -> list[torch.Tensor]:
        return list(self.p.values())


def _loss(x: torch.Tensor, embed: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy((x @ embed.T).float().flatten(0, 1), y.flatten())


# --- optimisers ---------------------------------------------------------------------------------


@torch.no_grad()
def orthogonal(g: torch.Tensor) -> torch.Tensor:
    """Nearest semi-orthogonal matrices of a stack, by five Newton-Schulz steps (Muon)."""
    x = g.bfloat16() if g.is_cuda else g.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Momentum, orthogonalised for each matrix of a stack; Nesterov, decoupled weight decay."""

    def __init__(
        self, parameters: list[torch.Tensor], decay: float, momentum: float = 0.95
    ) -> None:
        self.parameters, self.decay, self.momentum = parameters, decay, momentum
        self.state = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for p, m in zip(self.parameters, self.state):
            if p.grad is None:
                continue
            m.lerp_(p.grad, 1 - self.momentum)
            update = orthogonal(p.grad.lerp(m, self.momentum))
            p.mul_(1 - lr * self.decay).add_(update, alpha=-lr * 0.2 * max(p.shape[-2:]) ** 0.5)


# --- data ---------------------------------------------------------------------------------------


class Texts:
    """Windows of token streams, drawn by weight; the stream of draws is a checkpoint's part."""

    def __init__(
        self, streams: list[tuple[np.ndarray, float]], window: int, device: str, seed: int
    ) -> None:
        for tokens, _ in streams:
            if len(tokens) <= window + 1:
                raise ValueError(f"a text of {len(tokens)} tokens is shorter than a window")
        self.window = window
        self.all = torch.cat([torch.from_numpy(s.astype(np.int32)) for s, _ in streams]).to(device)
        sizes = torch.tensor([len(s) for s, _ in streams], dtype=torch.float64, device=device)
        self.first = torch.cat([torch.zeros(1, device=device), sizes.cumsum(0)[:-1]]).long()
        self.room = sizes - window - 1
        self.weight = torch.tensor([w for _, w in streams], device=device)
        self.draw = torch.Generator(device=device).manual_seed(seed)
        self.steps = torch.arange(window + 1, device=device)

    def batch(self, n: int) -> torch.Tensor:
        """ids (n, window + 1)."""
        which = torch.multinomial(self.weight, n, replacement=True, generator=self.draw)
        part = torch.rand(n, dtype=torch.float64, device=self.weight.device, generator=self.draw)
        start = self.first[which] + (part * self.room[which]).long()
        return self.all[start[:, None] + self.steps].long()


# --- training -----------------------------------------------------------------------------------


class Trainer:
    """Steps, schedules, checkpoints. Under ``torchrun`` gradients are averaged over all cards."""

    def __init__(self, model: Story, plan: Plan, texts: Texts) -> None:
        self.model, self.plan, self.texts = model, plan, texts
        p = model.p
        self.matrices = [p[n] for n in MATRICES if n in p]
        rest = [{"params": [p[n] for n in ("embed", *TABLES) if n in p]}]
        rest.append({"params": [p[n] for n in ("attn_norm", "ffn_norm", "final_norm")]})
        cuda = model.device.startswith("cuda")
        self.adam = torch.optim.AdamW(
            rest, lr=plan.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=cuda
        )
        self.muon = Muon(self.matrices, plan.weight_decay)
        self.step = 0
        self.use = torch.zeros_like(model.log_t)
        self.average = {k: v.detach().clone() for k, v in p.items()}
        self.average["log_t"] = model.log_t.clone()

    def train_step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, density a layer) of one step, on the device."""
        plan, model = self.plan, self.model
        ids = self.texts.batch(plan.batch)
        loss, means = model.loss(ids, model.weights(plan.rounds(self.step)), plan.dropout)
        loss.backward()
        means, value = means.detach(), loss.detach()
        self._share(means, value)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        lr = plan.lr * plan.rate(self.step)
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self.muon.step(lr)
        for p in model.parameters():
            p.grad = None
        density = means.mean(-1)
        if model.shape.kind != "dense":
            self._control(means, density)
        self.step += 1
        keep = min(plan.ema, self.step / (self.step + 10))
        now = [*(v.detach() for v in model.p.values()), model.log_t]
        torch._foreach_lerp_(list(self.average.values()), now, 1 - keep)
        return value, density

    @torch.no_grad()
    def _share(self, means: torch.Tensor, value: torch.Tensor) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            return
        parts = [p.grad for p in self.model.parameters() if p.grad is not None] + [means, value]
        flat = torch.cat([x.reshape(-1).float() for x in parts])
        dist.all_reduce(flat, op=dist.ReduceOp.SUM)
        flat /= dist.get_world_size()
        at = 0
        for x in parts:
            x.copy_(flat[at : at + x.numel()].view_as(x))
            at += x.numel()

    def _any(self, stop: bool) -> bool:
        """Whether any card wants to stop, so that all stop at the same step."""
        if not (dist.is_available() and dist.is_initialized()):
            return stop
        flag = torch.tensor([float(stop)], device=self.model.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    @torch.no_grad()
    def _control(self, means: torch.Tensor, density: torch.Tensor) -> None:
        """Thresholds of a layer follow its density; neurons that never fire get lower ones."""
        target = self.plan.target(self.step)
        self.model.log_t += (0.7 * (density - target)).clamp(-0.05, 0.05).unsqueeze(-1)
        self.use.lerp_(means, 0.02)
        if self.step > 100 and not self.plan.rounds(self.step):
            self.model.log_t -= 0.01 * (self.use < 0.02 * target)

    def state(self) -> dict[str, Any]:
        """Everything that a later call needs to go on as if it had not stopped."""
        cuda = self.model.device.startswith("cuda")
        return {
            "shape": asdict(self.model.shape),
            "plan": asdict(self.plan),
            "step": self.step,
            "parameters": {k: v.detach() for k, v in self.model.p.items()},
            "log_t": self.model.log_t,
            "use": self.use,
            "average": self.average,
            "adam": self.adam.state_dict(),
            "muon": self.muon.state,
            "draw": self.texts.draw.get_state(),
            "random": torch.cuda.get_rng_state() if cuda else torch.get_rng_state(),
        }

    def save(self, path: Path) -> None:
        temporary = path.with_name(path.name + ".new")
        torch.save(self.state(), temporary)
        os.replace(temporary, path)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Goes on from a checkpoint of the same shape."""
        s = torch.load(path, map_location=self.model.device, weights_only=True)
        if s["shape"] != asdict(self.model.shape):
            raise ValueError(f"{path}: a checkpoint of another shape")
        for k, v in s["parameters"].items():
            self.model.p[k].copy_(v)
        self.model.log_t.copy_(s["log_t"])
        self.use.copy_(s["use"])
        for k, v in s["average"].items():
            self.average[k].copy_(v)
        self.adam.load_state_dict(s["adam"])
        for m, v in zip(self.muon.state, s["muon"]):
            m.copy_(v)
        self.step = int(s["step"])
        self.texts.draw.set_state(s["draw"].cpu())
        if self.model.device.startswith("cuda"):
            torch.cuda.set_rng_state(s["random"].cpu())
        else:
            torch.set_rng_state(s["random"].cpu())

    def lengthen(self, steps: int) -> None:
        """Another number of steps in all, for what is left."""
        self.plan = replace(self.plan, steps=steps)

    def run(
        self,
        seconds: float,
        report: Callable[[dict[str, Any]], None],
        checkpoint: Path | None = None,
        every: float = 60.0,
        until: int | None = None,
    ) -> bool:
        """Trains to the plan's end or ``until``, at most ``seconds``; True at the plan's end."""
        start = saved = time.monotonic()
        first = self.step
        goal = min(self.plan.steps, until or self.plan.steps)
        while self.step < goal:
            loss, density = self.train_step()
            if self.step % 50 == 0 or self.step == goal:
                if self.model.device.startswith("cuda"):
                    torch.cuda.synchronize()
                now = time.monotonic()
                if self.step % 200 == 0 or self.step == goal:
                    tokens = (self.step - first) * self.plan.batch * self.texts.window
                    report(
                        {
                            "step": self.step,
                            "loss": round(float(loss), 4),
                            "density": round(float(density.mean()), 4),
                            "seconds": round(now - start, 1),
                            "rate": round(tokens / (now - start)),
                        }
                    )
                if self._any(now - start > seconds):
                    break
                if checkpoint and now - saved > every:
                    self.save(checkpoint)
                    saved = time.monotonic()
        if checkpoint:
            self.save(checkpoint)
        return self.step >= self.plan.steps

    def averaged(self) -> Story:
        """The exponential average of the weights as a model."""
        other = Story(self.model.shape, self.model.device)
        with torch.no_grad():
            for k, v in self.average.items():
                (other.log_t if k == "log_t" else other.p[k]).copy_(v)
        return other


# --- measuring ----------------------------------------------------------------------------------


@torch.no_grad()
def measure(
    model: Story,
    tokens: np.ndarray,
    text_bytes: int,
    window: int,
    rounded: bool,
    weights: dict[str, torch.Tensor] | None = None,
) -> dict[str, float]:
    """Teacher-forced over consecutive windows: bits a byte, nats a token, density, bytes, reuse.

    ``reuse``: of a token's active neurons, the part that was active at the token before.
    The first token of a window is not predicted.
    """
    w = weights or model.weights(rounded)
    dtype = torch.bfloat16 if model.device.startswith("cuda") else torch.float32
    compiled, model._block = model._block, block
    n = (len(tokens) - 1) // window
    if n < 1:
        raise ValueError(f"{len(tokens)} tokens are less than a window of {window}")
    ids = torch.from_numpy(tokens[: n * window + 1].astype(np.int64)).to(model.device)
    nats, on, both, after = 0.0, 0.0, 0.0, 0.0
    layers: list[list[float]] = []
    for i in range(0, n, 16):
        rows = [ids[j * window : (j + 1) * window + 1] for j in range(i, min(n, i + 16))]
        batch = torch.stack(rows + rows[-1:] * (16 - len(rows)))
        x, _, masks = model.hidden_in(batch[:, :-1], w, dtype, keep=True)
        logits = (x @ w["embed"].to(x.dtype).T).float()
        losses = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        k = len(rows)
        nats += float(losses.view(16, -1)[:k].sum())
        if model.shape.kind != "dense":
            m = torch.stack([x[:k] for x in masks]).float()
            on += float(m.mean()) * k
            layers.append([float(v) * k for v in m.mean((1, 2, 3))])
            both += float((m[:, :, 1:] * m[:, :, :-1]).sum())
            after += float(m[:, :, 1:].sum())
    model._block = compiled
    count = n * window
    part = count / (len(tokens) - 1)
    density = on / n if model.shape.kind != "dense" else 1.0
    read, whole = model.shape.ffn_bytes(density)
    out: dict[str, Any] = {
        "tokens": count,
        "nats": nats / count,
        "bits_per_byte": nats / math.log(2) / (text_bytes * part),
        "density": density,
        "ffn_bytes": read / whole,
        "reuse": both / after if after else 1.0,
    }
    if layers:
        out["layer_density"] = [round(float(v) / n, 4) for v in np.array(layers).sum(0)]
    return out


@torch.no_grad()
def tell(
    model: Story,
    prompts: list[list[int]],
    length: int,
    temperature: float,
    seed: int,
    end: int,
    weights: dict[str, torch.Tensor] | None = None,
    rounded: bool = True,
) -> list[list[int]]:
    """Continues prompts of one length; no cache, so for short samples only. 0 is greedy."""
    w = weights or model.weights(rounded)
    draw = torch.Generator(device=model.device).manual_seed(seed)
    dtype = torch.bfloat16 if model.device.startswith("cuda") else torch.float32
    ids = torch.tensor(prompts, device=model.device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=model.device)
    eager = model._block
    model._block = block
    for _ in range(length):
        x, _, _ = model.hidden_in(ids[:, -model.shape.context :], w, dtype)
        logits = (x[:, -1] @ w["embed"].to(x.dtype).T).float()
        if temperature > 0:
            p = (logits / temperature).softmax(-1)
            top = p.amax(-1, keepdim=True)
            p = torch.where(p < 0.02 * top, 0.0, p)
            new = torch.multinomial(p, 1, generator=draw)
        else:
            new = logits.argmax(-1, keepdim=True)
        ids = torch.cat([ids, new], 1)
        ended |= new[:, 0] == end
        if bool(ended.all()):
            break
    model._block = eager
    stories = []
    for row, prompt in zip(ids.tolist(), prompts):
        body = row[len(prompt) :]
        stories.append(prompt + (body[: body.index(end)] if end in body else body))
    return stories
