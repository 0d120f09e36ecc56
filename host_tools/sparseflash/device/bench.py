"""Benchmark over the link: repetitions, deviation, bytes a token and time by stage."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

from sparseflash.device.link.client import Device

TIMES = {
    "clock": "the device's clock",
    "instructions": "instructions, counted by QEMU -icount shift=0; no model of cycles",
    "cycles": "cycles of the emulator's model: core by its manual, flash by its clocks",
    "none": "none: an emulator's seconds say nothing of the device",
}
"""What the ticks of a board mean: ``time`` of its runner in board.yaml."""


def bench(
    device: Device, prompt: list[int], tokens: int, repetitions: int, time_model: str = "clock"
) -> dict[str, Any]:
    """Greedy generation, repeated; medians with the spread, counters of the last repetition.

    ``tokens_per_second`` is the device's own clock over its steps (None without a clock);
    ``link_tokens_per_second`` is the host's clock over the whole exchange. An emulator has
    neither; where it counts instructions or models cycles, those are given instead.
    At most as many tokens as the KV cache has room for.
    """
    tokens = max(1, min(tokens, device.info().kv_len - len(prompt)))
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
    timed = time_model == "clock"
    rate = device.info().ticks_per_second
    names = ("bytes_early", "bytes_early_used", "bytes_missed")
    early = {f"{k}_per_token": counters[k] / n for k in names if counters["bytes_early"]}
    return {
        "board": device.info().board,
        "model": device.info().model,
        "tokens": tokens,
        "prompt_tokens": len(prompt),
        "repetitions": repetitions,
        "time": TIMES[time_model],
        "tokens_per_second": statistics.median(own) if own and timed else None,
        "deviation": statistics.stdev(own) if len(own) > 1 and timed else None,
        "link_tokens_per_second": statistics.median(wall) if timed else None,
        "instructions_per_token": (
            counters["time_total"] * 10**9 // (rate * n) if time_model == "instructions" else None
        ),
        "cycles_per_token": total / n if time_model == "cycles" else None,
        "bytes_per_token": counters["bytes"] / n,
        "ffn_bytes_per_token": counters["bytes_ffn"] / n,
        "flash_bytes_per_token": counters["bytes_read"] / n,
        **early,
        "reads_per_token": counters["reads"] / n,
        "neurons_per_token": counters["neurons"] / n,
        "share_attention": counters["time_attn"] / total if time_model != "none" else None,
        "share_ffn": counters["time_ffn"] / total if time_model != "none" else None,
        "share_head": counters["time_head"] / total if time_model != "none" else None,
        "share_waiting": counters["time_wait"] / total if time_model != "none" else None,
        "digest": digests[0] if len(set(digests)) == 1 else "differs between repetitions",
    }


def computing_seconds(path: Path) -> float | None:
    """Seconds a token takes without its waits for flash, by a bench.json.

    None when there is none that can be read, or its board has no clock.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return (1 - found["share_waiting"]) / found["tokens_per_second"]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
