"""Each method against a direct loop over tokens, layers and entries of a tiny model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import random_factors, random_model
from sparseflash.base.errors import InputError, UsageError
from sparseflash.image.factors import FACTORED, Factors, shape_of
from sparseflash.image.formats import Formats
from sparseflash.image.grids import row_bytes
from sparseflash.image.needs import Needs
from sparseflash.measure.stats import perplexity_ratio
from sparseflash.model.spec import Activation, Model, Q8Blocks, as_float32
from sparseflash.model.torch_model import TorchModel
from sparseflash.sparsity import asvd, gradients, prices
from sparseflash.sparsity.budgets import common, greedy, marginal, sensitivity, tail
from sparseflash.sparsity.bytes import bytes_a_token
from sparseflash.sparsity.evaluate import Losses, evaluate, losses
from sparseflash.sparsity.levels import levels_of, measured
from sparseflash.sparsity.masks import Masked
from sparseflash.sparsity.predict import lowrank
from sparseflash.sparsity.predict.proxy import quantize_proxy
from sparseflash.sparsity.reads import Reads
from sparseflash.sparsity.registry import METHODS, method
from sparseflash.sparsity.scores import Scores
from sparseflash.sparsity.sites import INPUTS
from sparseflash.sparsity.study import Study
from sparseflash.sparsity.windows import spread

Drop = Callable[[int, str, np.ndarray, dict[str, np.ndarray]], np.ndarray]
"""(layer, tensor or matrix, vector, what is known of the token) to the vector with zeros."""


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))


def norm(x: np.ndarray, w: np.ndarray, eps: float) -> np.ndarray:
    return x / math.sqrt(float((x * x).mean()) + eps) * w


def block(
    model: Model, layer: int, xs: list[np.ndarray], drop: Drop, parts: list[dict] | None = None
) -> list[np.ndarray]:
    """One block, token by token and head by head, in float64."""
    spec, w = model.spec, model.layers[layer]
    hd, group = spec.head_dim, spec.n_heads // spec.n_kv_heads
    m = {n: as_float32(getattr(w, n)).astype(np.float64) for n in
         ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")}  # fmt: skip

    def turn(v: np.ndarray, p: int) -> np.ndarray:
        out = v.copy()
        for i in range(hd // 2):
            angle = p * spec.layers[layer].rope_theta ** (-2.0 * i / hd)
            a, b = v[i], v[i + hd // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + hd // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    ks: list[np.ndarray] = []
    vs: list[np.ndarray] = []
    out = []
    for p, x in enumerate(xs):
        know: dict[str, np.ndarray] = {}
        y = norm(x, w.attn_norm, spec.norm_eps)
        know["attn_in"] = y
        q = m["q_proj"] @ drop(layer, "q_proj", y, know)
        k = m["k_proj"] @ drop(layer, "k_proj", y, know)
        v = m["v_proj"] @ drop(layer, "v_proj", y, know)
        ks.append(
            np.concatenate([turn(k[h * hd : h * hd + hd], p) for h in range(spec.n_kv_heads)])
        )
        vs.append(v)
        heads = np.zeros(spec.q_dim)
        for h in range(spec.n_heads):
            qh = turn(q[h * hd : h * hd + hd], p)
            at = slice(h // group * hd, h // group * hd + hd)
            score = np.array([float(qh @ past[at]) for past in ks]) * spec.score_scale
            weight = np.exp(score - score.max())
            weight /= weight.sum()
            for a, past in zip(weight, vs):
                heads[h * hd : h * hd + hd] += a * past[at]
        know["heads"] = heads
        mid = x + m["o_proj"] @ drop(layer, "o_proj", heads, know)
        y = norm(mid, w.ffn_norm, spec.norm_eps)
        know["ffn_in"] = y
        gate = m["gate_proj"] @ drop(layer, "gate_proj", y, know)
        up = m["up_proj"] @ drop(layer, "up_proj", y, know)
        know |= {"gate": gate, "act": silu(gate), "up": up}
        h = drop(layer, "h", silu(gate) * up, know)
        know["h"] = silu(gate) * up
        o = drop(layer, "down", m["down_proj"] @ h, know)
        know["down"] = o
        if parts is not None:
            parts.append(know)
        out.append(mid + o)
    return out


def keep_all(layer: int, name: str, x: np.ndarray, know: dict[str, np.ndarray]) -> np.ndarray:
    return x


def direct_loss(model: Model, ids: np.ndarray, drop: Drop = keep_all) -> float:
    """Summed loss of the next token over one window."""
    embed = as_float32(model.embed).astype(np.float64)
    xs = [embed[t] for t in ids]
    for i in range(model.spec.n_layers):
        xs = block(model, i, xs, drop)
    total = 0.0
    for x, target in zip(xs, ids[1:]):
        logits = embed @ norm(x, model.final_norm, model.spec.norm_eps)
        total += float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[target])
    return total


def seen(model: Model, windows: np.ndarray) -> list[dict[str, np.ndarray]]:
    """By layer, every tensor of the dense model on windows, (tokens, n)."""
    layers: list[dict[str, list[np.ndarray]]] = [{} for _ in model.layers]
    embed = as_float32(model.embed).astype(np.float64)
    for ids in windows:
        xs = [embed[t] for t in ids]
        for i in range(model.spec.n_layers):
            parts: list[dict[str, np.ndarray]] = []
            xs = block(model, i, xs, keep_all, parts)
            for know in parts:
                for name, value in know.items():
                    layers[i].setdefault(name, []).append(value)
    return [{k: np.array(v) for k, v in one.items()} for one in layers]


SMALL = {"dim": 32, "ffn_dim": 48, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "vocab": 60}


@pytest.fixture(scope="module")
def study() -> Study:
    model = random_model(seed=5, **SMALL)
    rng = np.random.default_rng(2)
    calibration = rng.integers(0, 60, (6, 40))
    windows = rng.integers(0, 60, (2, 14))
    return Study(model, Formats("q8", "q8", "q8"), calibration, windows)


@pytest.fixture(scope="module")
def dense_tensors(study: Study) -> list[dict[str, np.ndarray]]:
    return seen(study.model, study.calibration_ids)


def column_norms(model: Model, layer: int, matrix: str) -> np.ndarray:
    w = as_float32(getattr(model.layers[layer], matrix))
    return np.array([math.sqrt(sum(float(v) ** 2 for v in w[:, i])) for i in range(w.shape[1])])


def check(study: Study, name: str, level: float, drop: Drop, tolerance: float = 2e-5) -> Reads:
    """The method's losses are those of the direct loop."""
    m = method(name)
    got, reads = evaluate(study.runner, study.windows, study.rules(m, levels_of(study, m, level)))
    want = [direct_loss(study.model, ids, drop) for ids in study.windows]
    dense = [direct_loss(study.model, ids) for ids in study.windows]
    assert np.abs(np.array(want) - dense).min() > 1e-3, "the masks do something"
    np.testing.assert_allclose(got.sums, want, rtol=tolerance)
    return reads


def thresholds(
    study: Study, tensors: list[dict[str, np.ndarray]], name: str, level: float, matrix: str = ""
) -> list[float]:
    """The study's thresholds, after comparing each with the exact quantile."""
    out = []
    for i, layer in enumerate(tensors):
        values = np.abs(layer[name])
        if matrix:
            values = values * column_norms(study.model, i, matrix)
        key = f"{name}*{matrix}" if matrix else name
        study.need_scores([key])
        t = study.scores.threshold(i, key, level)
        assert t == pytest.approx(np.quantile(values, level), rel=0.02)
        out.append(t)
    return out


def test_the_direct_loop_is_the_model(study: Study) -> None:
    got = losses(study.runner, study.windows)
    want = [direct_loss(study.model, ids) for ids in study.windows]
    np.testing.assert_allclose(got.sums, want, rtol=1e-5)
    assert (got.sizes == 13).all()


def test_paper(study: Study, dense_tensors: list[dict[str, np.ndarray]]) -> None:
    t = {s: thresholds(study, dense_tensors, s, 0.4) for s in ("gate", "up", "down")}
    rows = columns = 0

    def drop(layer: int, name: str, x: np.ndarray, know: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal rows, columns
        out = x.copy()
        if name == "h":
            for i in range(len(x)):
                alive = abs(know["gate"][i]) >= t["gate"][layer]
                rows += alive
                alive = alive and abs(know["up"][i]) >= t["up"][layer]
                columns += alive
                if not alive:
                    out[i] = 0.0
        if name == "down":
            for i in range(len(x)):
                if abs(x[i]) < t["down"][layer]:
                    out[i] = 0.0
        return out

    reads = check(study, "paper", 0.4, drop)
    rows, columns = 0, 0
    for ids in study.windows:
        direct_loss(study.model, ids, drop)
    assert reads.up_rows.sum() == rows and reads.columns.sum() == columns
    assert reads.tokens == study.windows.size


def test_cats(study: Study, dense_tensors: list[dict[str, np.ndarray]]) -> None:
    t = thresholds(study, dense_tensors, "act", 0.5)

    def drop(layer: int, name: str, x: np.ndarray, know: dict[str, np.ndarray]) -> np.ndarray:
        if name != "h":
            return x
        return np.array([v if abs(a) >= t[layer] else 0.0 for v, a in zip(x, know["act"])])

    reads = check(study, "cats", 0.5, drop)
    assert (reads.up_rows == reads.columns).all()
    assert (reads.gate_rows == study.windows.size * 48).all()


def test_h_and_its_blocks(study: Study, dense_tensors: list[dict[str, np.ndarray]]) -> None:
    t = thresholds(study, dense_tensors, "h", 0.95)
    blocks = 0

    def drop(layer: int, name: str, x: np.ndarray, know: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal blocks
        if name != "h":
            return x
        out = np.array([v if abs(v) >= t[layer] else 0.0 for v in x])
        blocks += int(any(out[:32])) + int(any(out[32:]))
        return out

    reads = check(study, "h", 0.95, drop)
    blocks = 0
    for ids in study.windows:
        direct_loss(study.model, ids, drop)
    assert reads.column_blocks.sum() == blocks


def test_norm_weighted_h(study: Study, dense_tensors: list[dict[str, np.ndarray]]) -> None:
    t = thresholds(study, dense_tensors, "h", 0.6, "down_proj")
    norms = [column_norms(study.model, i, "down_proj") for i in range(2)]

    def drop(layer: int, name: str, x: np.ndarray, know: dict[str, np.ndarray]) -> np.ndarray:
        if name != "h":
            return x
        return np.array([v if abs(v) * c >= t[layer] else 0.0 for v, c in zip(x, norms[layer])])

    check(study, "h-norm", 0.6, drop)


TENSOR = {"q_proj": "attn_in", "k_proj": "attn_in", "v_proj": "attn_in", "o_proj": "heads",
          "gate_proj": "ffn_in", "up_proj": "ffn_in", "h": "h"}  # fmt: skip


def test_teal_inputs(study: Study, dense_tensors: list[dict[str, np.ndarray]]) -> None:
    t = {n: thresholds(study, dense_tensors, n, 0.4) for n in ("attn_in", "heads", "ffn_in", "h")}
    kept = dict.fromkeys(TENSOR, 0)

    def drop(layer: int, name: str, x: np.ndarray, know: dict[str, np.ndarray]) -> np.ndarray:
        if name == "down":
            return x
        out = np.array([v if abs(v) >= t[TENSOR[name]][layer] else 0.0 for v in x])
        kept[name] += int(np.count_nonzero(out))
        return out

    reads = check(study, "teal", 0.4, drop)
    kept = dict.fromkeys(TENSOR, 0)
    for ids in study.windows:
        direct_loss(study.model, ids, drop)
    for site, name in zip(INPUTS[:6], TENSOR):
        assert reads.kept[site].sum() == kept[name]
    assert reads.columns.sum() == kept["h"]


def test_layers_without_a_rule_are_read_whole(study: Study) -> None:
    m = method("teal")
    levels = levels_of(study, m, 0.4)
    levels["q"] = np.array([0.0, 0.4])
    levels["xu"] = np.array([0.4, 0.0])
    _, reads = evaluate(study.runner, study.windows, study.rules(m, levels))
    tokens = study.windows.size
    assert reads.kept["q"][0] == tokens * 32 and reads.blocks["q"][0] == tokens
    assert reads.kept["q"][1] < tokens * 32 * 0.8
    assert reads.kept["xu"][1] == tokens * 32
    both = bytes_a_token(study.model.spec, study.formats, Needs(), reads)
    levels["q"], levels["xu"] = np.array([0.4, 0.4]), np.array([0.4, 0.4])
    all_sparse = study.measure(m, 0.4, levels).bytes
    assert both.attention > all_sparse.attention and both.up > all_sparse.up


def top_k(x: np.ndarray, score: np.ndarray, keep: int) -> np.ndarray:
    """The keep largest live, and ties with the last of them (heads of a group at position 0)."""
    limit = sorted(score)[-keep]
    return np.array([v if c >= limit else 0.0 for v, c in zip(x, score)])


def test_wina(study: Study) -> None:
    def drop(layer: int, name: str, x: np.ndarray, know: dict[str, np.ndarray]) -> np.ndarray:
        if name == "down":
            return x
        matrix = "down_proj" if name == "h" else name
        score = np.abs(x) * column_norms(study.model, layer, matrix)
        return top_k(x, score, round(0.6 * len(x)))

    check(study, "wina", 0.4, drop)


def test_acttail(study: Study) -> None:
    exponents: dict[tuple[int, str], float] = {}
    for i in range(2):
        for name in TENSOR:
            matrix = "down_proj" if name == "h" else name
            w = as_float32(getattr(study.model.layers[i], matrix)).astype(np.float64)
            small = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            e = sorted(np.linalg.eigvalsh(small))
            k = len(e) // 2
            s = sum(math.log(e[len(e) - j] / e[len(e) - k - 1]) for j in range(1, k + 1))
            exponents[i, name] = 1.0 + k / s
            assert tail.hill_exponent(torch.tensor(w).float()) == pytest.approx(
                exponents[i, name], rel=1e-3
            )
    levels = levels_of(study, "acttail", 0.4)
    names = dict(zip(TENSOR, INPUTS))
    low, high = min(exponents.values()), max(exponents.values())
    total = count = 0.0
    factors = []
    for (i, name), a in exponents.items():
        size = as_float32(getattr(study.model.layers[i], "down_proj" if name == "h" else name)).size
        level = float(levels[names[name]][i])
        factors.append(level / (0.8 + 0.4 * (a - low) / (high - low)))
        total, count = total + level * size, count + size
    assert total / count == pytest.approx(0.4, abs=1e-6)
    np.testing.assert_allclose(factors, factors[0], rtol=1e-3)

    def drop(layer: int, name: str, x: np.ndarray, know: dict[str, np.ndarray]) -> np.ndarray:
        if name == "down":
            return x
        level = float(levels[names[name]][layer])
        return top_k(x, np.abs(x), round((1 - level) * len(x)))

    check(study, "acttail", 0.4, drop)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_proxy_grid(bits: int) -> None:
    w = np.random.default_rng(bits).standard_normal((3, 64)).astype(np.float32)
    got = quantize_proxy(torch.tensor(w), bits).numpy()
    for r in range(3):
        for g in range(2):
            x = w[r, 32 * g : 32 * g + 32].astype(np.float64)
            if bits == 1:
                half = float(np.float16(np.abs(x).mean()))
                want = np.array([math.copysign(half, v) for v in x])
            else:
                top, best = 2 ** (bits - 1) - 1, math.inf
                for j in range(11):
                    step = float(np.float16(np.abs(x).max() * (1 - 0.05 * j) / top))
                    y = np.array([min(max(round(v / step), -top), top) * step for v in x])
                    if ((x - y) ** 2).sum() < best:
                        best, want = ((x - y) ** 2).sum(), y
            np.testing.assert_allclose(got[r, 32 * g : 32 * g + 32], want, atol=1e-5)
            assert len(np.unique(got[r, 32 * g : 32 * g + 32])) <= 2**bits


@pytest.mark.parametrize(("name", "bits"), [("prox-2", 2), ("prox-3-two", 3)])
def test_prox(study: Study, name: str, bits: int) -> None:
    pairs = [
        [
            quantize_proxy(torch.tensor(as_float32(w)), bits).numpy().astype(np.float64)
            for w in (layer.gate_proj, layer.up_proj)
        ]
        for layer in study.model.layers
    ]
    tensors = seen(study.model, study.calibration_ids)
    limits, exact = [], []
    for (g, u), layer in zip(pairs, tensors):
        prediction = np.abs(silu(layer["ffn_in"] @ g.T) * (layer["ffn_in"] @ u.T))
        limits.append(np.quantile(prediction, 0.5))
        exact.append(np.quantile(np.abs(layer["h"]), 0.25) if name.endswith("two") else 0.0)
    m = method(name)
    rules = study.rules(m, levels_of(study, m, 0.5))
    for i in range(2):
        proxy = rules[i].proxy
        assert proxy is not None
        assert proxy.rule.threshold == pytest.approx(limits[i], rel=0.02)
        limits[i] = proxy.rule.threshold
        if exact[i]:
            assert rules[i].sites["h"].threshold == pytest.approx(exact[i], rel=0.02)
            exact[i] = rules[i].sites["h"].threshold
    rows = columns = 0

    def drop(layer: int, name: str, x: np.ndarray, know: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal rows, columns
        if name != "h":
            return x
        g, u = pairs[layer]
        prediction = silu(g @ know["ffn_in"]) * (u @ know["ffn_in"])
        out = x.copy()
        for i in range(len(x)):
            chosen = abs(prediction[i]) >= limits[layer]
            alive = chosen and abs(x[i]) >= exact[layer]
            rows, columns = rows + chosen, columns + alive
            if not alive:
                out[i] = 0.0
        return out

    reads = check(study, name, 0.5, drop)
    rows, columns = 0, 0
    for ids in study.windows:
        direct_loss(study.model, ids, drop)
    assert reads.gate_rows.sum() == reads.up_rows.sum() == rows
    assert reads.columns.sum() == columns
    assert study.extra(m).proxy == 2 * 48 * -(-(32 * bits / 8 + 2) // 4) * 4  # whole words


# --- budgets ------------------------------------------------------------------------------------


def test_greedy_path(study: Study) -> None:
    """The path of block 1 is the one that trying every site by hand takes."""
    m = method("teal-greedy")
    levels_of(study, m, 0.3)
    ids = study.calibration_ids[0]
    embed = as_float32(study.model.embed).astype(np.float64)
    xs = [embed[t] for t in ids]
    xs = block(study.model, 0, xs, keep_all)
    sizes = np.array([
        as_float32(getattr(study.model.layers[1], n)).size
        for n in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ])  # fmt: skip
    sites = dict(zip(TENSOR, INPUTS))

    def output(levels: dict[str, float]) -> np.ndarray:
        def drop(layer: int, name: str, x: np.ndarray, know: dict[str, np.ndarray]) -> np.ndarray:
            level = levels.get(sites.get(name, ""), 0.0)
            if level == 0.0:
                return x
            t = study.scores.threshold(1, TENSOR[name], level)
            return np.array([v if abs(v) >= t else 0.0 for v in x])

        return np.array(block(study.model, 1, xs, drop))

    want: list[list[float]] = [[0.0] * 7]
    dense = output({})
    for _ in range(4):
        errors = []
        for i in range(7):
            tried = list(want[-1])
            tried[i] = min(tried[i] + 0.05 * sizes.sum() / sizes[i], 0.99)
            errors.append((((output(dict(zip(INPUTS, tried))) - dense) ** 2).sum(), tried))
        want.append(min(errors, key=lambda e: e[0])[1])
    x = common.residuals(study.runner, ids[None])[1]
    got = greedy.greedy_path(study, m, 1, x, step=0.05, until=0.2)
    np.testing.assert_allclose(got[: len(want)], want, atol=1e-9)
    levels = levels_of(study, m, 0.3)
    for i in range(2):
        share = sum(levels[s][i] * n for s, n in zip(INPUTS, sizes)) / sizes.sum()
        assert share == pytest.approx(0.3, abs=1e-9)


def test_cett(study: Study, dense_tensors: list[dict[str, np.ndarray]]) -> None:
    levels = levels_of(study, "cett", 0.5)["h"]
    assert levels.mean() == pytest.approx(0.5, abs=1e-6)
    found = []
    for i, layer in enumerate(dense_tensors):
        down = as_float32(study.model.layers[i].down_proj).astype(np.float64)
        norms = column_norms(study.model, i, "down_proj")
        t = study.scores.threshold(i, "h*down_proj", float(levels[i]))
        ratios = []
        for h in layer["h"]:
            dropped = np.zeros(32)
            for k in range(48):
                if abs(h[k]) * norms[k] < t:
                    dropped += h[k] * down[:, k]
            ratios.append(np.linalg.norm(dropped) / np.linalg.norm(down @ h))
        found.append(np.mean(ratios))
    assert found[0] == pytest.approx(found[1], rel=0.03), "one CETT for all layers"


def test_sensitivity(study: Study) -> None:
    m = method("asvd-h")
    levels_of(study, m, 0.3)
    table = np.array(study.table("sensitivity-magnitude-h", lambda: None)["h"])
    rows = spread(study.calibration_ids, sensitivity.SENSITIVITY_TOKENS // 40)
    base = sum(direct_loss(study.model, ids) for ids in rows)
    for layer, k in ((0, 2), (1, 3)):
        level = sensitivity.SENSITIVITY_LEVELS[k]
        t = study.scores.threshold(layer, "h", level)

        def drop(
            at: int, name: str, x: np.ndarray, know: dict[str, np.ndarray], layer=layer, t=t
        ) -> np.ndarray:
            if at != layer or name != "h":
                return x
            return np.array([v if abs(v) >= t else 0.0 for v in x])

        rise = sum(direct_loss(study.model, ids, drop) for ids in rows) - base
        assert table[layer, k] == pytest.approx(rise / (rows.size - len(rows)), abs=2e-5)
    rising = np.maximum.accumulate(table, axis=1)
    levels = levels_of(study, m, 0.3)["h"]
    assert levels.mean() == pytest.approx(0.3, abs=1e-6)
    limit = [np.interp(v, sensitivity.SENSITIVITY_LEVELS, r) for v, r in zip(levels, rising)]
    assert limit[0] == pytest.approx(limit[1], rel=1e-3, abs=1e-6)


def test_marginal_costs_are_those_of_a_direct_gradient(study: Study) -> None:
    """Costs of (act, h), o, x and attention inputs, from finite differences of the likelihood."""
    m = method("marginal")
    study.need_scores(["attn_in", "heads", "ffn_in", "act", "h"])
    one = Study(study.model, study.formats, study.calibration_ids[:1], study.windows)
    one.scores = study.scores
    curves = marginal.measure_curves(one, m)
    ids = study.calibration_ids[0]
    model, spec = study.model, study.model.spec
    embed = as_float32(model.embed).astype(np.float64)
    start = [embed[t] for t in ids]
    parts: list[list[dict[str, np.ndarray]]] = []
    xs = start
    inputs = []
    for i in range(spec.n_layers):
        inputs.append(xs)
        parts.append([])
        xs = block(model, i, xs, keep_all, parts[-1])
    draw = torch.Generator().manual_seed(gradients.SEED)
    logits = study.runner.logits(study.runner.hidden(torch.tensor(ids)[None]))[0]
    drawn = torch.multinomial(logits.softmax(-1), 1, generator=draw)[:, 0].numpy()

    def loss_after(layer: int, xs: list[np.ndarray]) -> float:
        for i in range(layer + 1, spec.n_layers):
            xs = block(model, i, xs, keep_all)
        total = 0.0
        for x, target in zip(xs, drawn):
            z = embed @ norm(x, model.final_norm, spec.norm_eps)
            total += float(np.log(np.exp(z - z.max()).sum()) + z.max() - z[target])
        return total

    # FFN of layer 1 (the last): push its output along the change that a drop makes.
    layer, g = 1, 8
    level = prices.GRID[g]
    down = as_float32(model.layers[layer].down_proj).astype(np.float64)
    t_act = study.scores.threshold(layer, "act", level)
    t_h = study.scores.threshold(layer, "h", level)
    out = block(model, layer, inputs[layer], keep_all)
    cost = 0.0
    for p, know in enumerate(parts[layer]):
        alive = (np.abs(know["act"]) >= t_act) & (np.abs(know["h"]) >= t_h)
        change = -down @ (know["h"] * ~alive)
        ends = []
        for sign in (1e-4, -1e-4):
            moved = list(out)
            moved[p] = out[p] + sign * change
            ends.append(loss_after(layer, moved))
        cost += ((ends[0] - ends[1]) / 2e-4) ** 2 / 2
    assert curves.cost["ffn"][layer, g, g] == pytest.approx(cost / len(ids), rel=2e-3)
    assert curves.cost["ffn"][layer, 0, 0] < 1e-12
    alive = np.mean([
        [(abs(k["act"][i]) >= t_act) and (abs(k["h"][i]) >= t_h) for i in range(48)]
        for k in parts[layer]
    ])  # fmt: skip
    assert curves.columns[layer, g, g] == pytest.approx(alive, abs=1e-9)
    touched = np.mean([
        [any((abs(k["act"][b]) >= t_act) & (abs(k["h"][b]) >= t_h)) for b in
         (slice(0, 32), slice(32, 48))] for k in parts[layer]
    ])  # fmt: skip
    assert curves.column_blocks[layer, g, g] == pytest.approx(touched, abs=1e-9)

    # Layer 0: the masks of x and of attention change the branch's output.
    for kind, tensor, names in (
        ("x", "ffn_in", ("gate_proj", "up_proj")),
        ("attn", "attn_in", ("q_proj", "k_proj", "v_proj")),
        ("o", "heads", ("o_proj",)),
    ):
        t = study.scores.threshold(0, tensor, level)

        def drop(at: int, name: str, x: np.ndarray, know: dict, names=names, t=t) -> np.ndarray:
            return np.where(np.abs(x) >= t, x, 0.0) if name in names else x

        # The change at the branch's output; for attention the rest of the block follows it.
        dense_parts: list[dict] = []
        block(model, 0, inputs[0], keep_all, dense_parts)
        sparse_parts: list[dict] = []
        sparse = block(model, 0, inputs[0], drop, sparse_parts)
        dense = block(model, 0, inputs[0], keep_all)
        if kind == "x":
            change = [a - b for a, b in zip(sparse, dense)]
            middle = None
        else:
            o_proj = as_float32(model.layers[0].o_proj).astype(np.float64)
            kept = [drop(0, "o_proj", k["heads"], k) for k in sparse_parts]
            change = [o_proj @ (a - k["heads"]) for a, k in zip(kept, dense_parts)]
            middle = [x + o_proj @ k["heads"] for x, k in zip(inputs[0], dense_parts)]
        cost = 0.0
        for p in range(len(ids)):
            ends = []
            for sign in (1e-4, -1e-4):
                if middle is None:
                    moved = list(dense)
                    moved[p] = dense[p] + sign * change[p]
                else:
                    moved = list(dense)
                    x = middle[p] + sign * change[p]
                    w = model.layers[0]
                    y = norm(x, w.ffn_norm, spec.norm_eps)
                    h = silu(as_float32(w.gate_proj) @ y) * (as_float32(w.up_proj) @ y)
                    moved[p] = x + as_float32(w.down_proj) @ h
                ends.append(loss_after(0, moved))
            cost += ((ends[0] - ends[1]) / 2e-4) ** 2 / 2
        assert curves.cost[kind][0, g] == pytest.approx(cost / len(ids), rel=5e-3), kind


def test_fisher_score(study: Study) -> None:
    """Weights from finite differences of the likelihood of drawn tokens; masks by a loop."""
    m = method("h-fisher")
    rules = study.rules(m, levels_of(study, m, 0.6))
    model, spec = study.model, study.model.spec
    embed = as_float32(model.embed).astype(np.float64)
    draw = torch.Generator().manual_seed(gradients.SEED)
    total = np.zeros(3)
    neurons = (0, 17, 40)
    for ids in study.calibration_ids:
        xs = block(model, 0, [embed[t] for t in ids], keep_all)
        logits = study.runner.logits(study.runner.hidden(torch.tensor(ids)[None]))[0]
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=draw)[:, 0].numpy()
        out = block(model, 1, xs, keep_all)
        down = as_float32(model.layers[1].down_proj).astype(np.float64)
        for x, target in zip(out, drawn):
            # The last layer: a token's neurons touch only its own prediction.
            for k, i in enumerate(neurons):
                ends = []
                for sign in (1e-4, -1e-4):
                    z = embed @ norm(x + sign * down[:, i], model.final_norm, spec.norm_eps)
                    ends.append(np.log(np.exp(z - z.max()).sum()) + z.max() - z[target])
                total[k] += ((ends[0] - ends[1]) / 2e-4) ** 2
    want = np.sqrt(total / study.calibration_ids.size)
    weight = rules[1].sites["h"].weight
    assert weight is not None
    np.testing.assert_allclose(weight.numpy()[list(neurons)], want, rtol=2e-3)
    w = [rules[i].sites["h"].weight.numpy().astype(np.float64) for i in range(2)]
    t = [rules[i].sites["h"].threshold for i in range(2)]
    scores = [np.abs(s["h"]) * w[i] for i, s in enumerate(seen(model, study.calibration_ids))]
    for i in range(2):
        assert t[i] == pytest.approx(np.quantile(scores[i], 0.6), rel=0.02)

    def drop(layer: int, name: str, x: np.ndarray, know: dict[str, np.ndarray]) -> np.ndarray:
        if name != "h":
            return x
        return np.array([v if abs(v) * c >= t[layer] else 0.0 for v, c in zip(x, w[layer])])

    check(study, "h-fisher", 0.6, drop)
    assert study.extra(m).metadata == 4 * 48  # float32, as an image stores them
    assert study.extra(method("marginal-fisher")).metadata == 4 * (3 * 32 + 2 * 48)


def test_marginal_levels_save_what_is_asked(study: Study) -> None:
    for name in ("marginal", "marginal-ffn", "marginal-h"):
        m = method(name)
        r = measured(study, m, 0.15)
        dense = study.dense_bytes().layers
        assert r.bytes.layers / dense == pytest.approx(0.85, abs=0.03)
        assert set(r.levels) <= set(m.sites)
    with pytest.raises(UsageError, match="at most"):
        levels_of(study, "marginal-h", 0.8)


def test_allocation_is_the_best_of_all(study: Study) -> None:
    """On a grid of three levels, no other choice saves as much for less."""
    rng = np.random.default_rng(3)
    grid = len(prices.GRID)
    cost = np.sort(rng.random((2, grid)) ** 2, axis=1)
    cost[:, 0] = 0
    size = -np.sort(rng.random((2, grid)), axis=1)
    size[:, 0] = 0
    curves = prices.Curves({"o": cost}, {}, {}, *(np.zeros(1) for _ in range(3)))
    table = {"o": size, "ffn": np.zeros((2, 1, 1, 1))}
    found = marginal.allocate(curves, table, {"o": (1.0, 0.0)}, 0.7)
    total, spent = found.size, found.cost["o"]
    assert -total >= 0.7
    for a in range(grid):
        for b in range(grid):
            if -(size[0, a] + size[1, b]) >= -total:
                assert cost[0, a] + cost[1, b] >= spent - 1e-12


def test_drift_is_the_first_order_rise(study: Study) -> None:
    """Dropping a little of each dropped entry moves the direct loss by the drift."""
    m = method("marginal")
    study.need_scores(["attn_in", "heads", "ffn_in", "act", "h"])
    one = Study(study.model, study.formats, study.calibration_ids[:1], study.windows)
    one.scores = study.scores
    got = marginal.measure_drift(one, m)
    ids, g = study.calibration_ids[0], 8
    for kind, tensor, names in (
        ("x", "ffn_in", ("gate_proj", "up_proj")),
        ("attn", "attn_in", ("q_proj", "k_proj", "v_proj")),
        ("o", "heads", ("o_proj",)),
        ("ffn", "h", ("h",)),
    ):
        for layer in range(2):
            t = study.scores.threshold(layer, tensor, prices.GRID[g])
            t_act = study.scores.threshold(layer, "act", prices.GRID[5])
            ends = []
            for step in (1e-4, -1e-4):

                def drop(
                    at: int, name: str, x: np.ndarray, know: dict, layer=layer, step=step,
                    t=t, t_act=t_act, names=names, kind=kind,
                ) -> np.ndarray:  # fmt: skip
                    if at != layer or name not in names:
                        return x
                    gone = np.abs(x) < t
                    if kind == "ffn":
                        gone |= np.abs(know["act"]) < t_act
                    return np.where(gone, x * (1 - step), x)

                ends.append(direct_loss(study.model, ids, drop))
            want = (ends[0] - ends[1]) / 2e-4 / len(ids)
            found = got.mean[kind][layer, 5, g] if kind == "ffn" else got.mean[kind][layer, g]
            assert found == pytest.approx(want, rel=5e-3, abs=2e-6), (kind, layer)
    whole = marginal.measure_drift(study, m)
    shrunk = whole.shrunk()
    for k, mean in whole.mean.items():
        assert (np.abs(shrunk[k]) <= np.abs(mean) + 1e-15).all()
        assert (shrunk[k][np.abs(mean) <= whole.error[k]] == 0).all()


def test_slopes_of_true_rises_share_between_kinds() -> None:
    """Two kinds alike but for their true rise: at the choice, loss for a byte is the same."""
    level = np.linspace(0, 1, len(prices.GRID))
    cost, size = np.tile(level**2, (50, 1)), np.tile(-level, (50, 1))
    curves = prices.Curves({"o": cost, "attn": cost}, {}, {}, *(np.zeros(1) for _ in range(3)))
    table = {"o": size, "attn": size, "ffn": np.zeros((50, 1, 1, 1))}
    rises = {"o": (1.0, 0.0), "attn": (0.25, 0.0)}
    found = marginal.allocate(curves, table, rises, 50.0)
    # 2 l_o = 0.25 * 2 l_attn and l_o + l_attn = 1: l_o = 0.2, l_attn = 0.8.
    assert found.cost["o"] / 50 == pytest.approx(0.2**2, abs=0.02)
    assert found.cost["attn"] / 50 == pytest.approx(0.8**2, abs=0.08)


def test_rises_are_fitted() -> None:
    points = {"x": [[c, -0.01, 0.3 * c + 2.0 * c * c - 0.01] for c in (0.03, 0.08, 0.2)]}
    assert prices.fit_rises(points)["x"] == (pytest.approx(0.3), pytest.approx(2.0))
    a, b = prices.fit_rises({"x": [[c, 0.0, 2 * c - c * c] for c in (0.03, 0.08, 0.2)]})["x"]
    assert b == 0.0 and 1.8 < a < 2.0


# --- the rest -----------------------------------------------------------------------------------


def test_dense_is_dense(study: Study) -> None:
    r = measured(study, "dense", 0.0)
    want = losses(study.runner, study.windows)
    assert (r.losses.sums == want.sums).all()
    assert r.bytes.total == study.dense_bytes().total
    for name in METHODS:
        assert levels_of(study, name, 0.0) == {}


def test_every_method_measures(study: Study) -> None:
    model = random_model(seed=5, activation=Activation.RELU, **SMALL)
    relu = Study(model, study.formats, study.calibration_ids, study.windows)
    dense = study.dense_bytes().layers
    assert dense == relu.dense_bytes().layers
    for name in METHODS:
        level = 0.1 if name.startswith("marginal") else 0.3
        suited = study if method(name).suits(study.model.spec) else relu
        r = measured(suited, name, level if name != "dense" else 0.0)
        assert math.isfinite(r.losses.mean)
        assert r.bytes.layers > 0
        if name not in ("dense", "acttail") and not method(name).predicts:
            assert r.bytes.layers < dense * 1.02, name


def test_unknown_and_out_of_range(study: Study) -> None:
    with pytest.raises(UsageError, match="there are"):
        method("nothing")
    for level in (-0.1, 1.0, 50.0):
        with pytest.raises(UsageError, match="50 % is written"):
            levels_of(study, "h", level)
    with pytest.raises(UsageError, match="were not measured"):
        Scores().threshold(0, "h", 0.5)


def test_errors_are_those_of_stats() -> None:
    rng = np.random.default_rng(1)
    a, b = [rng.random(9) for _ in range(5)], [rng.random(9) for _ in range(5)]
    of = [Losses(np.array([w.sum() for w in x]), np.full(5, 9.0)) for x in (a, b)]
    want = perplexity_ratio(a, b)
    assert of[0].ratio(of[1]) == (pytest.approx(want.value), pytest.approx(want.error))


def test_results_and_tables_are_kept(tmp_path: Path) -> None:
    model = random_model(seed=7, **SMALL)
    rng = np.random.default_rng(2)
    calibration, windows = rng.integers(0, 60, (3, 40)), rng.integers(0, 60, (2, 14))
    said: list[str] = []

    def make(ids: np.ndarray = calibration) -> Study:
        return Study(model, Formats("q8", "q8", "q8"), ids, windows, tmp_path, progress=said.append)

    first = [measured(make(), n, 0.2) for n in ("teal-greedy", "marginal", "prox-2")]
    assert said
    said.clear()
    again = [measured(make(), n, 0.2) for n in ("teal-greedy", "marginal", "prox-2")]
    assert not said
    for a, b in zip(first, again):
        assert (a.losses.sums == b.losses.sums).all() and a.bytes.total == b.bytes.total
    measured(make(calibration[:2]), "teal-greedy", 0.2)
    assert said, "other calibration text is measured anew"


def test_dense_bytes_by_hand() -> None:
    model = random_model()
    for fmt, row in (("q4", 40), ("q8", 68)):
        f = Formats(fmt, fmt, "q8")
        b = bytes_a_token(model.spec, f, Needs(), Reads.dense(2, 172))
        column, scales = (32, 256) if fmt == "q4" else (64, 128)
        assert b.attention == 2 * (64 + 32 + 32 + 64) * row
        assert b.ffn == 2 * (2 * 172 * row + 172 * column + 6 * scales)
        assert b.head == 160 * 68 and b.embed == 68
        assert b.total == b.attention + b.ffn + b.head + b.embed


def test_masks_in_single_token_decoding(study: Study) -> None:
    m = method("teal")
    hooks = Masked(study.runner, study.rules(m, levels_of(study, m, 0.4)))
    ids = study.windows[0]
    whole = study.runner.forward(torch.tensor(ids)[None], hooks)[0]
    runner = TorchModel(study.model)
    cache = runner.new_cache(len(ids))
    for p, token in enumerate(ids):
        got = runner.step(int(token), cache, hooks)
        torch.testing.assert_close(got, whole[p], rtol=1e-4, atol=1e-4)


# --- low rank -----------------------------------------------------------------------------------


def test_asvd_factors_are_balanced(study: Study) -> None:
    """The whitened cut, with column k of A as long as row k of B."""
    rng = np.random.default_rng(4)
    w = torch.tensor(rng.standard_normal((12, 20)))
    x = torch.tensor(rng.standard_normal((500, 20)) * (rng.random(20) + 0.1))
    c = x.T @ x / 500
    a, b = asvd.asvd_factors(w, c, 5)
    want = lowrank.whitened_factors(w, c, 5)
    torch.testing.assert_close(a @ b, want[0] @ want[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.norm(dim=0), b.norm(dim=1))


def test_whitened_factors_lose_least_output(study: Study) -> None:
    """The error of W x at a rank is the tail of the spectrum of W C^(1/2), found by eigenvalues."""
    rng = np.random.default_rng(5)
    w = rng.standard_normal((12, 20))
    x = rng.standard_normal((500, 20)) @ rng.standard_normal((20, 20))
    c = x.T @ x / len(x)
    a, b = lowrank.whitened_factors(torch.tensor(w), torch.tensor(c), 4)
    error = sum(float(((w - (a @ b).numpy()) @ v) @ ((w - (a @ b).numpy()) @ v)) for v in x) / len(
        x
    )
    values = np.sort(np.linalg.eigvalsh(w @ c @ w.T))
    assert error == pytest.approx(values[:-4].sum(), rel=1e-3)


def test_asvd_prices_of_ranks() -> None:
    """k of layer 0 and up of the last layer, from finite differences of the likelihood."""
    model = random_model(seed=5, dim=128, ffn_dim=192, head_dim=16, vocab=60)
    ids = np.random.default_rng(2).integers(0, 60, (1, 16))
    study = Study(model, Formats("q8", "q8", "q8"), ids, ids)
    full = asvd.decompose(study)
    found = asvd.prices(study, full)
    assert [len(v) for v in found[0].values()] == [1, 1, 1, 1, 2, 2]
    draw = torch.Generator().manual_seed(gradients.SEED)
    logits = study.runner(torch.tensor(ids))[0]
    drawn = torch.multinomial(logits.softmax(-1), 1, generator=draw)[:, 0].numpy()
    inputs = seen(model, ids)
    for layer, name, tensor, rank in (
        (0, "k", "attn_in", 32), (1, "up", "ffn_in", 32), (1, "up", "ffn_in", 64)
    ):  # fmt: skip
        b, a = full[layer][name].factors(rank)
        assert b.shape == (rank, 128) and isinstance(b, Q8Blocks)
        w = as_float32(getattr(model.layers[layer], f"{name}_proj")).astype(np.float64)
        change = inputs[layer][tensor] @ (a.float32() @ b.float32() - w).T  # (T, out)
        cost = 0.0
        for p in range(ids.size):
            ends = []
            for step in (1e-4, -1e-4):
                ends.append(moved_loss(model, ids[0], drawn, layer, name, p, step * change[p]))
            cost += ((ends[0] - ends[1]) / 2e-4) ** 2 / 2
        got = found[layer][name][rank // 32 - 1]
        assert got == pytest.approx(cost / ids.size, rel=5e-3), (name, rank)


def moved_loss(
    model: Model, ids: np.ndarray, drawn: np.ndarray, layer: int, name: str, p: int, by: np.ndarray
) -> float:
    """Loss on the drawn tokens when the output of k or up at position p moves."""
    back = np.linalg.pinv(as_float32(model.layers[layer].k_proj).astype(np.float64))
    calls = 0

    def drop(i: int, at: str, x: np.ndarray, know: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal calls
        if i != layer or at != {"k": "k_proj", "up": "h"}[name]:
            return x
        calls += 1
        if calls != p + 1:
            return x
        return x + (back @ by if name == "k" else know["act"] * by)

    embed = as_float32(model.embed).astype(np.float64)
    xs = [embed[t] for t in ids]
    for i in range(model.spec.n_layers):
        xs = block(model, i, xs, drop)
    total = 0.0
    for x, target in zip(xs, drawn):
        z = embed @ norm(x, model.final_norm, model.spec.norm_eps)
        total += float(np.log(np.exp(z - z.max()).sum()) + z.max() - z[target])
    return total


def test_asvd_rank_search() -> None:
    """No other choice of ranks costs less at the bytes that the search leaves."""
    model = random_model(seed=5, dim=128, ffn_dim=192, head_dim=16, vocab=60)
    ids = np.random.default_rng(2).integers(0, 60, (5, 40))
    study = Study(model, Formats("q8", "q8", "q8"), ids[:4], ids[4:, :14])
    costs = [{"q": [0.5], "o": [0.1], "gate": [0.3, 0.2], "up": [0.9, 0.01]}, {"up": [0.2, 0.02]}]

    def size(name: str, rank: int) -> int:
        n, cols = shape_of(model.spec, name)
        row = row_bytes(cols, "q8")
        return rank * row + n * row_bytes(rank, "q8") if rank else n * row

    dense = 2 * sum(size(n, 0) for n in FACTORED)
    keys = [(i, n) for i in range(2) for n in costs[i]]
    every = []
    for ranks in itertools.product(*(range(len(costs[i][n]) + 1) for i, n in keys)):
        saved = sum(size(n, 0) - size(n, 32 * r) for (_, n), r in zip(keys, ranks))
        cost = sum(costs[i][n][r - 1] for (i, n), r in zip(keys, ranks) if r)
        every.append((saved, cost, ranks))
    for kept in (0.97, 0.9, 0.8):
        found = asvd.choose_ranks(study, costs, kept)
        ranks = tuple(found.get(k, 0) // 32 for k in keys)
        saved, cost = next(e[:2] for e in every if e[2] == ranks)
        assert dense - saved <= kept * dense
        assert cost == pytest.approx(min(e[1] for e in every if e[0] >= saved))
    with pytest.raises(UsageError, match=r"leave at least 7[0-9] %"):
        asvd.choose_ranks(study, costs, 0.5)
    factors = asvd.asvd(study, 0.85)
    table = study.table("asvd-q8-q8", lambda: None)
    want = asvd.choose_ranks(study, table, 0.85)
    assert want and {k: len(b) for k, (b, _) in factors.rows.items()} == want
    cut = Study(factors.multiplied_out(model, study.formats), study.formats, ids[:4], ids[4:, :14])
    assert cut.scores.digest != study.scores.digest
    model.layers = [
        replace(w, **{f"{n}_proj": a.float32() @ b.float32()
                      for n in FACTORED if factors.rank(i, n)
                      for b, a in [factors.blocks(model.spec, i, n, "q8")]})
        for i, w in enumerate(model.layers)
    ]  # fmt: skip
    want_loss = direct_loss(model, ids[4, :14])
    assert losses(cut.runner, cut.windows).sums[0] == pytest.approx(want_loss, rel=1e-4)


def test_asvd_ranks_save_bytes() -> None:
    """Whole groups of 32, and no factors where they would not save bytes."""
    assert asvd.most_rank(1536, 576, "q4") == 416
    assert asvd.most_rank(64, 64, "q4") == 0
    assert asvd.most_rank(576, 576, "q8") == 256
    model = random_model()
    factors = random_factors(model.spec, "q8", "q8")
    spec, formats = model.spec, Formats("q8", "q8", "q8")
    whole = bytes_a_token(spec, formats, Needs(), Reads.dense(2, 172)).layers
    size = bytes_a_token(spec, formats, Needs(factors=factors), Reads.dense(2, 172)).layers
    for i in range(2):
        for name in FACTORED:
            r, (n, cols) = factors.rank(i, name), shape_of(spec, name)
            if r:
                whole += r * row_bytes(cols, "q8") + n * row_bytes(r, "q8")
                whole -= n * row_bytes(cols, "q8")
    assert size == pytest.approx(whole)


def test_factors_are_kept(tmp_path: Path) -> None:
    factors = random_factors(random_model().spec, "q4", "q8")
    factors.save(tmp_path / "f.npz")
    assert Factors.load(tmp_path / "f.npz").digest == factors.digest
    whole = (tmp_path / "f.npz").read_bytes()
    (tmp_path / "f.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        Factors.load(tmp_path / "f.npz")


# --- predictability -----------------------------------------------------------------------------


def test_predictability_by_loops(study: Study) -> None:
    from sparseflash.sparsity.predict.predictability import predictability

    level = 0.6
    got = predictability(study, study.windows, level)
    tensors = [seen(study.model, ids[None]) for ids in study.windows]
    limits = [study.scores.threshold(i, "h", level) for i in range(2)]
    for layer in range(2):
        counts = {name: [0, 0, 0] for name in ("any2", "mean2", "other", "input")}
        neurons = dict.fromkeys(counts, 0)
        for k, prompt in enumerate(tensors):
            size = np.abs(prompt[layer]["h"])
            x0 = np.array([as_float32(study.model.embed)[t] for t in study.windows[k]])
            xs = list(x0.astype(np.float64))
            for i in range(layer):
                xs = block(study.model, i, xs, keep_all)
            w = study.model.layers[layer]
            other = np.abs(tensors[k - 1][layer]["h"]).mean(0)
            for t in range(len(size)):
                active = {n for n in range(48) if size[t, n] >= limits[layer]}
                y = norm(xs[t], w.ffn_norm, study.model.spec.norm_eps)
                early = np.abs(silu(as_float32(w.gate_proj) @ y) * (as_float32(w.up_proj) @ y))
                predictions = {
                    "input": set(np.argsort(-early)[:19]),
                    "other": set(np.argsort(-other)[:19]),
                }
                if t >= 8:
                    past = size[t - 2 : t]
                    predictions["any2"] = {
                        n for n in range(48) if (past[:, n] >= limits[layer]).any()
                    }
                    predictions["mean2"] = set(np.argsort(-past.mean(0))[:19])
                for name, prediction in predictions.items():
                    counts[name][0] += len(prediction & active)
                    counts[name][1] += len(active)
                    counts[name][2] += len(prediction)
                    neurons[name] += 48
        for mine, name in (
            ("any2", "any of the last 2"),
            ("mean2", "mean of the last 2"),
            ("other", "mean of another prompt"),
            ("input", "input of this layer"),
        ):
            hit, active_n, predicted = counts[mine]
            row = got["predictions"][name]["layers"][layer]
            assert row["recall"] == pytest.approx(hit / active_n, abs=1e-9)
            assert row["precision"] == pytest.approx(hit / predicted, abs=1e-9)
            lift = (hit / active_n) / (predicted / neurons[mine])
            assert row["lift"] == pytest.approx(lift, abs=1e-9)
    whole = got["predictions"]["whole prompt against whole prompt"]["layers"][0]
    means = [np.abs(p[0]["h"]).mean(0) for p in tensors]
    a, b = (set(np.argsort(-m)[:19]) for m in means)
    assert whole["recall"] == pytest.approx(len(a & b) / 19)


def test_random_prediction_has_lift_one() -> None:
    from sparseflash.sparsity.predict.predictability import Score

    g = torch.Generator().manual_seed(1)
    active, prediction = (torch.rand(400, 500, generator=g) < p for p in (0.1, 0.4))
    s = Score()
    s.add(prediction, active)
    assert s.plain()["lift"] == pytest.approx(1.0, abs=0.05)
    assert s.plain()["recall"] == pytest.approx(0.4, abs=0.02)


def test_methods_of_an_ffn_without_a_gate() -> None:
    """Methods of h, of inputs of attention and predictors run; the others say what they lack."""
    model = random_model(gated=False, activation=Activation.RELU, ffn_bias=True)
    ids = np.random.default_rng(0).integers(0, 160, (2, 64))
    study = Study(model, Formats(), ids, ids)
    dense = study.dense_bytes().ffn
    for name in ("h", "prox-2", "svd-64", "signs"):
        m = METHODS[name]
        found = study.measure(m, 0.5, levels_of(study, m, 0.5))
        assert found.bytes.ffn < 0.85 * dense, name
    for name in ("cats", "paper", "teal", "marginal"):
        with pytest.raises(UsageError, match="its FFN has no gate; take h"):
            levels_of(study, METHODS[name], 0.5)


def test_methods_of_a_model_with_experts() -> None:
    model = random_model(ffn_dim=256, experts=8, experts_used=2)
    ids = np.random.default_rng(0).integers(0, 160, (2, 64))
    study = Study(model, Formats(), ids, ids)
    with pytest.raises(UsageError, match="its router already chooses"):
        levels_of(study, METHODS["h"], 0.5)
    whole = random_model(ffn_dim=256)
    ratio = study.dense_bytes().ffn / Study(whole, Formats(), ids, ids).dense_bytes().ffn
    assert 0.25 <= ratio < 0.27
