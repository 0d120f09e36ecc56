"""Plain types of the image: what a person chooses for each part, and the shapes of projections."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparseflash.base.errors import UsageError
from sparseflash.model.spec import ModelSpec

ORDERS = ("file", "coactivation")
"""Of the neurons in RECORDS."""
MATRICES = ("qkv", "o", "gate", "up")
"""What a layer can store by columns: q, k and v together, and the others each."""
BITS = (1, 2, 3, 4)
"""Of a proxy."""
FACTORED = ("q", "k", "v", "o", "gate", "up")
"""Projections that can be stored so; columns of down_proj are read for live neurons."""
SITES = ("attn_in", "q", "attn", "ffn_in", "h", "ffn_out", "residual")
"""Tensors of a layer that a device hashes and hands out, in this order."""
INPUTS = ("q", "k", "v", "o", "xg", "xu")
"""Inputs of projections that a threshold can drop."""
THRESHOLDS = ("gate", "act", "up", "h", "down", "guess", *INPUTS)
"""What each threshold of a layer compares with, in this order."""
Ranks = tuple[tuple[int, ...], ...]
"""By layer, in the order of FACTORED; 0 is a whole matrix."""
BY_ROWS = (
    "projections in two factors are stored by rows in the split layout; drop no inputs of matrices "
    "with them"
)
"""Why methods that drop inputs are refused."""


def shape_of(spec: ModelSpec, name: str) -> tuple[int, int]:
    """Outputs and inputs of a projection of FACTORED."""
    outputs = {"q": spec.q_dim, "k": spec.kv_dim, "v": spec.kv_dim, "o": spec.dim}
    inputs = {"o": spec.q_dim, "gate": spec.gate_width, "up": spec.up_width}
    return outputs.get(name, spec.ffn_dim), inputs.get(name, spec.dim)


def check_order(order: str) -> None:
    """Refuses what is not of ORDERS."""
    if order not in ORDERS:
        raise UsageError(f"order {order!r} is unknown; there are {', '.join(ORDERS)}")


@dataclass(frozen=True)
class Formats:
    """Grid of each part: attention, FFN, embedding and head."""

    attn: str = "q4"
    ffn: str = "q4"
    embed: str = "q8"
    layout: str = "joint"
    """FFN records: ``joint`` keeps a neuron contiguous, ``split`` keeps its gate row, up row and
    down column in a plane each, for flash that is read in large blocks."""
    order: str = "file"
    """Neurons as in the source (``file``), or ``coactivation`` within their group of 32."""
    head_proxy: str = ""
    """``q4`` stores the head a second time on that grid, for a screened head."""
    guess: int = 0
    """Bits of the proxies of gate and up that choose neurons before they are read; 0 has none."""
    signs: bool = False
    """Signs of gate choose the neurons of a ReLU model instead."""
    rank: int = 0
    """Rank of the predictor that chooses neurons before they are read; 0 has none."""
    ahead: bool = False
    """It reads the normed input of attention, not of the FFN."""
    predictor: str = ""
    """Its digest, so that an image of another one is packed again."""
    guessed: tuple[bool, ...] = ()
    """Layers that have such a proxy or predictor; empty when all have."""
    down: str = "columns"
    """down_proj by ``columns``, so that those of dropped neurons are not read, or by ``rows``."""
    columns: tuple[str, ...] = ()
    """By layer, which of MATRICES are stored by columns, with spaces between (``"qkv gate"``), for
    methods that drop their inputs; empty when no layer has any."""
    ranks: Ranks = ()
    """Projections stored as two factors; empty when none is."""
    factors: str = ""
    """Digest of those factors, so that an image of others is packed again."""

    def with_gate_by_columns(self, layers: int) -> Formats:
        """Those of a model with thresholds on the inputs of gate: its columns are read alone."""
        lines = self.columns or ("",) * layers
        return replace(self, columns=tuple(" ".join(sorted({*x.split(), "gate"})) for x in lines))

    def grid_of(self, name: str) -> str:
        """Grid of a projection: q, k, v, o, gate, up or down."""
        return self.attn if name in "qkvo" else self.ffn

    def rank_of(self, layer: int, name: str) -> int:
        """Rank of a projection; 0 for a whole matrix."""
        factored = self.ranks and name in FACTORED
        return self.ranks[layer][FACTORED.index(name)] if factored else 0

    @property
    def most_rank(self) -> int:
        """Of the predictor and of all factors."""
        return max([self.rank, *(max(r) for r in self.ranks)])

    @property
    def guesses(self) -> bool:
        """Neurons are chosen before they are read."""
        return self.guess > 0 or self.rank > 0 or self.signs

    def guesses_in(self, layer: int) -> bool:
        """Whether a layer's neurons can be chosen before they are read."""
        return self.guesses and (not self.guessed or self.guessed[layer])

    def by_columns(self, layer: int, matrix: str) -> bool:
        """Whether a layer stores one of MATRICES by columns."""
        return bool(self.columns) and matrix in self.columns[layer].split()
