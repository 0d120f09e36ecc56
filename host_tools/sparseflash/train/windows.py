"""Windows of training tokens, drawn from texts by weight."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sparseflash.base.errors import InputError


class Mixture:
    """Draws windows: a text by its weight, then a place in it, both from a seeded generator.

    ``texts`` maps a name to (tokens, weight); weights need not sum to one.
    """

    def __init__(
        self,
        texts: Mapping[str, tuple[np.ndarray, float]],
        window: int,
        device: str,
        seed: int,
    ) -> None:
        kept = {k: (t, w) for k, (t, w) in texts.items() if w > 0 and len(t) > window + 1}
        if not kept:
            raise InputError(
                f"no training text has more than {window} tokens; give longer ones or --window"
            )
        self.window = window
        self.device = device
        tokens = [np.asarray(t).astype(np.int32) for t, _ in kept.values()]
        self.tokens = torch.from_numpy(np.concatenate(tokens)).to(device)
        sizes = torch.tensor([len(t) for t in tokens], device=device)
        self.sizes = sizes
        self.starts = torch.cumsum(sizes, 0) - sizes
        self.weights = torch.tensor([w for _, w in kept.values()], device=device)
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(seed)

    def __len__(self) -> int:
        return len(self.tokens)

    def draw(self, n: int, length: int | None = None) -> Tensor:
        """Token ids (n, length), int64; the window's length by default."""
        length = length or self.window
        g = self.generator
        i = torch.multinomial(self.weights, n, replacement=True, generator=g)
        u = torch.rand(n, device=self.device, generator=g, dtype=torch.float64)
        at = self.starts[i] + (u * (self.sizes[i] - length)).long()
        steps = torch.arange(length, device=self.device)
        return self.tokens[at[:, None] + steps].long()
