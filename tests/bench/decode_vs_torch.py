"""The C decode of a perplexity run against torch's fp32 decode, both one token at a time.

C runs as ``sparseflash perplexity`` does: one process a CPU, each with its own window. Torch runs
``TorchModel.step`` with as many threads. They take turns, so that other load on the machine
meets both alike; the ratio is that of the turns. Prints one JSON object.

    python tests/bench/decode_vs_torch.py --tokens 128 --turns 5
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model import recipes
from sparseflash.model.torch_model import TorchModel
from sparseflash.pipeline import stages as pipeline
from sparseflash.pipeline.places import Places

_engine: Engine


def _open(library: Path, image: Path) -> None:
    global _engine  # noqa: PLW0603
    _engine = Engine(library, Image(image, verify=False))
    _engine.set_thresholds(dense_thresholds(_engine.image))


def _decode(ids: np.ndarray) -> int:
    _engine.reset()
    for token in ids:
        logits = _engine.step(int(token))
        assert logits is not None
    return int(np.argmax(logits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=128, help="positions of each decode")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=2, help="processes of C, threads of torch")
    args = parser.parse_args()
    recipe = recipes.load_recipe(args.model)
    model = pipeline.open_model(recipe)
    image = pipeline.pack_model(model, recipe)
    pipeline.host_engine(image, recipe)
    library = Places(args.model).folder / "libsparseflash.so"
    rng = np.random.default_rng(1)
    windows = rng.integers(0, model.spec.vocab, (args.cpus, args.tokens))
    context = multiprocessing.get_context("fork")
    rates: dict[str, list[float]] = {"c": [], "torch": []}
    with ProcessPoolExecutor(args.cpus, context, _open, (library, image.path)) as pool:
        list(pool.map(_decode, windows))  # starts the workers before torch starts its threads
        torch.set_num_threads(args.cpus)
        runner = TorchModel(model)
        for turn in range(args.turns + 1):
            start = time.perf_counter()
            list(pool.map(_decode, windows))
            c = windows.size / (time.perf_counter() - start)
            cache = runner.new_cache(args.tokens)
            start = time.perf_counter()
            for token in windows[0]:
                runner.step(int(token), cache)
            t = args.tokens / (time.perf_counter() - start)
            if turn:  # the first is to warm up
                rates["c"].append(c)
                rates["torch"].append(t)
    ratios = [c / t for c, t in zip(rates["c"], rates["torch"])]
    result = {
        "model": args.model,
        "tokens": args.tokens,
        "cpus": args.cpus,
        "turns": args.turns,
        "c_tokens_per_second": statistics.median(rates["c"]),
        "torch_tokens_per_second": statistics.median(rates["torch"]),
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
