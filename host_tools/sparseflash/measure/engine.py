"""The generated C in this process, through a shared library (host perplexity and tests)."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from sparseflash.base.errors import MismatchError, SparseflashError
from sparseflash.image.formats import SITES, THRESHOLDS
from sparseflash.image.sfm import Image


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
        )
    ]


class Engine:
    """One model in C. A library holds one state: load each file once a process."""

    def __init__(self, library: Path, image: Image) -> None:
        self.image = image
        self._lib = ctypes.CDLL(str(library.resolve()))
        self._data = image.section_bytes()
        lib = self._lib
        lib.sf_logits.restype = ctypes.POINTER(ctypes.c_float)
        lib.sf_tap_values.restype = ctypes.POINTER(ctypes.c_float)
        lib.sf_get_counters.restype = ctypes.POINTER(Counters)
        lib.sf_trace_hash.restype = ctypes.c_uint32
        lib.sf_library_image(
            self._data.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint32(self._data.size)
        )
        if lib.sf_init():
            raise MismatchError(f"{library} was generated for another image than {image.path}")

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
        if not logits:
            return None
        n = self.image.spec.vocab
        return np.ctypeslib.as_array(self._lib.sf_logits(), (n,)).copy()

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
