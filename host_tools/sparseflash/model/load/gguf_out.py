"""A copy of a GGUF file that also says which neurons may be dropped, under ``sparseflash.*`` keys.

Tensors and every other key stay as they are, so other programs load the copy as they load the
source: they pass over keys that they do not know. docs/MODELS.md lists the keys.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from sparseflash.base.errors import InputError, UsageError
from sparseflash.base.files import whole
from sparseflash.model.checkpoint import parts_of

PREFIX = "sparseflash."
VERSION = 1


@dataclass(frozen=True)
class SparseKeys:
    """What the keys hold."""

    method: str
    percent: float
    names: tuple[str, ...]
    """Of the thresholds: sites of a layer."""
    thresholds: np.ndarray
    """float32 (layers, names); 0 drops nothing at that site."""
    order: np.ndarray | None = None
    """int32 (layers, ffn), neurons of the file in the order in which they should lie in flash."""
    predictor: bytes = b""
    """An .npz of the predictor that the method needs; empty where it needs none."""


def write_sparse_gguf(source: Path, out: Path, keys: SparseKeys) -> None:
    """Writes ``out``: ``source`` with the keys, which replace older ones of their name.

    Raises:
        UsageError: a split file, or the source itself as the target.
        InputError: the source is damaged.
    """
    if len(parts_of(source)) > 1:
        raise UsageError(f"{source} is split; merge it before keys are added")
    if out.exists() and out.samefile(source):
        raise UsageError(f"{out} is the source itself; give another name")
    try:
        reader = gguf.GGUFReader(source)
    except Exception as e:
        raise InputError(
            f"{source}: not a whole GGUF file ({type(e).__name__}); download it again"
        ) from e
    arch = reader.fields["general.architecture"].contents()
    with whole(out) as temporary:
        w = gguf.GGUFWriter(temporary, str(arch), endianess=reader.endianess)
        for name, f in reader.fields.items():
            written = name.startswith(("GGUF.", PREFIX)) or name == "general.architecture"
            if not written:
                sub = f.types[-1] if f.types[0] == gguf.GGUFValueType.ARRAY else None
                w.add_key_value(name, f.contents(), f.types[0], sub_type=sub)
        _add(w, keys)
        for t in reader.tensors:
            w.add_tensor_info(t.name, t.data.shape, t.data.dtype, t.data.nbytes, t.tensor_type)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_ti_data_to_file()
        for t in reader.tensors:
            w.write_tensor_data(t.data)
        w.close()


def _add(w: Any, keys: SparseKeys) -> None:
    w.add_uint32(PREFIX + "version", VERSION)
    w.add_string(PREFIX + "method", keys.method)
    w.add_float32(PREFIX + "percent", keys.percent)
    w.add_array(PREFIX + "threshold_names", list(keys.names))
    w.add_uint32(PREFIX + "layers", len(keys.thresholds))
    w.add_array(PREFIX + "thresholds", [float(v) for v in keys.thresholds.reshape(-1)])
    if keys.order is not None:
        w.add_array(PREFIX + "neuron_order", [int(v) for v in keys.order.reshape(-1)])
    if keys.predictor:
        w.add_string(PREFIX + "predictor", base64.b64encode(keys.predictor).decode())


def read_sparse_gguf(path: Path) -> SparseKeys | None:
    """The keys of a file, or None when it has none.

    Raises:
        InputError: the file or its keys are damaged, or of a later version.
    """
    try:
        fields = gguf.GGUFReader(path).fields
    except Exception as e:
        raise InputError(
            f"{path}: not a whole GGUF file ({type(e).__name__}); download it again"
        ) from e

    def get(key: str, default: Any = None) -> Any:
        f = fields.get(PREFIX + key)
        return default if f is None else f.contents()

    version = get("version")
    if version is None:
        return None
    if version != VERSION:
        raise InputError(f"{path}: its sparseflash keys are of version {version}, not {VERSION}")
    try:
        layers, names = int(get("layers")), tuple(str(n) for n in get("threshold_names"))
        thresholds = np.array(get("thresholds"), np.float32).reshape(layers, len(names))
        order = get("neuron_order")
        return SparseKeys(
            str(get("method")),
            float(get("percent")),
            names,
            thresholds,
            None if order is None else np.array(order, np.int32).reshape(layers, -1),
            base64.b64decode(get("predictor", ""), validate=True),
        )
    except (TypeError, ValueError) as e:
        raise InputError(f"{path}: its sparseflash keys are damaged ({e}); write it again") from e
