"""Small models and places that the tests share."""

from __future__ import annotations

import os

# One thread for each process of the tests: of small matrices torch's threads wait for each other,
# which took six times the processor's time. Set before numpy and torch are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import platform
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseflash.base.files import root
from sparseflash.image.factors import FACTORED, Factors, shape_of
from sparseflash.image.grids import pack_rows, quantize
from sparseflash.image.predictor import Predictor
from sparseflash.model.spec import (
    Layer,
    LayerSpec,
    Model,
    ModelSpec,
    Norm,
    Position,
    Thresholds,
)
from sparseflash.plan.boards import Board, load_board


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write tests/golden from the templates"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their file go to one worker, all others to any.

    Groups come first and single tests last, so that no worker is alone at the end.
    """
    for item in items:
        place = item.nodeid.partition("::")[0]
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        if any(f.scope != "function" and f.baseid == place for some in fixtures for f in some):
            item.add_marker(pytest.mark.xdist_group(place))


def data_folder() -> Path:
    return Path(os.environ.get("SPARSEFLASH_DATA") or root().parent / "shared" / "data")


BITS = [64, 32] if platform.machine() == "x86_64" else [64]
"""Of the addresses of programs that this machine compiles and runs."""


@cache
def flags_of(bits: int) -> list[str]:
    """What compiles a program for this machine with addresses of so many bits."""
    if bits == 64:
        return []
    # Headers of the kernel are in a folder that -m32 does not search.
    flags = [
        "-m32",
        "-msse2",
        "-mfpmath=sse",
        "-idirafter",
        f"/usr/include/{platform.machine()}-linux-gnu",
    ]
    command = ["cc", *flags, "-fsanitize=undefined", "-x", "c", "-", "-o", os.devnull]
    source = b"#include <errno.h>\nint main(void) { return errno; }"
    if subprocess.run(command, input=source, capture_output=True, check=False).returncode:
        pytest.skip("a C library of 32 bits is not installed (libc6-dev-i386, lib32gcc-*-dev)")
    return flags


def random_model(seed: int = 1, n_layers: int = 2, **changes: Any) -> Model:
    """A random model of the default shape, changed by ``changes``."""
    spec = ModelSpec(
        family="llama",
        vocab=160,
        dim=64,
        ffn_dim=172,
        n_layers=n_layers,
        n_heads=8,
        n_kv_heads=4,
        head_dim=8,
        context=256,
        layers=tuple(LayerSpec() for _ in range(n_layers)),
        eos_ids=(2,),
    )
    spec = replace(spec, **changes)
    rng = np.random.default_rng(seed)

    def matrix(rows: int, cols: int) -> np.ndarray:
        return (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)

    def vector(n: int, centre: float = 1.0) -> np.ndarray:
        return (centre + 0.2 * rng.standard_normal(n)).astype(np.float32)

    layers = []
    for _ in range(n_layers):
        layer = Layer(
            attn_norm=vector(spec.dim),
            q_proj=matrix(spec.q_dim, spec.dim),
            k_proj=matrix(spec.kv_dim, spec.dim),
            v_proj=matrix(spec.kv_dim, spec.dim),
            o_proj=matrix(spec.dim, spec.q_dim),
            ffn_norm=vector(spec.dim),
            gate_proj=matrix(spec.ffn_dim, spec.dim),
            up_proj=matrix(spec.ffn_dim, spec.dim),
            down_proj=matrix(spec.dim, spec.ffn_dim),
        )
        if not spec.gated:
            layer.gate_proj = None
        if not spec.pre_norms:
            layer.attn_norm = layer.ffn_norm = None
        if spec.norm is Norm.LAYER:
            layer.attn_norm_bias, layer.ffn_norm_bias = vector(spec.dim, 0.0), vector(spec.dim, 0.0)
        if spec.qk_norm:
            whole = spec.qk_norm_whole
            layer.q_norm = vector(spec.q_dim if whole else spec.head_dim)
            layer.k_norm = vector(spec.kv_dim if whole else spec.head_dim)
        if spec.sandwich_norms:
            layer.post_attn_norm, layer.post_ffn_norm = vector(spec.dim), vector(spec.dim)
        if spec.attn_bias:
            layer.q_bias = vector(spec.q_dim, 0.0)
            layer.k_bias = vector(spec.kv_dim, 0.0)
            layer.v_bias = vector(spec.kv_dim, 0.0)
        if spec.out_bias:
            layer.o_bias = vector(spec.dim, 0.0)
        if spec.ffn_bias:
            layer.gate_bias = vector(spec.ffn_dim, 0.0) if spec.gated else None
            layer.up_bias, layer.down_bias = vector(spec.ffn_dim, 0.0), vector(spec.dim, 0.0)
        if spec.experts:
            layer.router = 2 * matrix(spec.experts, spec.dim)
        layers.append(layer)
    head = None if spec.tied_head else matrix(spec.vocab, spec.dim)
    return Model(
        spec=spec,
        embed=rng.standard_normal((spec.vocab, spec.dim)).astype(np.float32),
        layers=layers,
        final_norm=vector(spec.dim),
        head=head,
        final_norm_bias=vector(spec.dim, 0.0) if spec.norm is Norm.LAYER else None,
        head_bias=vector(spec.vocab, 0.0) if spec.head_bias else None,
        positions=matrix(spec.context + spec.position_offset, spec.dim)
        if spec.position is Position.LEARNED
        else None,
        name="random",
    )


def random_predictor(spec: ModelSpec, rank: int, ahead: bool = False, seed: int = 4) -> Predictor:
    """A predictor of random factors."""
    rng = np.random.default_rng(seed)

    def rows(n: int, cols: int) -> np.ndarray:
        w = rng.standard_normal((spec.n_layers, n, cols)) / np.sqrt(cols)
        return np.stack([pack_rows(quantize(m.astype(np.float32), "q4")) for m in w])

    n = spec.ffn_dim
    b, gate = rows(rank, spec.dim), rows(n, rank)
    return Predictor(b, gate if spec.gated else gate[:, :0], rows(n, rank), ahead)


MIXED_RANKS = ((32, 0, 64, 32, 64, 0), (0, 32, 0, 0, 32, 96), (0,) * 6)
"""Ranks of q, k, v, o, gate and up by layer, for tests."""


def random_thresholds(model: Model) -> Model:
    """The model with thresholds of its own in every layer; its spec says that it has them."""
    rng = np.random.default_rng(3)
    for layer in model.layers:
        sizes = (model.spec.dim, model.spec.ffn_dim, model.spec.ffn_dim)
        parts = (rng.random(n).astype(np.float32) * f for n, f in zip(sizes, (1.0, 0.1, 0.1)))
        layer.thresholds = Thresholds(*(np.asarray(p, np.float32) for p in parts))
    return model


def random_factors(spec: ModelSpec, attn: str, ffn: str, seed: int = 6) -> Factors:
    """Random factors of MIXED_RANKS on the grids ``attn`` and ``ffn``."""
    rng = np.random.default_rng(seed)
    rows = {}
    for i in range(spec.n_layers):
        for name, rank in zip(FACTORED, MIXED_RANKS[i % 3]):
            n, cols = shape_of(spec, name)
            fmt = attn if name in "qkvo" else ffn
            pair = [rng.standard_normal(s) / np.sqrt(s[1]) for s in ((rank, cols), (n, rank))]
            if rank:
                b, a = (pack_rows(quantize(m.astype(np.float32), fmt)) for m in pair)
                rows[i, name] = b, a
    return Factors(rows)


def half_ram(memory_of: Callable[[int | None], dict[str, int]]) -> int:
    """RAM that keeps about half of the weights: ``memory_of`` is the memory of a plan for a RAM.

    A smaller RAM also takes smaller blocks of a prompt, so it is found in steps.
    """
    memory = memory_of(None)
    half = memory["pinned weights"] // 2
    while memory["pinned weights"] > half + half // 8:
        ram = memory["total"] - (memory["pinned weights"] - half)
        memory = memory_of(ram)
    return ram


def make_workspace(folder: Path, level: str = "-O1") -> Path:
    """A checkout of its own in ``folder``: sources and downloads are the real ones, build is not.

    Use it as SPARSEFLASH_ROOT. ``models`` and ``firmware/port`` are folders, so a test can add to
    them. Objects of kernels know nothing of a model, so they are compiled once for all checkouts.
    ``level`` is the optimiser's for programs of this machine.
    """
    base = folder / "checkout"
    (base / "models").mkdir(parents=True)
    (base / "firmware" / "port").mkdir(parents=True)
    (base / ".cache").mkdir()
    cpus = (root() / "firmware" / "port" / "cpus.yaml").read_text(encoding="utf-8")
    native = "native: {tier: native, cc: cc, cflags: [-O3]"
    assert native in cpus
    cpus = cpus.replace(native, native.replace("-O3", level))
    (base / "firmware" / "port" / "cpus.yaml").write_text(cpus, encoding="utf-8")
    for name in ("codegen_templates", "docs"):
        (base / name).symlink_to(root() / name)
    for place in ("models", "firmware", "firmware/port", ".cache"):
        for path in (root() / place).glob("*"):
            target = base / place / path.name
            if not target.exists():
                target.symlink_to(path)
    (root() / "build" / "kernels").mkdir(parents=True, exist_ok=True)
    (base / "build").mkdir()
    (base / "build" / "kernels").symlink_to(root() / "build" / "kernels")
    (folder / "shared").mkdir()
    (folder / "shared" / "data").symlink_to(data_folder())
    return base


@pytest.fixture(scope="session")
def host() -> Board:
    return load_board("host")


def _missing_tools(terminalreporter: Any) -> list[str]:
    """Reasons of skips for want of a tool that make setup-boards installs."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = {str(r.longrepr[2]) for r in reports if isinstance(r.longrepr, tuple)}
    return sorted(r for r in reasons if "is not installed" in r and "Debian has none" not in r)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reason in _missing_tools(terminalreporter):
        terminalreporter.write_line(f"not tested: {reason}; make setup-boards installs it")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under CI=true a missing tool is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter and _missing_tools(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
