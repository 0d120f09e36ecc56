"""One model, its calibration and its evaluation text: what every method is measured with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparseflash.base.errors import InputError, UsageError
from sparseflash.base.files import root, write_json
from sparseflash.image.factors import Factors
from sparseflash.image.formats import Formats
from sparseflash.image.needs import Needs
from sparseflash.image.predictor import Predictor, load_predictor, predictor_bytes
from sparseflash.model.recipes import PredictorFile
from sparseflash.model.spec import Model
from sparseflash.model.torch_model import TorchModel
from sparseflash.sparsity.bytes import Bytes, Extra, bytes_a_token, columns_of
from sparseflash.sparsity.calibrate import SITES as DEVICE_SITES
from sparseflash.sparsity.calibrate import Calibration
from sparseflash.sparsity.evaluate import Losses, evaluate
from sparseflash.sparsity.gradients import fisher_weights
from sparseflash.sparsity.masks import LayerRules, ProxyRule, Rule
from sparseflash.sparsity.predict.lowrank import copies_of, svd_predictor
from sparseflash.sparsity.predict.proxy import proxy_bytes, quantize_proxy, signs_of
from sparseflash.sparsity.reads import Reads
from sparseflash.sparsity.registry import Levels, Method
from sparseflash.sparsity.scores import Pairs, Scores, measure_scores
from sparseflash.sparsity.sites import SITES, key
from sparseflash.sparsity.windows import spread

SCORE_TOKENS = 4096
"""Calibration tokens on which scores are counted that the calibration itself did not."""
VERSION = 1
"""Of what the caches hold; raise it when a definition changes."""


@dataclass
class Result:
    """One variant, measured."""

    method: str
    level: float
    levels: Levels
    losses: Losses
    reads: Reads
    bytes: Bytes


@dataclass
class Study:
    """What methods need: the model in torch, score distributions, text, and a cache of results.

    ``folder`` keeps scores, budget tables and results; None keeps nothing.
    """

    model: Model
    formats: Formats
    calibration_ids: np.ndarray
    windows: np.ndarray
    folder: Path | None = None
    calibration: Calibration | None = None
    runner: TorchModel = None  # type: ignore[assignment]
    progress: Callable[[str], None] = lambda _: None
    factors: Factors | None = None
    """That the model has in place of projections, multiplied out."""
    trained: dict[str, PredictorFile] = field(default_factory=dict)
    """Predictors that the recipe names, by method."""
    scores: Scores = field(default_factory=Scores)
    _tables: dict[str, Any] = field(default_factory=dict)
    _copies: dict[str, Pairs] = field(default_factory=dict)
    _predictors: dict[str, Predictor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = self.model.spec
        if self.runner is None:
            self.runner = TorchModel(self.model)
        source = self.model.source
        what = [VERSION, source.get("sha256", ""), spec.n_layers]
        what += [source["factors"]] if "factors" in source else []
        digest = hashlib.sha256(json.dumps(what).encode())
        digest.update(np.ascontiguousarray(self.calibration_ids, "<i8").tobytes())
        self.scores.digest = digest.hexdigest()
        path = self.file("scores.npz")
        if path is not None and path.is_file():
            try:
                old = Scores.load(path)
                if old.digest == self.scores.digest:
                    self.scores = old
            except InputError:
                pass
        if self.calibration is not None:
            for k, site in enumerate(DEVICE_SITES):
                self.scores.counts.setdefault(site, self.calibration.counts[:, k])

    # Tables that are kept ------------------------------------------------------------------

    def file(self, name: str) -> Path | None:
        """Where something is kept by name; None when nothing is."""
        return None if self.folder is None else self.folder / name

    def table(self, name: str, make: Callable[[], Any]) -> Any:
        """Plain data by name, made once for a model and calibration text and kept."""
        if name not in self._tables:
            path = self.file(f"{name}.json")
            value = None
            if path is not None and path.is_file():
                try:
                    kept = json.loads(path.read_text())
                    if kept["digest"] == self.scores.digest:
                        value = kept["value"]
                except (OSError, ValueError, KeyError):
                    value = None
            if value is None:
                value = make()
                if path is not None:
                    write_json(path, {"digest": self.scores.digest, "value": value})
            self._tables[name] = value
        return self._tables[name]

    def need_scores(self, keys: Sequence[str], m: Method | None = None) -> None:
        """Measures the distributions that are not there yet; ``m`` is the method that predicts."""
        missing = [k for k in dict.fromkeys(keys) if k not in self.scores.counts]
        if not missing:
            return
        self.progress(f"scores of {', '.join(missing)}")
        pairs = {} if m is None else {self.prediction_key(m): self.copies(m)}
        ahead = m is not None and self.ahead(m)
        rows = -(-SCORE_TOKENS // self.calibration_ids.shape[1])
        layers = range(self.model.spec.n_layers)
        by = {k: [self.weights(i, k) for i in layers] for k in missing if "*" in k}
        picked = spread(self.calibration_ids, rows)
        found = measure_scores(self.runner, picked, missing, pairs, by, ahead=ahead)
        self.scores.counts.update(found)
        path = self.file("scores.npz")
        if path is not None:
            self.scores.save(path)

    def weights(self, layer: int, name: str) -> torch.Tensor | None:
        """What the magnitudes of a key are multiplied by, float32 (n,); None for nothing."""
        tensor, _, by = name.partition("*")
        if not by:
            return None
        if by == "fisher":
            table = self.table(
                "fisher", lambda: fisher_weights(self.runner, self.calibration_ids, self.progress)
            )
            return torch.tensor(table[tensor][layer])
        w = getattr(self.runner.layers[layer], by)
        return torch.linalg.vector_norm(w.float(), dim=0)

    # Rules ---------------------------------------------------------------------------------

    def predictor(self, m: Method) -> Predictor:
        """The low-rank predictor of a method: the recipe's file, or singular vectors, made once.

        Raises:
            UsageError: the recipe names none.
            InputError: the file is damaged or made for another model.
        """
        if m.name in self._predictors:
            return self._predictors[m.name]
        sha = self.model.source.get("sha256", "")
        if m.trained:
            if m.name not in self.trained:
                raise UsageError(
                    f"the recipe of {self.model.name} names no predictor {m.name!r}; it names "
                    f"{', '.join(self.trained) or 'none'}"
                )
            file = self.trained[m.name]
            found = load_predictor(root() / file.path, self.model.spec, sha, file.sha256)
            if found.rank != m.rank:
                raise InputError(f"{file.path} has rank {found.rank}; {m.name} names {m.rank}")
        else:
            path = self.file(f"{m.name}-{self.scores.digest[:12]}.npz")
            if path is not None and path.is_file():
                found = load_predictor(path, self.model.spec, sha)
            else:
                found = svd_predictor(self.runner, self.calibration_ids, m.rank, self.progress)
                if path is not None:
                    found.save(path, {"model_sha256": sha})
        self._predictors[m.name] = found
        return found

    def ahead(self, m: Method) -> bool:
        """The prediction reads the normed input of attention."""
        return m.rank > 0 and self.predictor(m).ahead

    def prediction_key(self, m: Method) -> str:
        """Name of the distribution of a method's prediction."""
        if m.signs:
            return "signs"
        return f"{m.name}/{self.predictor(m).digest}" if m.rank else f"proxy{m.proxy}"

    def copies(self, m: Method) -> Pairs:
        """Dequantised copies of gate and up that predict h, factors multiplied out."""
        prediction = self.prediction_key(m)
        m.check(self.model.spec, self.model.name)
        if prediction not in self._copies:
            pairs: Pairs = []
            if m.rank:
                pairs += copies_of(self.predictor(m), self.model.spec.dim)
            elif m.signs:
                for w in self.runner.layers:
                    first = w.up_proj if w.gate_proj is None else w.gate_proj
                    pairs.append((signs_of(first), None))
            else:
                for w in self.runner.layers:
                    gate = None if w.gate_proj is None else quantize_proxy(w.gate_proj, m.proxy)
                    pairs.append((gate, quantize_proxy(w.up_proj, m.proxy)))
            kind = self.runner.matmul
            self._copies = {
                prediction: [tuple(None if c is None else c.to(kind) for c in p) for p in pairs]  # type: ignore[misc]
            }
        return self._copies[prediction]

    def rules(self, m: Method, levels: Levels) -> list[LayerRules]:
        """The rules of every layer at the levels."""
        spec = self.model.spec
        m.check(spec, self.model.name)
        out = [LayerRules() for _ in range(spec.n_layers)]
        sites = [s for s in m.sites if s in levels]
        if m.select == "threshold":
            self.need_scores([key(s, m.score) for s in sites])
        for site in sites:
            for i in range(spec.n_layers):
                level = float(levels[site][i])
                if level <= 0.0:
                    continue
                w = self.weights(i, key(site, m.score))
                if m.select == "top-k":
                    n = SITES[site].width(spec)
                    rule = Rule(keep=max(1, round((1.0 - level) * n)), weight=w)
                else:
                    t = self.scores.threshold(i, key(site, m.score), level)
                    rule = Rule(threshold=t, weight=w)
                out[i].sites[site] = rule
        if m.predicts:
            name, ahead = self.prediction_key(m), self.ahead(m)
            self.need_scores([name], m)
            for i, (gate, up) in enumerate(self.copies(m)):
                t = self.scores.threshold(i, name, float(levels["proxy"][i]))
                out[i].proxy = ProxyRule(gate, up, Rule(threshold=t), ahead)
        return out

    def extra(self, m: Method) -> Extra:
        """What the method reads beside the weights: proxies, and norms in float32."""
        spec = self.model.spec
        proxy = proxy_bytes(spec, m.proxy) if m.proxy else 0.0
        if m.rank:
            proxy = predictor_bytes(spec, m.rank)
        if m.signs:
            proxy = float(spec.ffn_dim * (spec.dim // 8))
        norms = 0
        if m.score != "magnitude":
            shared = {key(s, m.score): s for s in m.sites}
            norms = sum(4 * SITES[s].width(spec) for k, s in shared.items() if "*" in k)
        return Extra(proxy=proxy, metadata=float(norms))

    # Measuring -----------------------------------------------------------------------------

    def _key(self, m: Method, levels: Levels, windows: np.ndarray) -> str:
        h = hashlib.sha256(self.scores.digest.encode())
        h.update(hashlib.sha256(np.ascontiguousarray(windows, "<i8").tobytes()).digest())
        plain = {k: [round(float(x), 6) for x in v] for k, v in sorted(levels.items())}
        what = [
            m.sites,
            m.score,
            m.select,
            self.prediction_key(m) if m.rank or m.signs else m.proxy,
            str(self.runner.matmul),
            plain,
            *(["masks of training counted"] if self.model.spec.trained_mask else []),
        ]
        h.update(json.dumps(what).encode())
        return h.hexdigest()[:32]

    def measure(
        self,
        m: Method,
        level: float,
        levels: Levels,
        windows: np.ndarray | None = None,
    ) -> Result:
        """Losses, reads and bytes of a method at the levels, from the cache if it was measured.

        level: what they were made from, to name the result.
        """
        windows = self.windows if windows is None else windows
        name = self._key(m, levels, windows)
        path = self.file(f"results/{name}.json")
        found: tuple[Losses, Reads] | None = None
        if path is not None and path.is_file():
            try:
                kept = json.loads(path.read_text())
                found = Losses.of_plain(kept["losses"]), Reads.of_plain(kept["reads"])
            except (OSError, ValueError, KeyError):
                found = None
        if found is None:
            self.progress(f"{m.name} {100 * level:g} %")
            found = evaluate(
                self.runner, windows, self.rules(m, levels) if levels else self._none()
            )
            if path is not None:
                about = {"method": m.name, "level": level}
                plain = {"losses": found[0].plain(), "reads": found[1].plain(), "about": about}
                write_json(path, plain)
        spec = self.model.spec
        extra = self.extra(m) if levels else Extra()
        needs = Needs(columns=columns_of(levels), factors=self.factors)
        if spec.own_thresholds:
            needs = needs.with_gate_by_columns(spec.n_layers)
        size = bytes_a_token(spec, self.formats, needs, found[1], extra)
        return Result(m.name, level, levels, *found, size)

    def _none(self) -> list[LayerRules]:
        return [LayerRules() for _ in range(self.model.spec.n_layers)]

    def dense_bytes(self) -> Bytes:
        """Of the dense model."""
        spec = self.model.spec
        dense = Reads.dense_of(spec)
        return bytes_a_token(spec, self.formats, Needs(factors=self.factors), dense)
