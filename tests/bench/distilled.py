"""Perplexity, KL and FFN bytes of a distilled model's budgets beside its dense base, all in the C.

    .venv/bin/python tests/bench/distilled.py --tokens 40960
    .venv/bin/python tests/bench/distilled.py --text FILE --tokens 8192

Prints a table: the perplexity's ratio to that of the dense base in the C, the KL from the float
base, and the FFN bytes that a token reads, counted over the last 64 of each window.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np

from sparseflash.image.sfm import Image
from sparseflash.measure.engine import dense_thresholds
from sparseflash.measure.perplexity import Row, float_logits, measure_c
from sparseflash.model import recipes
from sparseflash.model.spec import Model
from sparseflash.pipeline import stages
from sparseflash.pipeline.places import Places
from sparseflash.sparsity.texts import evaluation_windows

WINDOW = 1024


def row_of(model: Model, recipe: recipes.Recipe, floats: Any, windows: np.ndarray) -> Row:
    image: Image = stages.pack_model(model, recipe)
    stages.host_engine(image, recipe, WINDOW)
    library = Places(recipe.name).folder / "libsparseflash.so"
    (row,) = measure_c(floats, image, library, windows, [("dense", 0.0, dense_thresholds(image))])
    return row


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--base", default="smollm2-135m")
    arguments.add_argument("--model", default="smollm2-135m-sparse")
    arguments.add_argument("--budgets", default="50,35,25")
    arguments.add_argument("--text", default="wikitext2-test")
    arguments.add_argument("--tokens", type=int, default=40960)
    a = arguments.parse_args()
    recipe = recipes.load_recipe(a.base)
    base = stages.open_model(recipe)
    windows = evaluation_windows(base, recipe, a.text, a.tokens, WINDOW)
    floats = float_logits(base, windows, lambda: None)
    dense = row_of(base, recipe, floats, windows)
    print(f"{a.text}, {windows.size:,} tokens in windows of {WINDOW}")
    print("| | perplexity | to dense | KL from the float base | FFN bytes a token | of dense |")
    print("|---|---|---|---|---|---|")

    def show(name: str, row: Row) -> None:
        change = 100 * (row.ratio / dense.ratio - 1)
        cells = [name, f"{row.perplexity:.3f}", f"{change:+.2f} %", f"{row.kl:.4f}"]
        share = 100 * row.ffn_bytes / dense.ffn_bytes
        cells += [f"{row.ffn_bytes:,.0f}", f"{share:.1f} %"]
        print("| " + " | ".join(cells) + " |", flush=True)

    show("dense", dense)
    recipe = recipes.load_recipe(a.model)
    assert recipe.delta is not None
    for budget in map(int, a.budgets.split(",")):
        name = f"{recipe.name}-{budget}"  # of a folder, for a process loads a library once
        one = replace(recipe, name=name, delta=replace(recipe.delta, budget=budget))
        show(f"{budget} %", row_of(stages.open_model(one), one, floats, windows))


if __name__ == "__main__":
    main()
