"""Are low-rank predictors worth their bytes to a model that was trained to be sparse?

    .venv/bin/python tests/bench/predictors.py story
    .venv/bin/python tests/bench/predictors.py smollm2-135m-sparse --floor 1e-3 --fit-tokens 2048

A neuron is active when its column of down is read. A predictor sees the input of the FFN, or, to
look ahead, the normed input of the layer's attention. It is fitted on calibration text while the
model stays as it is, and rounded to grid q4:

* ``svd-R``: rank R of least error of gate and up (of gate alone in ``story``), whitened. To look
  ahead, what is factored is the linear map of least error from the attention's input.
* ``fit-R``: starts there; B, A and a bias follow the logistic loss on the active neurons.

A predictor keeps the neurons of largest score, by one threshold a layer that on the calibration
text keeps K times as many neurons as are active there. Three tables come out, all of text that
neither fit nor training saw: what the model itself reads; recall, precision and lift; perplexity
and KL (against the model as it is, float32) and bytes when the predictor's mask comes on top of
the model's own. A mask can come *before* the gate's rows (``replace``: gate is read by rows, for
the predicted neurons alone) or *after* the gate as it is (``precede``: it only spares rows of up
and columns of down). Both give the same loss. Rows ``own x C`` are the rival without a predictor:
the model's own thresholds, multiplied by C.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflash.image.grids import quantize, row_bytes
from sparseflash.model import recipes
from sparseflash.model.torch_model import Hooks, TorchModel, activate
from sparseflash.pipeline import stages
from sparseflash.sparsity.predict.lowrank import whitened_factors
from sparseflash.sparsity.predict.predictability import Score
from sparseflash.sparsity.texts import calibration_tokens, evaluation_windows
from sparseflash.sparsity.windows import spread
from sparseflash.train import texts

RANKS = (32, 64, 128)
RIDGE = 1e-2
"""Of each input's own variance, added to the covariances. Some inputs of the distilled model hardly
vary; ``--floor`` keeps their factors within what a scale can hold."""
EPOCHS, BATCH, SEED = 6, 256, 1


@dataclass
class Guess:
    """A predictor: factors by layer, bytes of a layer, and a threshold by K and layer."""

    name: str
    ahead: bool
    bytes: int
    parts: list[tuple[Tensor, ...]] = field(default_factory=list)
    limits: dict[float, list[float]] = field(default_factory=dict)

    def score(self, runner: TorchModel, i: int, x: Tensor) -> Tensor:
        """Scores (T, ffn) of a layer from its input (T, dim)."""
        b, *rest = self.parts[i]
        z = x @ b.T
        if self.name.startswith("fit"):
            return z @ rest[0].T + rest[1]
        own = runner.layers[i].thresholds
        if own is None:
            return z @ rest[0].T
        gate, up = (z @ rest[0].T).chunk(2, -1)
        return (activate(runner.spec.activation, gate) * up).abs() / own[2]

    def mask(self, runner: TorchModel, i: int, x: Tensor, k: float) -> Tensor:
        return self.score(runner, i, x) >= self.limits[k][i]


def on_grid(m: Tensor) -> Tensor:
    return torch.tensor(quantize(m.float().numpy(), "q4").float32()[:, : m.shape[1]])


def balanced(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the grid, of like sizes, so that the scales of both fit a half."""
    root = (a.norm() / b.norm()).sqrt()
    return on_grid(b * root), on_grid(a / root)


class Watch(Hooks):
    """Hands each layer's inputs, gate, up and h, (T, n) each, to ``each``; masks if it returns."""

    def __init__(self, each: Callable[..., Tensor | None], columns: float = 0.0) -> None:
        self.each, self.columns = each, columns
        self.early = self.x = self.kept = torch.empty(0)
        self.runner: TorchModel | None = None

    def attn_in(self, layer: int, x: Tensor) -> Tensor:
        self.early = x
        return x

    def ffn_in(self, layer: int, x: Tensor) -> Tensor:
        self.x = x
        return x

    def matrix_in(self, layer: int, matrix: str, x: Tensor) -> Tensor:
        if matrix == "gate":
            own = self.runner.layers[layer].thresholds if self.runner else None
            if self.columns and own is not None:
                x = x * (x.abs() >= self.columns * own[0])
            self.kept = x != 0
        return x

    def ffn(self, layer: int, gate: Tensor, up: Tensor, h: Tensor) -> Tensor:
        flat = [v.flatten(0, 1) for v in (self.early, self.x, self.kept, gate, up, h)]
        mask = self.each(layer, *flat)
        return h if mask is None else h * mask.view_as(h)


def logistic(x: Tensor, root: Tensor, b: Tensor, active: Tensor) -> tuple[Tensor, ...]:
    """B, A and bias that tell ``active`` (T, ffn) from x (T, dim), from the start ``b``."""
    white = torch.linalg.solve_triangular(root, x.T, upper=False).T.contiguous()
    v = b @ root
    y = active.float()
    share = y.mean(0).clamp(1e-3, 1 - 1e-3)
    z = white @ v.T
    a = (y - share).T @ (z - z.mean(0)) / len(x) / (share * (1 - share))[:, None]
    c = torch.logit(share)
    for p in (v, a, c):
        p.requires_grad_()
    optimiser = torch.optim.Adam([{"params": [v], "lr": 1e-3}, {"params": [a, c], "lr": 1e-2}])
    steps = EPOCHS * (len(x) // BATCH)
    draw = torch.Generator().manual_seed(SEED)
    with torch.enable_grad():
        for step in range(steps):
            for group, rate in zip(optimiser.param_groups, (1e-3, 1e-2)):
                group["lr"] = rate * (1 - step / steps)
            some = torch.randint(len(x), (BATCH,), generator=draw)
            loss = F.binary_cross_entropy_with_logits((white[some] @ v.T) @ a.T + c, y[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    v, a, c = v.detach(), a.detach(), c.detach()
    return torch.linalg.solve_triangular(root, v, upper=False, left=False), a, c


def fitted(
    runner: TorchModel, ids: Tensor, ranks: list[int], ks: list[float], floor: float
) -> list[Guess]:
    """All predictors, fitted layer by layer in one pass over ids (N, T)."""
    s = runner.spec
    width = s.ffn_dim * (1 if runner.layers[0].thresholds is None else 2)
    guesses = []
    for ahead in (False, True):
        for r in RANKS:
            own = r * row_bytes(s.dim, "q4") + width * row_bytes(r, "q4")
            guesses.append(Guess(f"svd-{r}", ahead, own))
        for r in ranks:
            own = r * row_bytes(s.dim, "q4") + s.ffn_dim * (row_bytes(r, "q4") + 4)
            guesses.append(Guess(f"fit-{r}", ahead, own))

    def each(
        i: int, early: Tensor, x: Tensor, kept: Tensor, gate: Tensor, up: Tensor, h: Tensor
    ) -> None:
        start = time.process_time()
        trained = runner.trained_mask(i, gate, h)
        assert trained is not None
        active = trained[1]
        wanted = gate if width == s.ffn_dim else torch.cat([gate, up], -1)
        for ahead in (False, True):
            seen = early if ahead else x
            moment = (seen.T @ seen / len(seen)).double()
            size = moment.diagonal()
            moment = moment + (RIDGE * size + floor * size.mean()).diag()
            cross = (seen.T @ wanted / len(seen)).double()
            best = torch.linalg.solve(moment, cross).T
            a, b = whitened_factors(best, moment, max(RANKS))
            root = torch.linalg.cholesky(moment).float()
            for g in guesses:
                if g.ahead != ahead:
                    continue
                r = int(g.name.split("-")[1])
                if g.name.startswith("fit"):
                    fb, fa, c = logistic(seen, root, b[:r], active)
                    g.parts.append((*balanced(fb, fa), c))
                else:
                    g.parts.append(balanced(b[:r], a[:, :r]))
                score = g.score(runner, i, seen)[:: max(1, len(seen) // 1024)].flatten()
                order = score.sort(descending=True).values
                for k in ks:
                    count = min(len(order) - 1, int(k * float(active.float().mean()) * len(order)))
                    g.limits.setdefault(k, []).append(float(order[count]))
        print(f"  layer {i} fitted, {time.process_time() - start:.1f} s of CPU", flush=True)

    runner.hidden(ids, Watch(each))
    return guesses


def plain_score(scores: list[Score]) -> dict[str, float]:
    """Recall and so on of all layers' counts together."""
    whole = Score()
    for s in scores:
        whole.hit += s.hit
        whole.active += s.active
        whole.predicted += s.predicted
        whole.neurons += s.neurons
    return whole.plain()


def recalls(
    runner: TorchModel, often: list[Tensor], guesses: list[Guess], windows: Tensor, ks: list[float]
) -> None:
    """Prints what the model reads by itself, and how well each prediction tells it."""
    n = runner.spec.n_layers
    scores: dict[tuple[str, str], list[Score]] = {}
    shares = torch.zeros(3)
    residual: list[Tensor] = []

    def add(name: str, what: str, i: int, told: Tensor, true: Tensor) -> None:
        rows = scores.setdefault((name, what), [Score() for _ in range(n)])
        rows[i].add(told, true)

    def each(
        i: int, early: Tensor, x: Tensor, kept: Tensor, gate: Tensor, up: Tensor, h: Tensor
    ) -> None:
        w = runner.layers[i]
        wide, active = runner.trained_mask(i, gate, h) or (h != 0, h != 0)
        shares.add_(torch.stack([m.float().mean() for m in (kept, wide, active)]))
        sets = [("active", active)] if w.thresholds is None else [("active", active), ("up", wide)]
        for what, true in sets:
            add("token before", what, i, true[:-1], true[1:])
            count = round(float(true.float().mean()) * true.shape[1])
            fixed = torch.zeros_like(true)
            fixed[:, often[i][:count]] = True
            add("most often active", what, i, fixed, true)
        for g in guesses:
            score = g.score(runner, i, early if g.ahead else x)
            for k in ks:
                name = f"{g.name}{' ahead' if g.ahead else ''}, K {k:g}"
                for what, true in sets:
                    add(name, what, i, score >= g.limits[k][i], true)
        stale = runner.neurons(i, residual[i][None])[0] != 0
        add("own FFN before attention", "active", i, stale, active)
        if w.thresholds is not None:
            assert w.attn_norm is not None and w.ffn_norm is not None
            old = (early / w.attn_norm * w.ffn_norm).abs() >= w.thresholds[0]
            add("token before", "columns of gate", i, kept[:-1], kept[1:])
            add("own norm before attention", "columns of gate", i, old, kept)

    for row in windows:
        hooks = Watch(each)
        residual.clear()
        x, run = runner.begin(row[None], hooks)
        for i in range(n):
            residual.append(x[0])
            x = x + runner.attention_branch(i, x, run)
            x = x + runner.ffn_branch(i, x, run)
    columns, wide, active = (shares / n / len(windows)).tolist()
    print(f"\nread: columns of gate {columns:.3f}, rows of up {wide:.3f}, of down {active:.3f}\n")
    print("| prediction | of | told | recall | precision | lift | own bytes a token |")
    print("|---|---|---|---|---|---|---|")
    own = {f"{g.name}{' ahead' if g.ahead else ''}": g.bytes * n for g in guesses}
    for (name, what), rows in scores.items():
        p = plain_score(rows)
        cells = [name, what, f"{100 * p['predicted']:.1f} %", f"{100 * p['recall']:.1f} %"]
        cells += [f"{100 * p['precision']:.1f} %", f"{p['lift']:.2f}"]
        cells += [f"{own.get(name.split(',')[0], 0):,}"]
        print("| " + " | ".join(cells) + " |", flush=True)


@dataclass
class Counted:
    """Sums over tokens and layers of what is read."""

    tokens: int = 0
    columns: float = 0.0
    told: float = 0.0
    up: float = 0.0
    down: float = 0.0


class Bench:
    """Loss and bytes of the model under a mask, against the model as it is."""

    def __init__(self, runner: TorchModel, windows: Tensor) -> None:
        self.runner, self.windows = runner, windows
        self.base = [torch.log_softmax(runner.forward(w[None])[0, :-1], -1) for w in windows]
        s = runner.spec
        self.own = runner.layers[0].thresholds is not None
        # 18 bytes for 32 weights; of the dense twin the same, of the distilled one's base 20.
        self.neuron = s.dim * 18 / 32
        self.gate_line = (s.gate_inputs or s.dim) * 18 / 32
        self.up_line = (s.dim - s.gate_inputs) * 18 / 32
        self.dense = s.n_layers * s.ffn_dim * (self.gate_line + self.up_line + self.neuron)
        self.dense *= 20 / 18 if self.own else 1

    def line(self, name: str, c: Counted, losses: list[float], own: int) -> str:
        s = self.runner.spec
        t = c.tokens
        fixed = own * s.n_layers + (4 * s.n_layers * (s.dim + 2 * s.ffn_dim) if self.own else 0)
        rest = c.up / t * self.up_line + c.down / t * self.neuron
        gate = s.n_layers * s.ffn_dim * self.gate_line
        if self.own:
            gate = c.columns / t * s.ffn_dim * 18 / 32
        rows = c.told / t * self.gate_line
        n = s.n_layers * s.ffn_dim * t
        cells = [name, f"{100 * c.told / n:.1f} %" if c.told else ""]
        cells += [f"{100 * c.up / n:.1f} %", f"{100 * c.down / n:.1f} %"]
        cells += [f"{math.exp(losses[0]):.4f}", f"{losses[1]:.4f}", f"{own * s.n_layers:,}"]
        cells += [f"{100 * (rows + rest + fixed) / self.dense:.1f} %" if c.told else ""]
        cells += [f"{100 * (gate + rest + fixed) / self.dense:.1f} %"]
        return "| " + " | ".join(cells) + " |"

    def measure(
        self,
        name: str,
        told: Callable[[int, Tensor, Tensor], Tensor] | None = None,
        own_bytes: int = 0,
        factor: float = 1.0,
        runner: TorchModel | None = None,
    ) -> None:
        """Prints a row of the table; ``told`` gives a mask from layer, early input and input."""
        model = runner or self.runner
        c = Counted()

        def each(
            i: int, early: Tensor, x: Tensor, kept: Tensor, gate: Tensor, up: Tensor, h: Tensor
        ) -> Tensor | None:
            wide, active = model.trained_mask(i, gate, h) or (h != 0, h != 0)
            own, act = model.layers[i].thresholds, activate(model.spec.activation, gate).abs()
            limit = model.spec.act_threshold if own is None else own[1]
            wide = wide & (act >= factor * limit)
            active = active & wide
            if own is not None:
                active = active & (h.abs() >= factor * own[2])
            if told is not None:
                mask = told(i, early, x)
                c.told += float(mask.sum())
                wide, active = wide & mask, active & mask
            c.tokens += len(x) if i == 0 else 0
            c.columns += float(kept.sum())
            c.up += float(wide.sum())
            c.down += float(active.sum())
            return active

        rise = kl = 0.0
        count = 0
        for ids, base in zip(self.windows, self.base):
            hooks = Watch(each, factor if factor != 1 else 0.0)
            hooks.runner = model
            new = torch.log_softmax(model.forward(ids[None], hooks)[0, :-1], -1)
            rise += float((base - new).gather(1, ids[1:, None]).double().sum())
            kl += float((base.exp() * (base - new)).sum().double())
            count += len(new)
        print(self.line(name, c, [rise / count, kl / count], own_bytes), flush=True)


def story_windows(model: object, stories: list[str], tokens: int) -> Tensor:
    """(n, 256) tokens of stories, each after the start token."""
    ids: list[int] = []
    for s in stories:
        ids += [texts.END_ID, *model.tokenizer.encode(s)]  # type: ignore[attr-defined]
    ids = ids[: tokens // 256 * 256]
    return torch.tensor(ids[: len(ids) // 256 * 256]).view(-1, 256)


@torch.no_grad()
def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("model", choices=("story", "smollm2-135m-sparse"))
    arguments.add_argument("--budget", type=int, default=35, help="of the distilled model")
    arguments.add_argument("--rival", type=int, default=0, help="another budget to measure beside")
    arguments.add_argument("--tokens", type=int, default=4096, help="held out")
    arguments.add_argument("--fit-tokens", type=int, default=4096)
    arguments.add_argument("--fit-ranks", default="64")
    arguments.add_argument(
        "--floor", type=float, default=0.0, help="of the mean variance, added to each input's"
    )
    arguments.add_argument("--k", default="1,1.5,2,3")
    arguments.add_argument("--curve", default="svd-128,fit-64", help="predictors of the loss table")
    arguments.add_argument("--factors", default="1.1,1.25,1.5", help="of own thresholds")
    a = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    ks = [float(k) for k in a.k.split(",")]
    recipe = recipes.load_recipe(a.model)
    if recipe.delta is not None:
        recipe = replace(recipe, delta=replace(recipe.delta, budget=a.budget))
    model = stages.open_model(recipe)
    if a.model == "story":
        train, held = texts.split(texts.stories_of(recipes.text("tiny")))
        ids = story_windows(model, train, a.fit_tokens)
        windows = story_windows(model, held, a.tokens)
    else:
        calibration, _ = calibration_tokens(model, recipe)
        ids = torch.from_numpy(
            spread(calibration, a.fit_tokens // calibration.shape[1]).astype(np.int64)
        )
        windows = torch.from_numpy(evaluation_windows(model, recipe, None, a.tokens))
    print(f"{a.model}: fit on {ids.numel():,} tokens, held out {windows.numel():,}", flush=True)
    runner = TorchModel(model)
    often: list[Tensor] = []

    def count(
        i: int, early: Tensor, x: Tensor, kept: Tensor, gate: Tensor, up: Tensor, h: Tensor
    ) -> None:
        often.append((h != 0).float().mean(0).argsort(descending=True))

    runner.hidden(ids, Watch(count))
    guesses = fitted(runner, ids, [int(r) for r in a.fit_ranks.split(",") if r], ks, a.floor)
    recalls(runner, often, guesses, windows, ks)
    bench = Bench(runner, windows)
    print(
        "\n| mask | told | rows of up | columns of down | perplexity, ratio | KL "
        "| predictor's bytes | bytes, replace | bytes, precede |\n" + "|---" * 9 + "|"
    )
    bench.measure("as it is")
    for factor in map(float, a.factors.split(",")):
        bench.measure(f"own x {factor:g}", factor=factor)
    for g in guesses:
        if g.name not in a.curve.split(","):
            continue
        for k in ks:

            def told(i: int, early: Tensor, x: Tensor, g: Guess = g, k: float = k) -> Tensor:
                return g.mask(runner, i, early if g.ahead else x, k)

            bench.measure(f"{g.name}{' ahead' if g.ahead else ''}, K {k:g}", told, g.bytes)
    if a.rival and recipe.delta is not None:
        other = replace(recipe, delta=replace(recipe.delta, budget=a.rival))
        bench.measure(f"budget {a.rival}", runner=TorchModel(stages.open_model(other)))


if __name__ == "__main__":
    main()
