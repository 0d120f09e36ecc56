"""Thresholds for activation sparsity, measured in one streaming pass over text.

For every layer the magnitudes at five sites are counted in a histogram whose bins are fixed
beforehand, so memory does not grow with the number of tokens. Any percentile can then be asked
without running the model again.

============  =====================================================  =========================
site          what                                                   source
============  =====================================================  =========================
``gate``      output of the gate projection, before the activation   arXiv 2412.12178
``act``       act(gate)                                              CATS, arXiv 2404.08763
``up``        output of the up projection                            arXiv 2412.12178
``h``         act(gate) * up, the input of the down projection       percentile a layer
``down``      output of the down projection                          arXiv 2412.12178
============  =====================================================  =========================

A value is dropped when its magnitude is below the threshold, so threshold 0 is dense. The bins
are the float32 exponent and the top seven mantissa bits: 128 bins an octave, at most 0.8 % wide,
from 2^-30 to 2^20, with one bin below and one above.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseflash import __version__
from sparseflash.base.errors import InputError, UsageError
from sparseflash.base.files import file_sha256, parse_json, write_bytes, write_json
from sparseflash.base.progress import each
from sparseflash.model.recipes import text, text_path
from sparseflash.model.spec import Activation, Model

if TYPE_CHECKING:
    import torch

    from sparseflash.model.torch_model import TorchModel

SITES = ("gate", "act", "up", "h", "down")
"""In the order of ``reference.THRESHOLDS``, whose predictor is no site of the dense model."""
DEFAULT_TEXTS = ("wiki", "c4", "tiny")
DEFAULT_TOKENS = 16384
DEFAULT_WINDOW = 512
CHUNK = 32
"""Tokens that are hashed together to find text that evaluation shares with calibration."""

LOW_EXPONENT, HIGH_EXPONENT = -30, 20
_PER_OCTAVE = 128
_LOW_KEY = (LOW_EXPONENT + 127) * _PER_OCTAVE
_HIGH_KEY = (HIGH_EXPONENT + 127) * _PER_OCTAVE
_INFINITE_KEY = 255 * _PER_OCTAVE
_KEYS = 1 << 15
BINS = _HIGH_KEY - _LOW_KEY + 2


def bin_edges() -> np.ndarray:
    """Edges of the bins, float64 (BINS + 1,): 0, then 2^-30 to 2^20, then twice the last."""
    keys = np.arange(_LOW_KEY, _HIGH_KEY + 1, dtype=np.uint32) << np.uint32(16)
    return np.concatenate([[0.0], keys.view(np.float32).astype(np.float64), [2.0**21]])


def histogram(values: torch.Tensor) -> np.ndarray:
    """Counts of the magnitudes of a float32 tensor of any shape, int64 (BINS,).

    Raises:
        InputError: a value is infinite or not a number.
    """
    import torch

    half = 1 if sys.byteorder == "little" else 0
    halves = values.detach().float().contiguous().cpu().view(torch.int16).reshape(-1, 2)
    keys = halves[:, half].bitwise_and(0x7FFF)
    counts = torch.bincount(keys, minlength=_KEYS).numpy()
    if counts[_INFINITE_KEY:].any():
        raise InputError("an activation is not finite; the model file is damaged or not supported")
    below, above = counts[:_LOW_KEY].sum(), counts[_HIGH_KEY:].sum()
    return np.concatenate([[below], counts[_LOW_KEY:_HIGH_KEY], [above]]).astype(np.int64)


# --- the result ---------------------------------------------------------------------------------


@dataclass
class Calibration:
    """What one pass measured.

    ``counts`` int64 (layers, sites, BINS); ``chunks`` uint64 (n,), hashes of the token chunks
    that were seen; ``meta`` is plain data, written beside as readable JSON.
    """

    counts: np.ndarray
    chunks: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return int(self.counts.shape[0])

    @property
    def model_sha256(self) -> str:
        """SHA-256 of the model file that was measured; empty for a model made in memory."""
        return str(self.meta.get("model_sha256", ""))

    def measured(self, model: Model) -> bool:
        """Whether it is of these weights, and of the factors that stand for some of them."""
        mine = self.model_sha256, self.meta.get("factors", "")
        return mine == (model.source.get("sha256", ""), model.source.get("factors", ""))

    def _site(self, layer: int, site: str) -> np.ndarray:
        if site not in SITES:
            raise UsageError(f"no calibration site {site!r}; use one of {list(SITES)}")
        if not 0 <= layer < self.n_layers:
            raise UsageError(f"no layer {layer}; the calibration has {self.n_layers}")
        counts = self.counts[layer, SITES.index(site)]
        if not counts.any():
            raise UsageError(f"site {site!r} was not measured on this model; choose another site")
        return counts

    def threshold(self, layer: int, site: str, sparsity: float) -> float:
        """The magnitude below which a share ``sparsity`` of the values lies.

        Linear interpolation inside the bin. 0 gives 0, which drops nothing.

        Args:
            layer: 0 to n_layers - 1.
            site: one of SITES.
            sparsity: share of values to drop, 0 <= sparsity < 1.
        """
        if not 0.0 <= sparsity < 1.0:
            raise UsageError(f"sparsity {sparsity:g} is not in 0 to 1; 50 % is written 0.5")
        counts = self._site(layer, site)
        if sparsity == 0.0:
            return 0.0
        below = np.concatenate([[0], np.cumsum(counts)])
        wanted = sparsity * below[-1]
        # The first bin whose upper edge has the wanted count below it.
        b = int(np.searchsorted(below[1:], wanted, side="left"))
        edges = bin_edges()
        share = (wanted - below[b]) / counts[b]
        return float(edges[b] + share * (edges[b + 1] - edges[b]))

    def dropped(self, layer: int, site: str, threshold: float) -> float:
        """The share of values below ``threshold``, by the histogram: inverse of threshold()."""
        counts = self._site(layer, site)
        below = np.concatenate([[0], np.cumsum(counts)])
        return float(np.interp(threshold, bin_edges(), below) / below[-1])

    def thresholds(self, sparsity: dict[str, float]) -> np.ndarray:
        """Thresholds of all layers, float32 (layers, 5) in the order of SITES.

        Args:
            sparsity: share to drop at each site; sites left out get 0, which is dense.
        """
        out = np.zeros((self.n_layers, len(SITES)), np.float32)
        for site, share in sparsity.items():
            for layer in range(self.n_layers):
                value = self.threshold(layer, site, share)
                out[layer, SITES.index(site)] = value
        return out

    def save(self, path: Path) -> None:
        """Writes ``path`` (.npz, same input gives the same bytes) and the .json beside it."""
        data = io.BytesIO()
        arrays = {
            "counts": self.counts,
            "chunks": self.chunks,
            "meta": np.frombuffer(json.dumps(self.meta, sort_keys=True).encode(), np.uint8),
        }
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as z:
            for name, array in arrays.items():
                item = io.BytesIO()
                np.save(item, array, allow_pickle=False)
                info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
                info.compress_type = zipfile.ZIP_DEFLATED
                z.writestr(info, item.getvalue())
        # The .npz last: where it is, nothing is measured again.
        write_json(path.with_suffix(".json"), self.readable())
        write_bytes(path, data.getvalue())

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Reads what :meth:`save` wrote.

        Raises:
            InputError: missing, damaged, or written with other bins or sites.
        """
        if not path.is_file():
            raise InputError(f"{path}: no calibration; run `sparseflash calibrate` first")
        try:
            with np.load(path, allow_pickle=False) as z:
                counts, chunks = z["counts"], z["chunks"]
                meta = parse_json(z["meta"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            raise InputError(f"{path} is damaged; run `sparseflash calibrate` again") from e
        shape_ok = counts.ndim == 3 and counts.shape[1:] == (len(SITES), BINS)
        if not shape_ok or counts.dtype != np.int64 or chunks.dtype != np.uint64:
            raise InputError(f"{path} was written by another version; run `sparseflash calibrate`")
        return cls(counts, chunks, meta)

    def readable(self) -> dict[str, Any]:
        """``meta`` and the thresholds at 30 to 90 % of each measured site, as plain data."""
        table: dict[str, dict[str, list[float]]] = {}
        for k, site in enumerate(SITES):
            if self.counts[:, k].any(axis=-1).all():
                table[site] = {
                    f"{p}%": [
                        float(f"{self.threshold(i, site, p / 100):.6g}")
                        for i in range(self.n_layers)
                    ]
                    for p in (30, 40, 50, 60, 70, 80, 90)
                }
        return {**self.meta, "thresholds": table}


# --- text that evaluation must not see ----------------------------------------------------------


def _chunk_hashes(ids: np.ndarray, step: int) -> np.ndarray:
    """Hashes of the chunks of CHUNK tokens that start at 0, step, 2*step, ...: uint64 (n,).

    ids: integer (tokens,). A polynomial modulo 2^64 in mixed token ids.
    """
    ids = np.asarray(ids).astype(np.uint64).ravel()
    n = len(ids) - CHUNK + 1
    if n <= 0:
        return np.empty(0, np.uint64)
    with np.errstate(over="ignore"):
        mixed = (ids + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
        total = np.zeros(len(range(0, n, step)), np.uint64)
        for k in range(CHUNK):
            total = total * np.uint64(0x100000001B3) + mixed[k : n + k : step]
    return total


def assert_disjoint(
    calibration: Calibration, eval_ids: np.ndarray, eval_sha256: str | None = None
) -> None:
    """Refuses evaluation text that calibration saw.

    Every position of ``eval_ids`` is compared with the aligned chunks of the calibration, so any
    run of 63 shared tokens is found wherever it begins, and none shorter than 32.

    Args:
        eval_ids: integer tokens (n,) or windows (m, n), which are checked as one run.
        eval_sha256: SHA-256 of the evaluation text, compared with those of calibration.

    Raises:
        UsageError: they overlap.
    """
    texts = calibration.meta.get("texts", {})
    for name, sha256 in texts.items():
        if eval_sha256 is not None and sha256 == eval_sha256:
            raise UsageError(f"calibration used text {name!r} too; evaluate on another text")
    shared = np.isin(_chunk_hashes(eval_ids, 1), calibration.chunks)
    if shared.any():
        names = ", ".join(texts) or "unnamed"
        raise UsageError(
            f"{int(shared.sum())} runs of {CHUNK} tokens, the first at token "
            f"{int(np.argmax(shared))}, were used by calibration ({names}); "
            "evaluate on another text"
        )


# --- measuring ----------------------------------------------------------------------------------


def calibration_windows(
    model: Model,
    texts: Sequence[str] = DEFAULT_TEXTS,
    tokens: int = DEFAULT_TOKENS,
    window: int = DEFAULT_WINDOW,
    seed: int = 1,
) -> tuple[np.ndarray, dict[str, str]]:
    """Windows of tokens, spread evenly over the texts and over the length of each.

    Each text is cut into as many equal stretches as it gives windows; a window begins at a
    random place of its stretch, so windows never overlap.

    Args:
        texts: names of ``models/texts.yaml``, or files; ``["random"]`` draws the tokens, for
            models that no text means anything to.
        tokens: in all; rounded up to whole windows.
        window: tokens in a window, at most the model's context.
        seed: of the random places.

    Returns:
        ids int64 (windows, window) and the SHA-256 of each text by name.
    """
    if list(texts) == ["random"]:
        drawn = np.random.default_rng(seed).integers(
            0, model.spec.vocab, (-(-tokens // window), min(window, model.spec.context))
        )
        return drawn, {"random": hashlib.sha256(drawn.tobytes()).hexdigest()}
    if model.tokenizer is None:
        raise UsageError(f"model {model.name} carries no tokenizer; give one")
    if not texts or window < CHUNK or tokens < 1:
        raise UsageError(f"calibration needs a text, one token and windows of {CHUNK} or more")
    window = min(window, model.spec.context)
    n = -(-tokens // window)
    rng = np.random.default_rng(seed)
    rows: list[list[int]] = []
    hashes: dict[str, str] = {}
    for k, name in enumerate(texts):
        content = text(name)
        hashes[name] = file_sha256(text_path(name))
        share = len(range(k, n, len(texts)))
        stretch = len(content) // max(share, 1)
        span = min(stretch, window * 8)
        for i in range(share):
            start = i * stretch + int(rng.integers(stretch - span + 1))
            ids = model.tokenizer.encode(content[start : start + span])
            if len(ids) < window:
                raise InputError(
                    f"text {name!r} is too short for {share} windows of {window} tokens; "
                    "give a longer text or fewer tokens"
                )
            rows.append(list(ids[:window]))
    return np.asarray(rows, np.int64), hashes


def activation(kind: Activation, x: torch.Tensor) -> torch.Tensor:
    """act(x), elementwise."""
    from torch.nn import functional as nn

    if kind is Activation.SILU:
        return nn.silu(x)
    if kind is Activation.RELU:
        return nn.relu(x)
    return nn.gelu(x, approximate="tanh" if kind is Activation.GELU_TANH else "none")


def calibrate(
    model: Model,
    ids: np.ndarray,
    window: int = DEFAULT_WINDOW,
    sites: Sequence[str] = SITES,
    texts: Mapping[str, str] | Sequence[str] = (),
    seed: int = 1,
    batch: int = 1,
    runner: TorchModel | None = None,
) -> Calibration:
    """Runs the dense float model over the tokens and counts the magnitudes at the sites.

    Args:
        ids: integer tokens (n,), cut into windows with the tail dropped, or windows (m, window).
        window: tokens in a window, when ``ids`` is flat.
        sites: those to measure; an ungated model has no ``gate`` and no ``act``.
        texts: where the tokens come from, kept for :func:`assert_disjoint`: SHA-256 by name, or
            names of ``models/texts.yaml`` whose files are hashed here.
        seed: the one the windows were drawn with, kept for the record.
        batch: windows in one forward pass.
        runner: the model in torch, when the caller has it already.
    """
    import torch

    from sparseflash.model.torch_model import Hooks, TorchModel

    spec = model.spec
    for site in sites:
        if site not in SITES:
            raise UsageError(f"no calibration site {site!r}; use one of {list(SITES)}")
    ids = np.asarray(ids)
    if ids.ndim == 1:
        window = min(window, len(ids))
        ids = ids[: len(ids) // max(window, 1) * window].reshape(-1, max(window, 1))
    if ids.ndim != 2 or ids.size == 0:
        raise UsageError("calibration has no tokens; give a longer text")
    if ids.min() < 0 or ids.max() >= spec.vocab:
        raise UsageError(f"calibration tokens are outside 0 to {spec.vocab - 1} of {model.name}")
    if ids.shape[1] > spec.context:
        raise UsageError(f"windows of {ids.shape[1]} exceed the context {spec.context}")
    ids = ids.astype(np.int64)
    counts = np.zeros((spec.n_layers, len(SITES), BINS), np.int64)

    def count(layer: int, site: str, values: torch.Tensor) -> None:
        """Called at most once at a time for a layer and site."""
        if site in sites:
            counts[layer, SITES.index(site)] += histogram(values)

    def count_act(layer: int, gate: torch.Tensor) -> None:
        if "act" in sites:
            count(layer, "act", activation(spec.activation, gate.detach()))

    class Count(Hooks):
        """Adds every value that passes to the histograms and changes none."""

        def ffn(
            self, layer: int, gate: torch.Tensor | None, up: torch.Tensor, h: torch.Tensor
        ) -> torch.Tensor:
            count(layer, "up", up)
            count(layer, "h", h)
            if gate is not None and spec.gated:
                count(layer, "gate", gate)
                count_act(layer, gate)
            return h

        def ffn_out(self, layer: int, o: torch.Tensor) -> torch.Tensor:
            count(layer, "down", o)
            return o

    runner, hooks = runner or TorchModel(model), Count()
    with torch.no_grad():
        for start in each("calibrating on windows", range(0, len(ids), batch)):
            runner.hidden(torch.from_numpy(ids[start : start + batch]), hooks)
    meta = {
        "model": model.name,
        "model_sha256": model.source.get("sha256", ""),
        "texts": dict(texts)
        if isinstance(texts, Mapping)
        else {name: file_sha256(text_path(name)) for name in texts},
        "windows_sha256": hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
        "tokens": int(ids.size),
        "window": int(ids.shape[1]),
        "seed": seed,
        "sites": [s for s in SITES if counts[:, SITES.index(s)].any()],
        "tool_version": __version__,
    }
    if "factors" in model.source:
        meta["factors"] = model.source["factors"]
    chunks = [_chunk_hashes(row, CHUNK) for row in ids]
    return Calibration(counts, np.unique(np.concatenate(chunks)), meta)
