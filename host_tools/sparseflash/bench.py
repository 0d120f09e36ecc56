"""Benchmark over the link: repetitions, deviation, bytes a token and time by stage."""

from __future__ import annotations

import hashlib
import statistics
import time
from typing import Any

from sparseflash.link.client import Device


def bench(device: Device, prompt: list[int], tokens: int, repetitions: int) -> dict[str, Any]:
    """Greedy generation, repeated; medians with the spread, counters of the last repetition.

    ``tokens_per_second`` is the device's own clock over its steps (None without a clock);
    ``link_tokens_per_second`` is the host's clock over the whole exchange.
    """
    own, wall, digests = [], [], []
    counters: dict[str, int] = {}
    for _ in range(repetitions):
        device.reset()
        device.prefill(prompt[:-1])
        device.counters(clear=True)
        start = time.perf_counter()
        ids, token = [], prompt[-1]
        for _ in range(tokens):
            token = device.step(token)
            ids.append(token)
        wall.append(tokens / (time.perf_counter() - start))
        counters = device.counters()
        rate = device.info().ticks_per_second
        if rate and counters["time_total"]:
            own.append(counters["tokens"] * rate / counters["time_total"])
        digests.append(hashlib.sha256(repr(ids).encode()).hexdigest()[:16])
    n, total = counters["tokens"], counters["time_total"] or 1
    return {
        "board": device.info().board,
        "model": device.info().model,
        "tokens": tokens,
        "prompt_tokens": len(prompt),
        "repetitions": repetitions,
        "tokens_per_second": statistics.median(own) if own else None,
        "deviation": statistics.stdev(own) if len(own) > 1 else 0.0,
        "link_tokens_per_second": statistics.median(wall),
        "bytes_per_token": counters["bytes"] / n,
        "ffn_bytes_per_token": counters["bytes_ffn"] / n,
        "reads_per_token": counters["reads"] / n,
        "neurons_per_token": counters["neurons"] / n,
        "share_attention": counters["time_attn"] / total,
        "share_ffn": counters["time_ffn"] / total,
        "share_head": counters["time_head"] / total,
        "digest": digests[0] if len(set(digests)) == 1 else "differs between repetitions",
    }
