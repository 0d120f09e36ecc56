"""Decoding with RAM smaller than the model, beside llama.cpp under the same memory cgroup.

    .venv/bin/python tests/bench/ram_cap.py [--caps 70,40] [--heads exact,64] [--peer LLAMA_BENCH]

Both decode SmolLM2-135M from the same Q4_1 weights on one thread, each alone in a fresh cgroup with
the page cache dropped; the runs alternate and medians are printed with their ratio. The peer is
built from llama-cpp-python's PyPI source distribution. Ours answers a question token by token and
again with drafts, and both must say the same. Needs root, a writable memory cgroup and no
swap; says so and stops where one is missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from peers import build_peer

from sparseflash.base.errors import TooSmallError
from sparseflash.base.files import root, write_json
from sparseflash.device.host_board import start_host_device
from sparseflash.device.link.client import Device
from sparseflash.image.screen import head_rows
from sparseflash.model import recipes
from sparseflash.pipeline import device as on_device
from sparseflash.pipeline import stages as pipeline
from sparseflash.pipeline.places import Places
from sparseflash.plan.boards import load_board
from sparseflash.plan.kept import plan_digest

TOKENS = 32
QUESTION = (
    "Fix the spelling of this text: The litle dog runs fast in the gren park and the litle dog "
    "plays with a bal in the gren park every day."
)
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class Cgroup:
    """A fresh memory cgroup, version 1 or 2."""

    def __init__(self, cap: int) -> None:
        v1 = (V1 / "memory.limit_in_bytes").exists()
        self.path = (V1 if v1 else V2) / f"ram_cap_{os.getpid()}_{time.monotonic_ns()}"
        self.path.mkdir()
        limit = "memory.limit_in_bytes" if v1 else "memory.max"
        self.peak_file = "memory.max_usage_in_bytes" if v1 else "memory.peak"
        (self.path / limit).write_text(str(cap))

    def enter(self) -> None:
        """In the child, before exec."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def close(self) -> int:
        """Peak bytes; removes the group."""
        peak = int((self.path / self.peak_file).read_text())
        for _ in range(50):
            try:
                self.path.rmdir()
                break
            except OSError:
                time.sleep(0.1)
        return peak


def need(reason: str | None) -> None:
    if reason:
        print(f"skipped: {reason}")
        sys.exit(0)


def check_machine() -> None:
    need(None if os.geteuid() == 0 else "memory cgroups need root")
    try:
        Cgroup(1 << 30).close()
    except OSError as e:
        need(f"memory cgroups are not writable here ({e})")
    swaps = Path("/proc/swaps").read_text().splitlines()
    need("swap is on" if len(swaps) > 1 else None)


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def run_peer(program: Path, model: Path, cap: int, tokens: int) -> dict[str, float]:
    drop_caches()
    group = Cgroup(cap)
    command = [str(program), "-m", str(model), "-t", "1", "-p", "0", "-n", str(tokens), "-r", "1"]
    done = subprocess.run(
        [*command, "-o", "json", "--no-warmup"],
        capture_output=True,
        text=True,
        preexec_fn=group.enter,
        check=False,
    )
    peak = group.close()
    found = re.search(r'"avg_ts": ([0-9.]+)', done.stdout)
    return {"rate": float(found[1]) if found else 0.0, "peak": peak}


def disk_bandwidth(path: Path) -> float:
    """Bytes a second of 256 KiB reads past the page cache, eight in flight (threads)."""
    import mmap
    import threading

    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    size, block, count = os.fstat(fd).st_size, 1 << 18, 8
    blocks = size // block

    def walk(k: int) -> None:
        buffer = mmap.mmap(-1, block)
        for i in range(k, blocks, count):
            os.preadv(fd, [buffer], i * block)

    start = time.perf_counter()
    threads = [threading.Thread(target=walk, args=(k,)) for k in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    os.close(fd)
    return blocks * block / (time.perf_counter() - start)


def answer(device: Device, prompt: list[int]) -> tuple[list[int], float]:
    """Tokens of a greedy answer with drafts, and its seconds less those of the prompt."""
    device.reset()
    device.prefill(prompt, logits=True)
    device.counters(clear=True)
    start = time.perf_counter()
    tokens = [token for token, _ in device.generate([], TOKENS)]
    return tokens, time.perf_counter() - start


def one_by_one(device: Device, prompt: list[int]) -> tuple[list[int], float]:
    """The same, a step for each token."""
    device.reset()
    device.prefill(prompt[:-1])
    token = device.step(prompt[-1])
    device.counters(clear=True)
    start, tokens = time.perf_counter(), [token]
    for _ in range(TOKENS - 1):
        tokens.append(device.step(tokens[-1]))
    return tokens, time.perf_counter() - start


def run_ours(
    place: Path, digest: bytes, cap: int, sha: bytes, prompt: list[int], drafts: bool
) -> dict[str, Any]:
    drop_caches()
    group = Cgroup(cap)
    wrapper = place / "capped"
    inner = f'echo $$ > {group.path}/cgroup.procs; exec {place}/firmware "$@"'
    wrapper.write_text(f"#!/bin/sh\n{inner}\n")
    wrapper.chmod(0o755)
    with (
        start_host_device(wrapper, place / "model.sfm", "tcp", threads=1) as process,
        Device.open(process.url, sha, digest, timeout=60) as device,
    ):
        tokens, wall = (answer if drafts else one_by_one)(device, prompt)
        c = device.counters()
    peak = group.close()
    seconds = c["time_total"] / 1e9
    return {
        "tokens": tokens,
        "rate": len(tokens) / wall,
        "peak": peak,
        "wait": c["time_wait"] / c["time_total"],
        "read": c["bytes_read"] / len(tokens),
        "seconds": seconds / len(tokens),
        "taken": c["taken"],
    }


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--caps", default="70,40", help="MB (10^6 bytes)")
    arguments.add_argument("--heads", default="exact,64", help="of cli's --head")
    arguments.add_argument("--repetitions", type=int, default=3)
    arguments.add_argument("--peer", type=Path)
    arguments.add_argument("--peer-tokens", type=int, default=TOKENS, help="it may take minutes")
    arguments.add_argument("--method", default="dense")
    arguments.add_argument("--sparsity", type=float, default=0.0)
    arguments.add_argument("--question", default=QUESTION)
    a = arguments.parse_args()
    check_machine()
    peer = a.peer or build_peer() / "llama-bench"
    recipe = recipes.load_recipe("smollm2-135m")
    board = load_board("host-flash")
    model = pipeline.open_model(recipe)
    assert model.tokenizer is not None
    prompt = model.tokenizer.chat([{"role": "user", "content": a.question}])
    setting = pipeline.setting_for(model, recipe, a.method, a.sparsity)
    exact = pipeline.pack_model(model, recipe, settings=[setting])
    screened = pipeline.pack_model(model, recipe, settings=[setting], screened=True)
    # A copy of its own: cached pages are charged to whoever touched them first.
    source = root() / "build" / "bench" / "peer.gguf"
    source.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(recipes.fetch(recipe), source)
    results = []
    for cap_mb, head in itertools.product(map(float, a.caps.split(",")), a.heads.split(",")):
        cap, rows = int(cap_mb * 1e6), head_rows(head)
        image = screened if rows else exact
        try:
            plan = pipeline.plan_and_generate(image, board, setting, recipe, 256, cap, rows)
        except TooSmallError as e:
            print(f"{cap_mb:g} MB, head {head}: {e}")
            continue
        on_device.build_board(board, recipe.name)
        on_device.flash_board(board, recipe.name)
        place = Places(recipe.name, board.id).flashed
        ours, drafted, theirs, disk = [], [], [], []
        for _ in range(a.repetitions):
            for runs, drafts in ((ours, False), (drafted, True)):
                runs.append(run_ours(place, plan_digest(plan), cap, image.sha256, prompt, drafts))
            theirs.append(run_peer(peer, source, cap, a.peer_tokens))
            drop_caches()
            disk.append(disk_bandwidth(place / "model.sfm"))

        def median(rows: list[dict[str, Any]], key: str) -> float:
            return statistics.median(r[key] for r in rows)

        said = [r["tokens"] for r in ours + drafted]
        assert all(t == said[0][: len(t)] for t in said), "drafts changed the tokens"
        bandwidth = statistics.median(disk)
        read, seconds, wait = (median(ours, k) for k in ("read", "seconds", "wait"))
        row = {
            "cap": cap,
            "head": head,
            "load": os.getloadavg()[0],
            "method": a.method,
            "sparsity": a.sparsity,
            "peer_tokens": a.peer_tokens,
            "tokens_per_second": median(ours, "rate"),
            "with_drafts": median(drafted, "rate"),
            "drafts_taken": median(drafted, "taken"),
            "bytes_read_with_drafts": median(drafted, "read"),
            "peer_tokens_per_second": median(theirs, "rate"),
            "ratio": median(ours, "rate") / median(theirs, "rate"),
            "ratio_with_drafts": median(drafted, "rate") / median(theirs, "rate"),
            "peak": max(r["peak"] for r in ours),
            "peer_peak": max(r["peak"] for r in theirs),
            "bytes_read_per_token": read,
            "disk_bytes_per_second": bandwidth,
            "share_of_disk_limit": read / bandwidth / seconds,
            "share_of_read_time_hidden": 1 - wait * seconds / (read / bandwidth),
            "runs": [r["rate"] for r in ours],
            "peer_runs": [r["rate"] for r in theirs],
        }
        results.append(row)
        print(json.dumps(row, indent=1))
    write_json(root() / "build" / "bench" / "ram_cap.json", results)


if __name__ == "__main__":
    main()
