"""What is read of a model under a mask: sums over tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparseflash.model.spec import ModelSpec


@dataclass
class Reads:
    """Sums over tokens of what is read, each (layers,); divided by ``tokens`` for a token.

    ``kept`` and ``blocks`` by input site: columns read, and groups of 32 columns with at least
    one of them. ``gate_rows``, ``up_rows``, ``columns`` count neurons; ``column_blocks`` groups of
    32 neurons with at least one live column.
    """

    tokens: int
    kept: dict[str, np.ndarray]
    blocks: dict[str, np.ndarray]
    gate_rows: np.ndarray
    up_rows: np.ndarray
    columns: np.ndarray
    column_blocks: np.ndarray

    @classmethod
    def empty(cls, layers: int) -> Reads:
        def zero() -> np.ndarray:
            return np.zeros(layers)

        return cls(0, {}, {}, zero(), zero(), zero(), zero())

    @classmethod
    def dense(cls, layers: int, ffn: int) -> Reads:
        """One token of the dense model."""
        full = np.full(layers, float(ffn))
        return cls(1, {}, {}, full, full.copy(), full.copy(), np.full(layers, float(-(-ffn // 32))))

    @classmethod
    def dense_of(cls, spec: ModelSpec) -> Reads:
        """One token of the dense model: of its experts, those that the router chooses."""
        used = spec.ffn_dim // spec.experts * spec.experts_used if spec.experts else spec.ffn_dim
        return cls.dense(spec.n_layers, used)

    def plain(self) -> dict[str, object]:
        """As JSON."""
        out: dict[str, object] = {"tokens": self.tokens}
        for name in ("kept", "blocks"):
            out[name] = {k: v.tolist() for k, v in getattr(self, name).items()}
        for name in ("gate_rows", "up_rows", "columns", "column_blocks"):
            out[name] = getattr(self, name).tolist()
        return out

    @classmethod
    def of_plain(cls, d: dict[str, object]) -> Reads:
        def table(name: str) -> dict[str, np.ndarray]:
            value = d[name]
            assert isinstance(value, dict)
            return {k: np.array(v) for k, v in value.items()}

        return cls(
            int(str(d["tokens"])),
            table("kept"),
            table("blocks"),
            np.array(d["gate_rows"]),
            np.array(d["up_rows"]),
            np.array(d["columns"]),
            np.array(d["column_blocks"]),
        )
