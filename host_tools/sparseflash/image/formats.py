"""Plain types of the image: what a person chooses, and the shapes of projections."""

from __future__ import annotations

from dataclasses import dataclass

from sparseflash.base.errors import UsageError
from sparseflash.model.spec import ModelSpec

ORDERS = ("file", "coactivation")
"""Of the neurons in RECORDS."""
MATRICES = ("qkv", "o", "gate", "up")
"""What a layer can store by columns: q, k and v together, and the others each."""
BITS = (1, 2, 3, 4)
"""Of a proxy."""
FACTORED = ("q", "k", "v", "o", "gate", "up")
"""Projections that can be stored so; columns of down_proj are read for active neurons."""
SITES = ("attn_in", "q", "attn", "ffn_in", "h", "ffn_out", "residual")
"""Tensors of a layer that a device hashes and hands out, in this order."""
INPUTS = ("q", "k", "v", "o", "xg", "xu")
"""Inputs of projections that a threshold can drop."""
THRESHOLDS = ("gate", "act", "up", "h", "down", "predictor", *INPUTS)
"""What each threshold of a layer compares with, in this order."""
MET = {"q": "q", "k": "k", "v": "v", "o": "o", "xg": "gate", "xu": "up", "h": "down"}
"""Projection whose columns the entries of an input, or of h, meet."""
BY_ROWS = "projections in two factors are stored by rows; drop no inputs of matrices with them"
"""Why methods that drop inputs are refused."""


def shape_of(spec: ModelSpec, name: str) -> tuple[int, int]:
    """Outputs and inputs of a projection of FACTORED."""
    outputs = {"q": spec.q_dim, "k": spec.kv_dim, "v": spec.kv_dim, "o": spec.dim}
    inputs = {"o": spec.q_dim, "gate": spec.gate_width, "up": spec.up_width}
    return outputs.get(name, spec.ffn_dim), inputs.get(name, spec.dim)


def width_of(spec: ModelSpec, site: str) -> int:
    """Entries of an input or of h: columns of its projection of MET."""
    return spec.ffn_dim if site == "h" else shape_of(spec, MET[site])[1]


def check_order(order: str) -> None:
    """Refuses what is not of ORDERS."""
    if order not in ORDERS:
        raise UsageError(f"order {order!r} is unknown; there are {', '.join(ORDERS)}")


@dataclass(frozen=True)
class Formats:
    """What a person chooses of an image: the grid of each part, and the order of neurons."""

    attn: str = "q4"
    ffn: str = "q4"
    embed: str = "q8"
    order: str = "file"
    """Neurons as in the source (``file``), or ``coactivation`` within their group of 32."""
    screened: bool = False
    """The head is stored a second time on q4, for a screened head."""

    def grid_of(self, name: str) -> str:
        """Grid of a projection: q, k, v, o, gate, up or down."""
        return self.attn if name in "qkvo" else self.ffn
