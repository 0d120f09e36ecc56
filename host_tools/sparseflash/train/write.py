"""The dense model writes text for its own distillation: continuations and whole conversations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflash.train.student import Shape, Student, rms, rotate


def _before(
    s: Shape, x: Tensor, norm: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    y = F.linear(rms(x, norm, s.eps), qkv)
    y = y.view(x.shape[0], s.heads + 2 * s.kv_heads, s.head_dim)
    q, k, v = y.split((s.heads, s.kv_heads, s.kv_heads), 1)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def _after(
    s: Shape,
    x: Tensor,
    heads: Tensor,
    out: Tensor,
    norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
) -> Tensor:
    x = x + F.linear(heads, out)
    y = rms(x, norm, s.eps)
    return x + (F.silu(y @ gate) * F.linear(y, up)) @ down


def _sample(logits: Tensor, temperature: Tensor) -> Tensor:
    noise = torch.rand_like(logits, dtype=torch.float32).clamp(1e-9, 1 - 1e-7)
    return (logits.float() / temperature - torch.log(-torch.log(noise))).argmax(-1)


class Writer:
    """Samples many rows at once with a KV cache of the dense model.

    A row of ``length`` tokens takes 2 * layers * kv_heads * head_dim numbers a token.
    """

    def __init__(self, student: Student, rows: int, length: int, compiled: bool) -> None:
        self.student = student
        s = student.shape
        self.rows, self.length = rows, length
        size = (rows, s.kv_heads, length, s.head_dim)
        make = dict(dtype=student.dtype, device=student.device)
        self.k = [torch.empty(size, **make) for _ in range(s.layers)]  # type: ignore[call-overload]
        self.v = [torch.empty(size, **make) for _ in range(s.layers)]  # type: ignore[call-overload]
        self.before: Callable[..., tuple[Tensor, Tensor, Tensor]] = _before
        self.after: Callable[..., Tensor] = _after
        self.sample: Callable[..., Tensor] = _sample
        if compiled:
            self.before = torch.compile(_before, dynamic=False)
            self.after = torch.compile(_after, dynamic=False)
            self.sample = torch.compile(_sample, dynamic=False)

    @torch.no_grad()
    def write(self, prompts: Tensor, temperature: Tensor, forbid: Sequence[int] = ()) -> Tensor:
        """Continues prompts (rows, P) to (rows, length); temperature (rows, 1)."""
        st, s = self.student, self.student.shape
        w = st.frozen
        norm1, norm2 = st.base["attn_norm"], st.base["ffn_norm"]
        n, given = prompts.shape
        out = torch.empty(n, self.length, dtype=torch.long, device=st.device)
        out[:, :given] = prompts
        cos, sin = st.cos[: self.length].to(st.dtype), st.sin[: self.length].to(st.dtype)
        for first in range(0, n, 512):
            part = slice(first, min(first + 512, n))
            x = F.embedding(prompts[part], w["embed"])
            b = x.shape[0]
            for i in range(s.layers):
                y = F.linear(rms(x, norm1[i], s.eps), w["qkv"][i])
                y = y.view(b, given, s.heads + 2 * s.kv_heads, s.head_dim).transpose(1, 2)
                q, k, v = y.split((s.heads, s.kv_heads, s.kv_heads), 1)
                q = rotate(q, cos[:given], sin[:given])
                k = rotate(k, cos[:given], sin[:given])
                self.k[i][part, :, :given] = k
                self.v[i][part, :, :given] = v
                a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                a = a.transpose(1, 2).reshape(b, given, -1)
                x = _after(s, x, a, w["out"][i], norm2[i], w["gate"][i], w["up"][i], w["down"][i])
        for t in range(given - 1, self.length - 1):
            x = F.embedding(out[:, t], w["embed"])
            for i in range(s.layers):
                q, k, v = self.before(s, x, norm1[i], w["qkv"][i], cos[t], sin[t])
                self.k[i][:, :, t] = k
                self.v[i][:, :, t] = v
                # The heads that share keys stand where a sequence of queries would.
                q = q.view(n, s.kv_heads, s.heads // s.kv_heads, s.head_dim)
                a = F.scaled_dot_product_attention(
                    q, self.k[i][:, :, : t + 1], self.v[i][:, :, : t + 1]
                )
                x = self.after(
                    s,
                    x,
                    a.reshape(n, -1),
                    w["out"][i],
                    norm2[i],
                    w["gate"][i],
                    w["up"][i],
                    w["down"][i],
                )
            logits = rms(x, st.base["final_norm"], s.eps) @ st.head.T
            if forbid:
                logits[:, list(forbid)] = -1e4
            out[:, t + 1] = self.sample(logits, temperature)
        return out


def write_text(
    writer: Writer,
    seconds: float,
    draw: Callable[[int, int], Tensor],
    openings: Sequence[Sequence[int]],
    forbid: Sequence[int],
    say: Callable[[str], None],
    batches: int | None = None,
) -> dict[str, np.ndarray]:
    """Text for ``seconds`` (or a number of batches): batches are chat and text in turn.

    ``draw(n, length)`` gives beginnings of real text. An opening is the tokens of a conversation up
    to the user's turn or some words into it: the model writes the rest of question and answer
    itself. A batch has openings of one length, the first opening every other time.
    Temperatures are uniform in 0.75 to 1.05, one a row. Returns uint16 or int32 tokens by kind.
    """
    st = writer.student
    kinds: dict[str, list[np.ndarray]] = {"text": [], "chat": []}
    start = time.time()
    last, i = 0.0, 0
    fit = [list(o) for o in openings if 0 < len(o) < writer.length // 2]
    small = np.uint16 if st.shape.vocab <= 65536 else np.int32
    while (i < batches) if batches is not None else (time.time() - start + last < seconds):
        began = time.time()
        t = torch.empty(writer.rows, 1, device=st.device).uniform_(0.75, 1.05)
        kind = "chat" if fit and i % 2 == 0 else "text"
        if kind == "chat":
            some = fit[0] if i % 4 == 0 else fit[int(torch.randint(len(fit), ()))]
            same = torch.tensor([o for o in fit if len(o) == len(some)], device=st.device)
            if i % 4 == 0:
                same = same[:1]
            which = torch.randint(len(same), (writer.rows,), device=st.device)
            rows = writer.write(same[which], t)
        else:
            given = min((16, 32, 8, 64, 24)[i // 2 % 5], writer.length // 2)
            rows = writer.write(draw(writer.rows, given), t, forbid)
        kinds[kind].append(rows.cpu().numpy().astype(small))
        last = time.time() - began
        i += 1
        say(f"wrote {rows.numel():,} tokens of {kind}, {rows.numel() / last:,.0f} tokens/s")
    return {k: np.concatenate(v).reshape(-1) for k, v in kinds.items() if v}
