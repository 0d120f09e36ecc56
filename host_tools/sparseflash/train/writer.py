"""A small language model that writes stories: SmolLM2 tuned on a few hundred of them, then sampled.

The tensors are a Llama's: ``embed``, ``final`` and for each layer ``qkv``, ``o``, ``gate_up``,
``down``, ``norm1``, ``norm2``. Tuning shows the style and how a prompt's words are used;
sampling runs a batch of rows of one length in bfloat16 with a cache.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sparseflash.train.story import rmsnorm, rotate

ASK = "<|im_start|>user\nStory with: {}<|im_end|>\n<|im_start|>assistant\n"
STOP = 2
"""``<|im_end|>`` of SmolLM2."""


@dataclass(frozen=True)
class Base:
    """Shape of the writer."""

    layers: int = 30
    dim: int = 576
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    theta: float = 100000.0
    eps: float = 1e-5


class Writer:
    """Weights in float32; ``half`` gives the bfloat16 copies that sampling reads."""

    def __init__(self, tensors: dict[str, np.ndarray], base: Base, device: str) -> None:
        self.base, self.device = base, device
        self.cuda = device.startswith("cuda")
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        hd = base.head_dim
        self.p = {k: torch.from_numpy(v).to(device) for k, v in tensors.items()}
        half = torch.arange(hd // 2, dtype=torch.float64) / (hd // 2)
        angle = torch.arange(2048, dtype=torch.float64)[:, None] * base.theta**-half
        angle = torch.cat([angle, angle], -1).to(device)
        self.cos, self.sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)

    def _split(self, qkv: torch.Tensor) -> list[torch.Tensor]:
        """q (B, T, H, hd), k and v (B, T, KV, hd)."""
        b = self.base
        heads = qkv.unflatten(-1, (b.heads + 2 * b.kv_heads, b.head_dim))
        return list(heads.split((b.heads, b.kv_heads, b.kv_heads), -2))

    def states(
        self,
        ids: torch.Tensor,
        p: dict[str, torch.Tensor],
        keys: list[torch.Tensor] | None = None,
        values: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Normed last states (B, T, dim); fills the first T places of a cache when given."""
        t, base = ids.shape[1], self.base
        x = F.embedding(ids, p["embed"]).to(self.dtype)
        cos, sin = self.cos[:t, None], self.sin[:t, None]
        for i in range(base.layers):
            y = rmsnorm(x, p[f"norm1.{i}"], base.eps)
            q, k, v = self._split(F.linear(y, p[f"qkv.{i}"].to(self.dtype)))
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            q, k, v = (z.transpose(1, 2) for z in (q, k, v))
            if keys is not None and values is not None:
                keys[i][: len(ids), :, :t], values[i][: len(ids), :, :t] = k, v
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + F.linear(a.transpose(1, 2).flatten(2), p[f"o.{i}"].to(self.dtype))
            y = rmsnorm(x, p[f"norm2.{i}"], base.eps)
            g, u = F.linear(y, p[f"gate_up.{i}"].to(self.dtype)).chunk(2, -1)
            x = x + F.linear(F.silu(g) * u, p[f"down.{i}"].to(self.dtype))
        return rmsnorm(x, p["final"], base.eps)

    def tune(
        self,
        examples: list[tuple[list[int], list[int]]],
        epochs: int,
        lr: float,
        batch: int,
        report: Callable[[str], None],
        seed: int = 1,
    ) -> None:
        """A few epochs of AdamW on (prompt, answer) pairs; the loss is on the answers."""
        order = random.Random(seed)
        for w in self.p.values():
            w.requires_grad_()
        opt = torch.optim.AdamW(
            self.p.values(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=self.cuda
        )
        total = epochs * (len(examples) // batch)
        step = 0
        for _ in range(epochs):
            order.shuffle(examples)
            for at in range(0, len(examples) - batch + 1, batch):
                rows = examples[at : at + batch]
                width = -(-max(len(a) + len(b) for a, b in rows) // 64) * 64
                ids = torch.zeros(batch, width, dtype=torch.long)
                want = torch.full((batch, width), -100)
                for i, (ask, answer) in enumerate(rows):
                    end = len(ask) + len(answer)
                    ids[i, :end] = torch.tensor(ask + answer)
                    want[i, len(ask) : end] = torch.tensor(answer)
                ids, want = ids.to(self.device), want.to(self.device)
                x = self.states(ids, self.p)[:, :-1]
                logits = (x @ self.p["embed"].to(self.dtype).T).float()
                loss = F.cross_entropy(
                    logits.flatten(0, 1), want[:, 1:].flatten(), ignore_index=-100
                )
                for group in opt.param_groups:
                    group["lr"] = lr * min(1.0, (step + 1) / 8) * (1 - step / total)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(list(self.p.values()), 1.0)
                opt.step()
                opt.zero_grad()
                if step % 20 == 0 or step == total - 1:
                    report(f"tune step {step} of {total} loss {float(loss.detach()):.3f}")
                step += 1
        for w in self.p.values():
            w.requires_grad_(False)

    @torch.no_grad()
    def write(
        self,
        prompts: Iterator[list[int]],
        rows: int,
        length: int,
        seconds: float,
        seed: int,
        report: Callable[[str], None],
    ) -> Iterator[list[list[int]]]:
        """Answers, a batch of ``rows`` prompts at a time, until ``seconds`` have passed.

        Yields the answers that ended within ``length`` tokens. Rows are drawn at a temperature of
        0.7 to 1.0 of their own from tokens of at least 6 % of the best one's probability.
        """
        start = time.monotonic()
        torch.manual_seed(seed)
        p = {k: v.to(self.dtype) for k, v in self.p.items()}
        longest = 64
        b = self.base
        size = (rows, b.kv_heads, longest + length, b.head_dim)
        keys = [torch.empty(size, dtype=self.dtype, device=self.device) for _ in range(b.layers)]
        values = [torch.empty_like(k) for k in keys]
        before: Callable[..., Any] = _before
        after: Callable[..., Any] = _after
        sample: Callable[..., Any] = _sample
        if self.cuda:
            before, after, sample = (
                torch.compile(f, dynamic=False) for f in (_before, _after, _sample)
            )
        last = 0.0
        waiting: dict[int, list[list[int]]] = {}
        while time.monotonic() - start + last < seconds:
            begun = time.monotonic()
            asks = _alike(prompts, waiting, rows, longest)
            if not asks:
                return
            widest = len(asks[0])
            ids = torch.tensor(asks, device=self.device)
            out = torch.zeros(rows, widest + length, dtype=torch.long, device=self.device)
            out[:, :widest] = ids
            for at in range(0, rows, 512):
                part = [k[at:] for k in keys], [v[at:] for v in values]
                self.states(ids[at : at + 512], p, *part)
            heat = torch.empty(rows, 1, device=self.device).uniform_(0.7, 1.0)
            ended = torch.zeros(rows, dtype=torch.bool, device=self.device)
            groups = b.heads // b.kv_heads
            for t in range(widest - 1, widest + length - 1):
                x = F.embedding(out[:, t], p["embed"])
                cos, sin = self.cos[t], self.sin[t]
                for i in range(b.layers):
                    q, k, v = before(x, p[f"norm1.{i}"], p[f"qkv.{i}"], cos, sin, b)
                    keys[i][:, :, t], values[i][:, :, t] = k, v
                    a = F.scaled_dot_product_attention(
                        q.view(rows, b.kv_heads, groups, b.head_dim),
                        keys[i][:, :, : t + 1],
                        values[i][:, :, : t + 1],
                    )
                    x = after(
                        x, a.flatten(1), p[f"o.{i}"], p[f"norm2.{i}"], p[f"gate_up.{i}"],
                        p[f"down.{i}"], b,
                    )  # fmt: skip
                new = sample(rmsnorm(x, p["final"], b.eps) @ p["embed"].T, heat)
                out[:, t + 1] = new
                ended |= new == STOP
                if t % 16 == 0 and float(ended.float().mean()) > 0.97:
                    break
            answers = [row[: row.index(STOP)] for row in out[:, widest:].tolist() if STOP in row]
            last = time.monotonic() - begun
            made = sum(map(len, answers))
            report(f"write {len(answers)} of {rows} ended, {made / last:.0f} tokens/s kept")
            yield answers


def _alike(
    prompts: Iterator[list[int]], waiting: dict[int, list[list[int]]], rows: int, longest: int
) -> list[list[int]]:
    """The next ``rows`` prompts of one length; the others wait. Padding would cost the writer more
    than it saves: SmolLM2 loses the thread behind a few dozen padding tokens."""
    for prompt in prompts:
        if len(prompt) <= longest:
            same = waiting.setdefault(len(prompt), [])
            same.append(prompt)
            if len(same) == rows:
                return waiting.pop(len(prompt))
    return []


def _before(
    x: torch.Tensor, norm: torch.Tensor, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
    base: Base,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    y = F.linear(rmsnorm(x, norm, base.eps), qkv)
    h = y.view(len(x), base.heads + 2 * base.kv_heads, base.head_dim)
    q, k, v = h.split((base.heads, base.kv_heads, base.kv_heads), 1)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def _after(
    x: torch.Tensor, a: torch.Tensor, o: torch.Tensor, norm: torch.Tensor, gate_up: torch.Tensor,
    down: torch.Tensor, base: Base,
) -> torch.Tensor:  # fmt: skip
    x = x + F.linear(a, o)
    g, u = F.linear(rmsnorm(x, norm, base.eps), gate_up).chunk(2, -1)
    return x + F.linear(F.silu(g) * u, down)


def _sample(logits: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    z = logits.float()
    z = torch.where(z < z.amax(-1, keepdim=True) - 2.8, -1e9, z)
    noise = torch.rand_like(z).clamp(1e-9, 1 - 1e-7)
    return (z / heat - torch.log(-torch.log(noise))).argmax(-1)


def examples(
    encode: Callable[[str], list[int]],
    stories: list[str],
    words_of: Callable[[str], list[str]],
    seed: int,
) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) ids: a prompt names two to four of the story's content words."""
    draw = random.Random(seed)
    pairs = []
    for story in stories:
        words = words_of(story)
        words = draw.sample(words, min(len(words), draw.randint(2, 4)))
        pairs.append((encode(ASK.format(", ".join(words))), [*encode(story), STOP]))
    return pairs


def prompts(
    encode: Callable[[str], list[int]], pools: list[list[str]], seed: int
) -> Iterator[list[int]]:
    """Endless prompts; a word comes from the first pool twice as often as from the others."""
    draw = random.Random(seed)
    weights = [2.0, *([1.0] * (len(pools) - 1))]
    while True:
        words = (draw.choice(draw.choices(pools, weights)[0]) for _ in range(draw.randint(2, 4)))
        yield encode(ASK.format(", ".join(words)))
