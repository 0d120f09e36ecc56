"""Decode and prefill beside llama.cpp, from one model file, in turns.

    make bench-peers
    .venv/bin/python tests/bench/peers.py --tier x86_avx2 --threads 1 --turns 5

llama.cpp is built from the source distribution of llama-cpp-python, with the instructions of this
machine, or with those of --tier x86_avx2 and no more. Prints a table; build/bench/peers.json has
the figures in the field names of llama-bench, and for each engine what it reads a token, as a rate
and as a share of what one thread of this machine reads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sparseflash.base.errors import UsageError
from sparseflash.base.files import root, write_json
from sparseflash.image.screen import head_rows
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model import recipes
from sparseflash.pipeline import stages as pipeline

PEER = "llama-cpp-python==0.3.36"
AVX2 = "GGML_NATIVE=OFF GGML_AVX=ON GGML_AVX2=ON GGML_FMA=ON GGML_F16C=ON GGML_BMI2=ON"
TIERS = {"": "GGML_NATIVE=ON", "x86_avx2": f"{AVX2} GGML_AVX512=OFF GGML_AVX_VNNI=OFF"}
"""Ours, and what llama.cpp is built with beside it."""


def build_peer(tier: str = "") -> Path:
    """The folder of llama-bench and llama-perplexity, built under .cache/peer."""
    folder = root() / ".cache" / "peer"
    build = folder / (f"build-{tier}" if tier else "build")
    if (build / "bin" / "llama-perplexity").exists():
        return build / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "pip"), "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "install", "cmake==4.1.2", "scikit-build-core==0.11.6"], check=True)
    if not list(folder.glob("llama_cpp_python-*.tar.gz")):
        download = [*pip, "download", "--no-deps", "--no-binary", "llama-cpp-python", PEER]
        subprocess.run([*download, "--no-build-isolation", "-d", str(folder)], check=True)
    with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as t:
        t.extractall(folder, filter="data")
    source = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
    cmake = str(venv / "bin" / "cmake")
    options = "LLAMA_CURL=OFF LLAMA_OPENSSL=OFF LLAMA_BUILD_TESTS=OFF LLAMA_BUILD_SERVER=OFF"
    flags = f"{options} GGML_OPENMP=OFF BUILD_SHARED_LIBS=OFF {TIERS[tier]}".split()
    configure = [cmake, "-S", str(source), "-B", str(build), *(f"-D{f}" for f in flags)]
    subprocess.run([*configure, "-DCMAKE_BUILD_TYPE=Release"], check=True, capture_output=True)
    targets = ["llama-bench", "llama-perplexity"]
    command = [cmake, "--build", str(build), f"-j{os.cpu_count()}", "--target", *targets]
    subprocess.run(command, check=True, capture_output=True)
    return build / "bin"


def bandwidth() -> float:
    """Bytes a second that one thread reads: the best of five searches through 512 MB."""
    block, best = b"\x02" * (1 << 29), 0.0
    for _ in range(5):
        start = time.perf_counter()
        block.find(b"\x01")
        best = max(best, len(block) / (time.perf_counter() - start))
    return best


def run_peer(program: Path, model: Path, a: argparse.Namespace) -> tuple[float, float, int]:
    """Nanoseconds of the prompt and of decoding, 0 of what it breaks off; bytes of the model."""
    ns, size = [], 0
    for prompt, tokens, depth in [(a.prompt, 0, 0), (0, a.tokens, a.depth)]:
        sizes = ["-t", str(a.threads), "-p", str(prompt), "-n", str(tokens), "-d", str(depth)]
        command = [str(program), "-m", str(model), *sizes, "-r", "1", "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"llama-bench ended with {done.returncode}: {' '.join(sizes)}")
            ns.append(0.0)
            continue
        (row,) = json.loads(done.stdout)
        ns.append(float(row["avg_ns"]))
        size = int(row["model_size"])
    return ns[0], ns[1], size


def run_ours(engine: Engine, ids: np.ndarray, a: argparse.Namespace) -> tuple[float, float, int]:
    """The same; the bytes are those that a token reads."""
    engine.reset()
    start = time.perf_counter_ns()
    engine.prefill(ids[: a.prompt])
    prompt = time.perf_counter_ns() - start
    engine.reset()
    engine.prefill(ids[: a.depth], False)
    engine.counters(clear=True)
    start = time.perf_counter_ns()
    for token in ids[a.depth : a.depth + a.tokens]:
        engine.step(int(token))
    return prompt, time.perf_counter_ns() - start, engine.counters()["bytes"] // a.tokens


def rows_of(name: str, turns: list[tuple[float, float, int]], a: argparse.Namespace) -> Any:
    """An engine's prefill and decode, in the field names of llama-bench."""
    for column, (prompt, tokens) in enumerate([(a.prompt, 0), (0, a.tokens)]):
        ns = [float(t[column]) for t in turns]
        rates = [(prompt + tokens) * 1e9 / n if n else 0.0 for n in ns]
        yield {
            "engine": name,
            "n_threads": a.threads,
            "n_prompt": prompt,
            "n_gen": tokens,
            "n_depth": a.depth if tokens else 0,
            "avg_ns": statistics.median(ns),
            "stddev_ns": statistics.pstdev(ns),
            "avg_ts": statistics.median(rates),
            "stddev_ts": statistics.pstdev(rates),
            "samples_ns": ns,
            "samples_ts": rates,
            "model_size": turns[0][2],
        }


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", default="smollm2-135m", help="a recipe whose source is GGUF")
    arguments.add_argument("--tier", default="", choices=list(TIERS), help="the best, or this one")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--prompt", type=int, default=256)
    arguments.add_argument("--tokens", type=int, default=64)
    arguments.add_argument("--depth", type=int, default=0, help="positions before the decoding")
    arguments.add_argument("--head", default="exact", help="of ours")
    arguments.add_argument("--turns", type=int, default=5)
    arguments.add_argument("--peer", type=Path, help="a folder that has llama-bench")
    a = arguments.parse_args()
    peer = (a.peer or build_peer(a.tier)) / "llama-bench"
    recipe = recipes.load_recipe(a.model)
    model = pipeline.open_model(recipe)
    rows_of_head = head_rows(a.head)
    image = pipeline.pack_model(model, recipe, screened=rows_of_head > 0)
    most = max(a.prompt, a.depth + a.tokens)
    engine = pipeline.host_engine(image, recipe, most, rows_of_head)
    engine.set_thresholds(dense_thresholds(image))
    engine.threads(a.threads)
    if a.tier and not engine.use_tier(a.tier):
        raise UsageError(f"this CPU does not run the tier {a.tier}")
    assert model.tokenizer is not None
    ids = np.array(model.tokenizer.encode(recipes.text("wiki")[:100_000]))[:most]
    ours, theirs = [], []
    for _ in range(a.turns):
        ours.append(run_ours(engine, ids, a))
        theirs.append(run_peer(peer, recipes.fetch(recipe), a))
    limit = bandwidth()
    rows = [*rows_of("sparseflash", ours, a), *rows_of("llama.cpp", theirs, a)]
    print(
        f"medians of {a.turns} turns, {a.threads} threads, tier {a.tier or 'best'}, load", end=" "
    )
    print(f"{os.getloadavg()[0]:.1f}; one thread reads {limit / 1e9:.1f} GB/s")
    print("| engine | decode, tokens/s | prefill | read a token | rate | share of one thread's |")
    print("|---|---|---|---|---|---|")
    for prefill, decode in zip(rows[::2], rows[1::2]):
        rate = decode["model_size"] * decode["avg_ts"]
        decode |= {"bytes_per_second": rate, "share_of_bandwidth": rate / limit}
        cells = [decode["engine"], f"{decode['avg_ts']:.1f}", f"{prefill['avg_ts']:.1f}"]
        size = decode["model_size"]
        cells += [f"{size / 1e6:.1f} MB", f"{rate / 1e9:.2f} GB/s", f"{100 * rate / limit:.0f} %"]
        print("| " + " | ".join(cells) + " |")
    for what, ours_at, theirs_at in [("decode", rows[1], rows[3]), ("prefill", rows[0], rows[2])]:
        if theirs_at["avg_ts"]:
            print(f"{what}: {ours_at['avg_ts'] / theirs_at['avg_ts']:.2f} times llama.cpp")
    write_json(root() / "build" / "bench" / "peers.json", rows)


if __name__ == "__main__":
    main()
