"""Benchmark over the link: repetitions, deviation, bytes a token and time by stage."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from sparseflash.base.errors import SparseflashError
from sparseflash.device.link.client import Device

TIMES = {
    "clock": "the device's clock",
    "instructions": "instructions, counted by QEMU -icount shift=0; no model of cycles",
    "cycles": "cycles of the emulator's model: core by its manual, flash by its clocks",
    "none": "none: an emulator's seconds say nothing of the device",
}
"""What the ticks of a board mean: ``time`` of its runner in board.yaml."""


def bench(
    device: Device,
    prompt: list[int],
    tokens: int,
    repetitions: int,
    time_model: str = "clock",
    progress: Callable[[float], None] = lambda _: None,
    draft: bool = False,
) -> dict[str, Any]:
    """Greedy generation, repeated; medians with the spread, counters of the last repetition.

    progress: is told the share that is done. draft: once more as the device decodes by itself,
    with drafts, until the model ends the text.

    ``tokens_per_second`` is the device's own clock over its steps (None without a clock);
    ``link_tokens_per_second`` is the host's clock over the whole exchange. An emulator has
    neither; where it counts instructions or models cycles, those are given instead.
    At most as many tokens as the KV cache has room for.
    """
    tokens = max(1, min(tokens, device.info().kv_len - len(prompt)))
    own, wall, digests = [], [], []
    prefill_ticks, decode_ticks, first_ticks = [], [], []
    counters: dict[str, int] = {}
    for r in range(repetitions):
        device.reset()
        device.counters(clear=True)
        device.prefill(prompt[:-1])
        before = device.counters(clear=True)
        prefill_ticks.append(before["time_total"])
        start = time.perf_counter()
        ids, token = [], prompt[-1]
        for i in range(tokens):
            token = device.step(token)
            ids.append(token)
            if i == 0:
                first_ticks.append(before["time_total"] + device.counters()["time_total"])
            progress((r + (i + 1) / tokens) / repetitions)
        wall.append(tokens / (time.perf_counter() - start))
        counters = device.counters()
        rate = device.info().ticks_per_second
        if rate and counters["time_total"]:
            own.append(counters["tokens"] * rate / counters["time_total"])
        decode_ticks.append(counters["time_total"])
        digests.append(hashlib.sha256(repr(ids).encode()).hexdigest()[:16])
    drafts = _drafts(device, prompt, ids, time_model) if draft else {}
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
        **_named("first_token_{}", statistics.median(first_ticks), rate, time_model),
        "prefill_tokens": len(prompt) - 1,
        "prefill_bytes_per_token": before["bytes"] / max(1, len(prompt) - 1),
        "prefill_ns": _nanoseconds(prefill_ticks, rate, timed),
        "decode_ns": _nanoseconds(decode_ticks, rate, timed),
        "bytes_per_token": counters["bytes"] / n,
        "ffn_bytes_per_token": counters["bytes_ffn"] / n,
        "flash_bytes_per_token": counters["bytes_read"] / n,
        **early,
        **drafts,
        "reads_per_token": counters["reads"] / n,
        "neurons_per_token": counters["neurons"] / n,
        "share_attention": counters["time_attn"] / total if time_model != "none" else None,
        "share_ffn": counters["time_ffn"] / total if time_model != "none" else None,
        "share_head": counters["time_head"] / total if time_model != "none" else None,
        "share_waiting": counters["time_wait"] / total if time_model != "none" else None,
        "digest": digests[0] if len(set(digests)) == 1 else "differs between repetitions",
    }


def _drafts(device: Device, prompt: list[int], ids: list[int], time_model: str) -> dict[str, Any]:
    """A token's figures of a generation with drafts, whose tokens have to be ``ids``."""
    device.reset()
    device.prefill(prompt[:-1])
    device.counters(clear=True)
    found = [token for token, _ in device.generate(prompt[-1:], len(ids))]
    if found != ids[: len(found)]:
        raise SparseflashError("decoding with drafts gave other tokens than without; report this")
    counters = device.counters()
    n, rate = counters["tokens"], device.info().ticks_per_second
    return {
        "draft_tokens": n,
        "drafted_per_token": counters["drafted"] / n,
        "taken_per_token": counters["taken"] / n,
        "draft_bytes_per_token": counters["bytes"] / n,
        "draft_flash_bytes_per_token": counters["bytes_read"] / n,
        **_named("draft_{}_per_token", counters["time_total"] / n, rate, time_model),
    }


def _named(name: str, ticks: float, rate: int, time_model: str) -> dict[str, float]:
    """A figure in what the ticks of the board mean; none where they mean nothing."""
    if time_model == "cycles":
        return {name.format("cycles"): ticks}
    if time_model == "none" or not rate or not ticks:
        return {}
    scale, unit = (1e9, "instructions") if time_model == "instructions" else (1, "seconds")
    return {name.format(unit): scale * ticks / rate}


def _nanoseconds(ticks: list[int], rate: int, timed: bool) -> list[int]:
    """Of each repetition by the device's clock; empty where it says nothing of time."""
    return [t * 10**9 // rate for t in ticks] if timed and rate and all(ticks) else []


def as_llama_bench(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Prefill and decode under the names of llama-bench's JSON, our own figures behind them.

    Times are None where the board has no clock. ``energy_uj_per_token`` is left to a meter.
    """
    out = []
    for kind in ("prefill", "decode"):
        ns = result[f"{kind}_ns"]
        count = result["prefill_tokens" if kind == "prefill" else "tokens"]
        rates = [1e9 * count / t for t in ns]
        own = {k: v for k, v in result.items() if not k.endswith("_ns")}
        if kind == "prefill":
            own = {k: v for k, v in own.items() if "per_token" not in k and "share" not in k}
            own["bytes_per_token"] = result["prefill_bytes_per_token"]
        out.append(
            {
                "build_commit": result.get("version"),
                "model_filename": result["model"],
                "model_type": result["model"],
                "backends": result["board"],
                "n_threads": result.get("threads", 1),
                "n_prompt": count if kind == "prefill" else 0,
                "n_gen": count if kind == "decode" else 0,
                "n_depth": 0 if kind == "prefill" else result["prefill_tokens"],
                "avg_ns": statistics.mean(ns) if ns else None,
                "stddev_ns": statistics.stdev(ns) if len(ns) > 1 else None,
                "avg_ts": statistics.mean(rates) if rates else None,
                "stddev_ts": statistics.stdev(rates) if len(rates) > 1 else None,
                "samples_ns": ns,
                "samples_ts": rates,
                "energy_uj_per_token": None,
                **own,
            }
        )
    return out
