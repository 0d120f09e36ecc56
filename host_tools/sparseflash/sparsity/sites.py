"""Where activations are dropped, what is compared, and which weights a drop leaves unread.

========  ===================================  ==========================================
site      tensor                               weights that a drop leaves unread
========  ===================================  ==========================================
``q k v`` normed input of attention            that column of the projection
``o``     heads side by side                   that column of o_proj
``xg xu`` normed input of the FFN              that column of gate_proj, of up_proj
``gate``  gate projection, before activation   the up row and the down column
``act``   act(gate)                            the up row and the down column
``up``    up projection                        the down column
``h``     act(gate) * up                       the down column
``down``  output of down_proj                  nothing: it is computed when it is known
========  ===================================  ==========================================

A score is the magnitude, or the magnitude times the norm of the column it meets, ||W[:, i]||
(WINA, and the Sparsing Law's CETT for ``h``), or times the root mean square of the gradient there
(``fisher``, see ``gradients``). Sites that look at the same tensor with the same
score drop the same entries at the same level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparseflash.model.spec import ModelSpec


@dataclass(frozen=True)
class Site:
    """A place where entries of a tensor are dropped."""

    name: str
    tensor: str
    """Hook that sees the tensor: attn_in, heads, ffn_in, gate, act, up, h or down."""
    matrix: str = ""
    """The projection whose column an entry meets."""

    def width(self, spec: ModelSpec) -> int:
        """Entries of the tensor."""
        if self.tensor in ("attn_in", "ffn_in", "down"):
            return spec.dim
        return spec.q_dim if self.tensor == "heads" else spec.ffn_dim


SITES = {
    s.name: s
    for s in (
        Site("q", "attn_in", "q_proj"),
        Site("k", "attn_in", "k_proj"),
        Site("v", "attn_in", "v_proj"),
        Site("o", "heads", "o_proj"),
        Site("xg", "ffn_in", "gate_proj"),
        Site("xu", "ffn_in", "up_proj"),
        Site("gate", "gate"),
        Site("act", "act"),
        Site("up", "up"),
        Site("h", "h", "down_proj"),
        Site("down", "down"),
    )
}
INPUTS = ("q", "k", "v", "o", "xg", "xu", "h")
"""The seven matrix inputs of a block, as TEAL counts them."""
MATRIX_SITES = {"q": "q", "k": "k", "v": "v", "o": "o", "gate": "xg", "up": "xu"}
"""Site of each projection that ``Hooks.matrix_in`` names; ``down`` is handled with the FFN."""

WEIGHTED = ("attn_in", "heads", "ffn_in", "act", "h")
"""Tensors whose entries the score ``fisher`` weighs."""

Use = dict[str, np.ndarray]
"""Expected share of rows that a token reads, (layers,), by kind of part; of inputs by their site
(``q``, ``k``, ``v``, ``o``, ``xg``, ``xu``). What is not named is read whole."""


def key(site: str, score: str) -> str:
    """Name of a distribution: sites that share tensor and score share it."""
    s = SITES[site]
    if score == "norm" and s.matrix:
        return f"{s.tensor}*{s.matrix}"
    if score == "fisher" and s.tensor in WEIGHTED:
        return f"{s.tensor}*fisher"
    return s.tensor
