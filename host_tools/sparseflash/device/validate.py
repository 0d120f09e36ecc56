"""Compares a device with the integer reference, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseflash.device.link.client import Device
from sparseflash.image.formats import SITES
from sparseflash.image.reference import Reference
from sparseflash.image.sfm import Image


@dataclass
class Difference:
    """The first place where the device and the reference part."""

    position: int
    layer: int
    site: str
    index: int
    device: float
    reference: float

    def __str__(self) -> str:
        return (
            f"position {self.position}, layer {self.layer}, site {self.site}[{self.index}]: "
            f"device {self.device!r}, reference {self.reference!r}"
        )


def validate(
    device: Device,
    image: Image,
    ids: np.ndarray,
    thresholds: np.ndarray,
    progress: Any = None,
    head_rows: int = 0,
    active: list[float] | None = None,
) -> Difference | None:
    """Compares every site of every layer and all logits of ``ids`` bit by bit.

    active: is given the share of active neurons of each layer, over ``ids``.
    """
    want = Reference(image).run(ids, thresholds, head_rows=head_rows)
    if active is not None:
        active += [float(np.count_nonzero(s["h"]) / s["h"].size) for s in want.sites]
    hashes = want.hashes()
    device.reset()
    device.trace(True)
    for p, token in enumerate(ids):
        device.step(int(token))
        wrong = np.argwhere(device.read_trace() != hashes[p])
        if len(wrong):
            layer, site = (int(v) for v in wrong[0])
            return _locate(device, want.sites[layer][SITES[site]][p], ids[: p + 1], layer, site)
        logits = device.logits()
        bad = np.flatnonzero(logits.view(np.uint32) != want.logits[p].view(np.uint32))
        if len(bad):
            i = int(bad[0])
            return Difference(
                p, image.spec.n_layers, "logits", i, float(logits[i]), float(want.logits[p][i])
            )
        if progress is not None:
            progress(p + 1)
    device.trace(False)
    return None


def _locate(device: Device, want: np.ndarray, ids: np.ndarray, layer: int, site: int) -> Difference:
    """Runs the sequence again and fetches the values of the site that differs."""
    device.reset()
    device.tap(layer, site)
    device.prefill([int(i) for i in ids])
    got = device.read_tap()
    bad = np.flatnonzero(got.view(np.uint32) != np.ascontiguousarray(want).view(np.uint32))
    i = int(bad[0]) if len(bad) else 0
    return Difference(len(ids) - 1, layer, SITES[site], i, float(got[i]), float(want[i]))
