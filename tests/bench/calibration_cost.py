"""Time and memory of calibration against torch's dense forward of the same tokens.

Both run in turns over the same blocks of windows, so that other load on the machine meets both
alike. The dense forward is ``TorchModel.hidden``: the layers without the head, the stricter
denominator. Prints one JSON object.

    python tests/bench/calibration_cost.py --tokens 65536
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from sparseflash.model import recipes
from sparseflash.model.torch_model import TorchModel
from sparseflash.pipeline import stages as pipeline
from sparseflash.sparsity.calibrate import calibrate, calibration_windows


def peak_rss() -> int:
    """Bytes of the largest resident set since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--block", type=int, default=8, help="windows in one turn")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's own")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = recipes.load_recipe(args.model)
    model = pipeline.open_model(recipe)
    ids, texts = calibration_windows(
        model, list(recipe.calibration["texts"]), args.tokens, args.window
    )
    runner = TorchModel(model)
    turns = np.array_split(ids, max(1, len(ids) // args.block))
    for warm in (ids[:1], ids[1:2]):
        runner.hidden(torch.from_numpy(warm))
        calibrate(model, warm, texts=texts, runner=runner)
    reset_peak()
    before = peak_rss()
    seconds = {"dense": 0.0, "calibrate": 0.0}
    cpu = dict(seconds)
    for turn in turns:
        start, used = time.perf_counter(), time.process_time()
        with torch.no_grad():
            for row in turn:
                runner.hidden(torch.from_numpy(row)[None])
        seconds["dense"] += time.perf_counter() - start
        cpu["dense"] += time.process_time() - used
        start, used = time.perf_counter(), time.process_time()
        calibrate(model, turn, texts=texts, runner=runner)
        seconds["calibrate"] += time.perf_counter() - start
        cpu["calibrate"] += time.process_time() - used
    print(
        json.dumps(
            {
                "model": args.model,
                "tokens": int(ids.size),
                "window": args.window,
                "threads": torch.get_num_threads(),
                "dense_s": round(seconds["dense"], 2),
                "calibrate_s": round(seconds["calibrate"], 2),
                "ratio": round(seconds["calibrate"] / seconds["dense"], 3),
                "cpu_ratio": round(cpu["calibrate"] / cpu["dense"], 3),
                "peak_over_model_mb": round((peak_rss() - before) / 1e6, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
