"""The model in floating point with torch: calibration, perplexity and the dense baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflash.base.errors import UsageError
from sparseflash.model.spec import (
    Activation,
    LayerSpec,
    Matrix,
    Model,
    Norm,
    Position,
    as_float32,
)


class Hooks:
    """Places where a caller may look at or replace activations; all are identities here.

    Shapes are (B, T, n), also in single-token decoding, where B = T = 1.
    """

    def attn_in(self, layer: int, x: Tensor) -> Tensor:
        """Normed input of q, k, v, (B, T, dim)."""
        return x

    def attn_out(self, layer: int, heads: Tensor) -> Tensor:
        """Heads side by side before o_proj, (B, T, q_dim)."""
        return heads

    def ffn_in(self, layer: int, x: Tensor) -> Tensor:
        """Normed input of the FFN, (B, T, dim)."""
        return x

    def ffn(self, layer: int, gate: Tensor, up: Tensor, h: Tensor) -> Tensor:
        """Before down_proj, (B, T, ffn_dim): h = act(gate) * up, gate before activation.

        Without a gate, gate and up are both the pre-activation and h = act(up).
        """
        return h

    def ffn_out(self, layer: int, o: Tensor) -> Tensor:
        """Output of down_proj, before a sandwich norm and the residual add, (B, T, dim)."""
        return o

    def matrix_in(self, layer: int, matrix: str, x: Tensor) -> Tensor:
        """Input of one projection, after the hooks above: q, k, v, o, gate, up or down."""
        return x

    def matrix_out(self, layer: int, matrix: str, y: Tensor) -> Tensor:
        """Output of q, k, v, o, gate or up with its bias, before norms and activations."""
        return y


def check_device(name: str) -> None:
    """Raises UsageError where torch has no such device."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, ImportError) as e:
        why = str(e).strip().splitlines()[0]
        raise UsageError(f"device {name!r} is not there: {why}; use cpu") from e


@dataclass
class Cache:
    """Keys after RoPE and values of every layer, (B, kv_heads, max_len, head_dim)."""

    k: list[Tensor]
    v: list[Tensor]
    length: int = 0

    @property
    def max_len(self) -> int:
        return int(self.k[0].shape[2])


@dataclass
class _Weights:
    """One layer's tensors; absent ones are None."""

    attn_norm: Tensor | None
    ffn_norm: Tensor | None
    q_proj: Tensor
    k_proj: Tensor
    v_proj: Tensor
    o_proj: Tensor
    up_proj: Tensor
    down_proj: Tensor
    gate_proj: Tensor | None
    router: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    post_attn_norm: Tensor | None
    post_ffn_norm: Tensor | None
    q_bias: Tensor | None
    k_bias: Tensor | None
    v_bias: Tensor | None
    o_bias: Tensor | None
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None
    attn_norm_bias: Tensor | None
    ffn_norm_bias: Tensor | None
    thresholds: tuple[Tensor, Tensor, Tensor] | None
    """Of the FFN's input, of act and of h."""


Angles = dict[LayerSpec, tuple[Tensor, Tensor]]
"""cos and sin (T, head_dim/2) by what a layer says of RoPE; empty without RoPE."""


def _angle_key(layer: LayerSpec) -> LayerSpec:
    """The layer without what angles do not depend on."""
    return replace(layer, window=0)


@dataclass
class Pass:
    """What the branches of one pass share."""

    hooks: Hooks
    angles: Angles
    masks: dict[int, Tensor | None]
    cache: Cache | None = None


_IDENTITY = Hooks()


def activate(kind: Activation, x: Tensor) -> Tensor:
    """The activation, elementwise."""
    if kind is Activation.SILU:
        return F.silu(x)
    if kind is Activation.RELU:
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if kind is Activation.GELU_TANH else "none")


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split RoPE on (B, H, T, head_dim) with cos, sin (T, head_dim/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _frequencies(layer: LayerSpec, head_dim: int) -> Tensor:
    """``rope.frequencies`` in float32 throughout, as transformers computes them."""
    dims = layer.turning(head_dim)
    exponent = torch.arange(dims // 2, dtype=torch.float32) * 2 / max(dims, 1)
    f = 1.0 / (layer.rope_theta**exponent) / layer.rope_scale
    if layer.rope_factors:
        f = f / torch.tensor(layer.rope_factors)
    return F.pad(f, (0, (head_dim - dims) // 2))


class TorchModel:
    """Dense forward pass of a :class:`Model`, its blocks dequantised to ``dtype``."""

    def __init__(
        self,
        model: Model,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        matmul: torch.dtype | None = None,
    ) -> None:
        """``matmul``: projections and head multiply in this type, all else stays in ``dtype``."""
        self.spec = spec = model.spec
        self.dtype = dtype
        self.matmul = matmul or dtype
        self.device = torch.device(device)

        def tensor(value: Matrix | None) -> Tensor | None:
            if value is None:
                return None
            # A copy: arrays over a file's bytes are read-only.
            array = np.array(as_float32(value), dtype=np.float32)
            return torch.from_numpy(array).to(self.device, dtype)

        def needed(value: Matrix | None) -> Tensor:
            out = tensor(value)
            assert out is not None
            return out

        self.embed = needed(model.embed)
        self.head = self.embed if model.head is None else needed(model.head)
        self.final_norm = needed(model.final_norm)
        self.final_norm_bias = tensor(model.final_norm_bias)
        self.head_bias = tensor(model.head_bias)
        self.positions = tensor(model.positions)
        self.layers = []
        for layer in model.layers:
            own = layer.thresholds
            values = {k: tensor(v) for k, v in vars(layer).items() if k != "thresholds"}
            limits = own and tuple(map(needed, (own.x, own.act, own.h)))
            self.layers.append(_Weights(**values, thresholds=limits))  # type: ignore[arg-type]
        if matmul is not None:
            for w in self.layers:
                for name, value in vars(w).items():
                    if name.endswith("_proj") and value is not None:
                        setattr(w, name, value.to(matmul))
        self._head = self.head if matmul is None else self.head.to(matmul)
        self._frequencies = {
            key: _frequencies(key, spec.head_dim).to(self.device)
            for key in {_angle_key(layer) for layer in spec.layers}
        }

    # Pieces ---------------------------------------------------------------

    @staticmethod
    def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.dtype == weight.dtype:
            return F.linear(x, weight, bias)
        y = F.linear(x.to(weight.dtype), weight).to(x.dtype)
        return y if bias is None else y + bias

    def _norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if weight is None:
            return x
        if self.spec.norm is Norm.LAYER:
            return F.layer_norm(x, (x.shape[-1],), weight, bias, self.spec.norm_eps)
        return self._rms(x, weight)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.spec.norm_eps)
        return y.to(x.dtype) * weight

    def _start(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = F.embedding(ids, self.embed)
        if self.spec.embed_scale != 1.0:
            x = x * self.spec.embed_scale
        if self.spec.position is Position.LEARNED:
            assert self.positions is not None
            x = x + self.positions[positions + self.spec.position_offset]
        return x

    def _angles(self, positions: Tensor) -> Angles:
        out: Angles = {}
        if self.spec.position is not Position.ROPE:
            return out
        for key, frequency in self._frequencies.items():
            angle = positions.to(torch.float32)[:, None] * frequency[None]
            out[key] = (angle.cos().to(self.dtype), angle.sin().to(self.dtype))
        return out

    def _masks(self, t: int) -> dict[int, Tensor | None]:
        """Which past positions a query sees, by window; None is plain causal."""
        out: dict[int, Tensor | None] = {0: None}
        for layer in self.spec.layers:
            if layer.window and layer.window not in out:
                i = torch.arange(t, device=self.device)
                back = i[:, None] - i[None]
                out[layer.window] = (
                    None if layer.window >= t else (back >= 0) & (back < layer.window)
                )
        return out

    def _block(self, i: int, x: Tensor, run: Pass) -> Tensor:
        """Layer ``i`` on (B, T, dim)."""
        if self.spec.parallel:
            return x + self.attention_branch(i, x, run) + self.ffn_branch(i, x, run)
        x = x + self.attention_branch(i, x, run)
        return x + self.ffn_branch(i, x, run)

    def attention_branch(self, i: int, x: Tensor, run: Pass) -> Tensor:
        """What attention adds to the residual (B, T, dim)."""
        spec, w, kind = self.spec, self.layers[i], self.spec.layers[i]
        hooks, cache = run.hooks, run.cache
        b, t, _ = x.shape
        y = hooks.attn_in(i, self._norm(x, w.attn_norm, w.attn_norm_bias))
        yq, yk, yv = (hooks.matrix_in(i, name, y) for name in "qkv")
        q = hooks.matrix_out(i, "q", self._linear(yq, w.q_proj, w.q_bias))
        k = hooks.matrix_out(i, "k", self._linear(yk, w.k_proj, w.k_bias))
        v = hooks.matrix_out(i, "v", self._linear(yv, w.v_proj, w.v_bias))
        if spec.qk_norm_whole:
            assert w.q_norm is not None and w.k_norm is not None
            q, k = self._rms(q, w.q_norm), self._rms(k, w.k_norm)
        q = q.view(b, t, spec.n_heads, spec.head_dim)
        k, v = (y.view(b, t, spec.n_kv_heads, spec.head_dim) for y in (k, v))
        if w.q_norm is not None and w.k_norm is not None and not spec.qk_norm_whole:
            q, k = self._rms(q, w.q_norm), self._rms(k, w.k_norm)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if run.angles:
            cos, sin = run.angles[_angle_key(kind)]
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        mask, causal = run.masks.get(kind.window), cache is None
        if cache is not None:
            n = cache.length
            cache.k[i][:, :, n : n + 1] = k
            cache.v[i][:, :, n : n + 1] = v
            first = max(0, n + 1 - kind.window) if kind.window else 0
            k, v = cache.k[i][:, :, first : n + 1], cache.v[i][:, :, first : n + 1]
            mask = None
        heads = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal and mask is None,
            scale=spec.score_scale,
            enable_gqa=spec.n_heads != spec.n_kv_heads,
        )
        heads = hooks.attn_out(i, heads.transpose(1, 2).reshape(b, t, spec.q_dim))
        y = self._linear(hooks.matrix_in(i, "o", heads), w.o_proj, w.o_bias)
        y = hooks.matrix_out(i, "o", y)
        if w.post_attn_norm is not None:
            y = self._rms(y, w.post_attn_norm)
        return y

    def ffn_branch(self, i: int, x: Tensor, run: Pass) -> Tensor:
        """What the FFN adds to the residual (B, T, dim)."""
        spec, w, hooks = self.spec, self.layers[i], run.hooks
        y = hooks.ffn_in(i, self._norm(x, w.ffn_norm, w.ffn_norm_bias))
        to_gate, to_up = self._ffn_inputs(i, y)
        up = self._linear(hooks.matrix_in(i, "up", to_up), w.up_proj, w.up_bias)
        up = hooks.matrix_out(i, "up", up)
        if w.gate_proj is not None:
            gate = self._linear(hooks.matrix_in(i, "gate", to_gate), w.gate_proj, w.gate_bias)
            gate = hooks.matrix_out(i, "gate", gate)
            h = self._masked(i, gate, self._routed(i, y, activate(spec.activation, gate)), up)
        else:
            gate = up
            h = activate(spec.activation, up)
        h = hooks.matrix_in(i, "down", hooks.ffn(i, gate, up, h))
        y = hooks.ffn_out(i, self._linear(h, w.down_proj, w.down_bias))
        if w.post_ffn_norm is not None:
            y = self._rms(y, w.post_ffn_norm)
        return y

    def _ffn_inputs(self, i: int, y: Tensor) -> tuple[Tensor, Tensor]:
        """What gate and what up see of the normed input (B, T, dim)."""
        own, split = self.layers[i].thresholds, self.spec.gate_inputs
        if split:
            return y[..., :split], y[..., split:]
        return (y if own is None else y * (y.abs() >= own[0])), y

    def _routed(self, i: int, y: Tensor, act: Tensor) -> Tensor:
        """act (B, T, ffn_dim) times what the router, from y, lets the neurons' expert count."""
        router, spec = self.layers[i].router, self.spec
        if router is None:
            return act
        share = self._linear(y, router).float().softmax(-1)
        top, index = share.topk(spec.experts_used, dim=-1)
        if spec.experts_normed:
            top = top / top.sum(-1, keepdim=True)
        weight = torch.zeros_like(share).scatter(-1, index, top).to(act.dtype)
        return act * weight.repeat_interleave(spec.ffn_dim // spec.experts, -1)

    def trained_mask(self, i: int, gate: Tensor, h: Tensor) -> tuple[Tensor, Tensor] | None:
        """Neurons (..., ffn_dim) whose up the model was trained to need, and those of them whose
        down; None where it was trained with all.

        gate, h: as a hook gets them, h with or without this mask.
        """
        own, spec = self.layers[i].thresholds, self.spec
        if own is None and not spec.act_threshold:
            return None
        act = activate(spec.activation, gate).abs()
        up = act >= spec.act_threshold
        if own is None:
            return up, up
        up = up & (act >= own[1])
        return up, up & (h.abs() >= own[2])

    def _masked(self, i: int, gate: Tensor, act: Tensor, up: Tensor) -> Tensor:
        """act * up where the thresholds that the model was trained with keep it."""
        h = act * up
        kept = self.trained_mask(i, gate, h)
        return h if kept is None else h * kept[1]

    @torch.no_grad()
    def neurons(self, i: int, x: Tensor) -> Tensor:
        """h (B, T, ffn_dim) of layer ``i`` as if its FFN got the residual ``x``; no hooks."""
        w = self.layers[i]
        y = self._norm(x, w.ffn_norm, w.ffn_norm_bias)
        to_gate, to_up = self._ffn_inputs(i, y)
        up = self._linear(to_up, w.up_proj, w.up_bias)
        if w.gate_proj is None:
            return activate(self.spec.activation, up)
        gate = self._linear(to_gate, w.gate_proj, w.gate_bias)
        act = self._routed(i, y, activate(self.spec.activation, gate))
        return self._masked(i, gate, act, up)

    # Whole sequences ------------------------------------------------------

    @torch.no_grad()
    def hidden(self, ids: Tensor, hooks: Hooks | None = None) -> Tensor:
        """Final-norm output (B, T, dim) of token ids (B, T) from position 0.

        Raises:
            UsageError: more tokens than a learned position table has rows for.
        """
        x, run = self.begin(ids, hooks)
        for i in range(self.spec.n_layers):
            x = self._block(i, x, run)
        return self.end(x)

    def begin(self, ids: Tensor, hooks: Hooks | None = None) -> tuple[Tensor, Pass]:
        """Input of the first layer (B, T, dim), and what the branches of this pass share."""
        ids = ids.to(self.device)
        t = int(ids.shape[1])
        self._check_length(t)
        positions = torch.arange(t, device=self.device)
        run = Pass(hooks or _IDENTITY, self._angles(positions), self._masks(t))
        return self._start(ids, positions), run

    def end(self, x: Tensor) -> Tensor:
        """The final norm."""
        return self._norm(x, self.final_norm, self.final_norm_bias)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (..., vocab) of final-norm outputs (..., dim)."""
        return self._linear(hidden, self._head, self.head_bias)

    def forward(self, ids: Tensor, hooks: Hooks | None = None) -> Tensor:
        """Logits (B, T, vocab) of token ids (B, T)."""
        return self.logits(self.hidden(ids, hooks))

    __call__ = forward

    # One token at a time --------------------------------------------------

    def new_cache(self, max_len: int, batch: int = 1) -> Cache:
        """An empty, preallocated cache for ``max_len`` positions of ``batch`` sequences."""
        self._check_length(max_len)
        shape = (batch, self.spec.n_kv_heads, max_len, self.spec.head_dim)
        n = self.spec.n_layers
        return Cache(
            [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(n)],
            [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(n)],
        )

    @torch.no_grad()
    def step(self, token: int | Tensor, cache: Cache, hooks: Hooks | None = None) -> Tensor:
        """Logits (vocab,) after ``token``, which takes the cache's next position.

        Tokens (B,) of the sequences of a cache give (B, vocab).

        Raises:
            UsageError: the cache is full.
        """
        if cache.length >= cache.max_len:
            raise UsageError(f"the cache of {cache.max_len} positions is full; make a longer one")
        positions = torch.tensor([cache.length], device=self.device)
        tokens = torch.as_tensor(token, device=self.device)
        x = self._start(tokens.reshape(-1, 1), positions)
        run = Pass(hooks or _IDENTITY, self._angles(positions), {}, cache)
        for i in range(self.spec.n_layers):
            x = self._block(i, x, run)
        cache.length += 1
        x = self._norm(x[:, 0], self.final_norm, self.final_norm_bias)
        return self._linear(x, self._head, self.head_bias).reshape(*tokens.shape, -1)

    def _check_length(self, t: int) -> None:
        if self.spec.position is Position.LEARNED and t > self.spec.context:
            raise UsageError(
                f"{t} tokens do not fit the model's {self.spec.context} positions; use fewer"
            )
