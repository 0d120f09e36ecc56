"""The generated C in this process, through a shared library (host perplexity and tests)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparseflash.base.errors import MismatchError, SparseflashError
from sparseflash.image.formats import SITES, THRESHOLDS
from sparseflash.image.sfm import Image

NEXT = 8
"""SF_NEXT of sf_runtime.h."""


class Counters(ctypes.Structure):
    """sf_counters of sf_runtime.h."""

    _fields_ = [
        (n, ctypes.c_uint64)
        for n in (
            "tokens",
            "bytes",
            "bytes_ffn",
            "reads",
            "neurons",
            "time_attn",
            "time_ffn",
            "time_head",
            "time_total",
            "time_wait",
            "bytes_read",
            "bytes_early",
            "bytes_early_used",
            "bytes_missed",
            "drafted",
            "taken",
        )
    ]


class Info(ctypes.Structure):
    """sf_info of sf_runtime.h."""

    _fields_ = [
        *((n, ctypes.c_char_p) for n in ("board", "model")),
        *((n, ctypes.POINTER(ctypes.c_uint8)) for n in ("model_sha", "plan_digest")),
        *((n, ctypes.c_uint32) for n in ("vocab", "dim", "ffn_dim", "n_layers", "n_heads")),
        *((n, ctypes.c_uint32) for n in ("n_kv_heads", "head_dim", "kv_len", "block")),
        *((n, ctypes.c_uint32) for n in ("arena_bytes", "ticks_per_second")),
    ]


def _in_large_pages(data: np.ndarray) -> np.ndarray:
    """A copy where memory has room for two: numpy asks for pages of 2 MB, and of those a
    processor remembers all. Images of less than 8 MB need none."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    return np.array(data) if 8 << 20 <= data.nbytes <= free // 2 else data


class Engine:
    """One model in C. A library holds one state: load each file once a process."""

    def __init__(self, library: Path, image: Image) -> None:
        self.image = image
        self._lib = ctypes.CDLL(str(library.resolve()))
        self._data = _in_large_pages(image.section_bytes())
        lib = self._lib
        lib.sf_logits.restype = ctypes.POINTER(ctypes.c_float)
        lib.sf_tap_values.restype = ctypes.POINTER(ctypes.c_float)
        lib.sf_get_info.restype = ctypes.POINTER(Info)
        lib.sf_get_counters.restype = ctypes.POINTER(Counters)
        lib.sf_trace_hash.restype = ctypes.c_uint32
        lib.sf_use_tier.restype = ctypes.c_bool
        lib.sf_library_image(
            self._data.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint32(self._data.size)
        )
        if lib.sf_init():
            raise MismatchError(f"{library} was generated for another image than {image.path}")
        self.info: Info = lib.sf_get_info().contents
        self.most: int = self.info.block
        """Most tokens that go through the layers together."""

    def reset(self) -> None:
        self._lib.sf_reset()

    def set_thresholds(self, thresholds: np.ndarray) -> None:
        """float32 (layers, 12); zeros are dense."""
        t = np.ascontiguousarray(thresholds, np.float32)
        for i, row in enumerate(t):
            values = row.ctypes.data_as(ctypes.c_void_p)
            if self._lib.sf_set_thresholds(ctypes.c_uint32(i), values):
                raise SparseflashError(f"layer {i}: thresholds {row} are not magnitudes")

    def step(self, token: int, logits: bool = True) -> np.ndarray | None:
        """Runs one token; float32 (vocab,) when asked."""
        code = self._lib.sf_step(ctypes.c_uint32(token), ctypes.c_bool(logits))
        if code:
            raise SparseflashError(f"sf_step({token}) answered {code}")
        return self.logits() if logits else None

    def prefill(self, tokens: Sequence[int], logits: bool = True) -> np.ndarray | None:
        """Runs tokens, weights read once a block; float32 (vocab,) of the last when asked."""
        ids = np.ascontiguousarray(tokens, np.uint32)
        code = self._lib.sf_prefill(
            ids.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint32(ids.size), ctypes.c_bool(logits)
        )
        if code:
            raise SparseflashError(f"sf_prefill of {ids.size} tokens answered {code}")
        return self.logits() if logits else None

    def block(self, tokens: Sequence[int]) -> np.ndarray:
        """Runs tokens together, at most ``most`` of them; float32 (tokens, vocab)."""
        self.prefill(tokens, False)
        out = np.empty((len(tokens), self.image.spec.vocab), np.float32)
        code = self._lib.sf_block_logits(out.ctypes.data_as(ctypes.c_void_p))
        if code:
            raise SparseflashError(f"sf_block_logits answered {code}")
        return out

    def greedy(self, token: int, most: int) -> list[int]:
        """Runs a token and drafts: 1 to ``most`` that follow, all but the last have run."""
        out, n = (ctypes.c_uint32 * NEXT)(), ctypes.c_uint32()
        code = self._lib.sf_greedy(
            ctypes.c_uint32(token), ctypes.c_uint32(most), out, ctypes.byref(n)
        )
        if code:
            raise SparseflashError(f"sf_greedy({token}) answered {code}")
        return list(out[: n.value])

    def rewind(self, position: int) -> None:
        self._lib.sf_rewind(ctypes.c_uint32(position))

    def logits(self) -> np.ndarray:
        """float32 (vocab,) of the last token that ran with them."""
        n = self.image.spec.vocab
        return np.ctypeslib.as_array(self._lib.sf_logits(), (n,)).copy()

    def threads(self, n: int) -> None:
        """Starts a pool of ``n`` threads, 0: one for each core; once."""
        self._lib.sf_threads(ctypes.c_uint32(n))

    def use_tier(self, name: str) -> bool:
        """Takes a tier of kernels by its name; False where this CPU does not run it."""
        return bool(self._lib.sf_use_tier(name.encode()))

    def trace(self, on: bool) -> None:
        self._lib.sf_trace_enable(ctypes.c_bool(on))

    def hashes(self) -> np.ndarray:
        """uint32 (layers, sites) of the last step."""
        n = self.image.spec.n_layers
        return np.array(
            [[self._lib.sf_trace_hash(i, s) for s in range(len(SITES))] for i in range(n)],
            np.uint32,
        )

    def tap(self, layer: int, site: int) -> None:
        self._lib.sf_tap_set(ctypes.c_uint32(layer), ctypes.c_uint32(site))

    def tapped(self) -> np.ndarray:
        n = ctypes.c_uint32()
        p = self._lib.sf_tap_values(ctypes.byref(n))
        return np.ctypeslib.as_array(p, (n.value,)).copy()

    def counters(self, clear: bool = False) -> dict[str, int]:
        c = self._lib.sf_get_counters().contents
        out = {field[0]: int(getattr(c, field[0])) for field in Counters._fields_}
        if clear:
            self._lib.sf_counters_clear()
        return out


def dense_thresholds(image: Image) -> np.ndarray:
    return np.zeros((image.spec.n_layers, len(THRESHOLDS)), np.float32)
