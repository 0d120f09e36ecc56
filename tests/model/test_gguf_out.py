"""GGUF copies with ``sparseflash.*`` keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from test_load import gguf_of, some_ids, split_gguf, write_gguf

from conftest import random_model
from sparseflash.base.errors import InputError, UsageError
from sparseflash.model.load import load_model
from sparseflash.model.load.gguf_out import SparseKeys, read_sparse_gguf, write_sparse_gguf
from sparseflash.model.torch_model import TorchModel

KEYS = SparseKeys(
    "h",
    30.0,
    ("gate", "act", "up", "h"),
    np.arange(8, dtype=np.float32).reshape(2, 4) / 7,
    np.stack([np.random.default_rng(i).permutation(96) for i in range(2)]).astype(np.int32),
    bytes(range(256)) * 3,
)


def test_a_copy_has_all_of_the_source_and_the_keys(tmp_path: Path) -> None:
    source, out = tmp_path / "m.gguf", tmp_path / "out.gguf"
    write_gguf(source, random_model(ffn_dim=96))
    write_sparse_gguf(source, out, KEYS)
    old, new = gguf.GGUFReader(source), gguf.GGUFReader(out)
    for name, f in old.fields.items():
        if not name.startswith("GGUF."):
            assert new.fields[name].contents() == f.contents()
            assert new.fields[name].types == f.types
    assert [t.name for t in new.tensors] == [t.name for t in old.tensors]
    for a, b in zip(old.tensors, new.tensors, strict=True):
        assert a.tensor_type == b.tensor_type and list(a.shape) == list(b.shape)
        assert np.array_equal(a.data, b.data)
    more = set(new.fields) - set(old.fields)
    assert more and all(n.startswith("sparseflash.") for n in more)
    back = read_sparse_gguf(out)
    assert back is not None
    assert (back.method, back.percent, back.names) == ("h", 30.0, KEYS.names)
    assert np.array_equal(back.thresholds, KEYS.thresholds)
    assert back.order is not None and np.array_equal(back.order, KEYS.order)
    assert back.predictor == KEYS.predictor
    ids = some_ids(160)
    want = TorchModel(load_model(source)).forward(ids)
    assert torch.equal(TorchModel(load_model(out)).forward(ids), want)


def test_keys_are_replaced_and_may_be_few(tmp_path: Path) -> None:
    source, first, second = (tmp_path / f"{n}.gguf" for n in "abc")
    gguf_of(source, random_model(), "llama", attention__head_count_kv=[4, 4])
    assert read_sparse_gguf(source) is None
    write_sparse_gguf(source, first, KEYS)
    write_sparse_gguf(first, second, replace(KEYS, method="cats", order=None, predictor=b""))
    back = read_sparse_gguf(second)
    assert back is not None and back.method == "cats"
    assert back.order is None and back.predictor == b""
    assert load_model(second).spec.n_kv_heads == 4


def test_what_is_refused(tmp_path: Path) -> None:
    parts = split_gguf(tmp_path, random_model())
    with pytest.raises(UsageError, match="split"):
        write_sparse_gguf(parts[0], tmp_path / "out.gguf", KEYS)
    whole = tmp_path / "whole.gguf"
    with pytest.raises(UsageError, match="source itself"):
        write_sparse_gguf(whole, whole, KEYS)
    (tmp_path / "bad.gguf").write_bytes(whole.read_bytes()[:100])
    with pytest.raises(InputError, match="whole GGUF"):
        write_sparse_gguf(tmp_path / "bad.gguf", tmp_path / "out.gguf", KEYS)
    write_sparse_gguf(whole, tmp_path / "out.gguf", replace(KEYS, names=("gate",)))
    with pytest.raises(InputError, match="damaged"):
        read_sparse_gguf(tmp_path / "out.gguf")
