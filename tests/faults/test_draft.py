"""Greedy decoding with drafts gives the tokens of plain decoding, and leaves the same cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from test_flash import FAULTS, fault, stream_board

from conftest import random_model
from sparseflash.base.errors import SparseflashError
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.recipes import load_recipe
from sparseflash.pipeline.stages import open_model
from sparseflash.plan.boards import Board
from sparseflash.plan.plan import make_plan

POSITIONS = 160
T = TypeVar("T")


def greedy(logits: np.ndarray | None) -> int:
    assert logits is not None
    return int(np.argmax(logits))


def plainly(e: Engine, prompt: list[int], most: int) -> tuple[list[int], np.ndarray]:
    """Tokens of plain decoding, and the logits behind each, as bits."""
    e.reset()
    logits = [e.prefill(prompt)]
    while len(logits) < most:
        logits.append(e.step(greedy(logits[-1])))
    return [greedy(v) for v in logits], np.array(logits).view(np.uint32)


def again(call: Callable[[], T], fail: bool) -> T:
    """Once more after the read that fails."""
    try:
        return call()
    except SparseflashError:
        assert fail
        return call()


def drafting(
    e: Engine, prompt: list[int], most: int, want: np.ndarray, fail: bool = False
) -> list[int]:
    """Tokens with drafts; a plain step after every third call shows the bits of the cache."""
    e.reset()
    tokens = [greedy(e.prefill(prompt))]
    if fail:
        fault(e, 3, 64, 90)
    for call in range(most):
        left = most - len(tokens)
        if left == 0:
            break
        if call % 3 == 2:
            logits = again(partial(e.step, tokens[-1]), fail)
            assert logits is not None
            assert np.array_equal(logits.view(np.uint32), want[len(tokens)])
            some = [greedy(logits)]
        else:
            some = again(partial(e.greedy, tokens[-1], min(left, 8)), fail)
        assert 1 <= len(some) <= left
        tokens += some
    return tokens


def check(e: Engine, prompts: list[list[int]], most: int, fail: bool = False) -> int:
    """Drafted tokens that were taken, over all prompts; others were taken back."""
    taken = wrong = 0
    e.counters(clear=True)
    for prompt in prompts:
        if fail:
            fault(e, 3, 64, 0)
        tokens, want = plainly(e, prompt, most)
        plain = e.counters(clear=True)
        assert plain["drafted"] == plain["taken"] == 0
        assert drafting(e, prompt, most, want, fail) == tokens
        found = e.counters(clear=True)
        assert found["tokens"] == plain["tokens"] or fail
        assert 0 <= found["taken"] <= found["drafted"]
        taken += found["taken"]
        wrong += found["drafted"] - found["taken"]
    assert wrong > 0
    return taken


def check_early(e: Engine, a: int, b: int, c: int) -> None:
    """Early in a text a wrong draft lowers the least exponents; afterwards they are as before."""
    e.reset()
    e.prefill([a, b, c, a])
    some = e.greedy(b, 4)
    got = e.step(c)
    e.reset()
    want = e.prefill([a, b, c, a, b, *some[:-1], c])
    assert got is not None and want is not None
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


def lookup(text: list[int], least: int) -> int:
    """Tokens drafted behind a text, by SPEC: 7, 3 and 2 after three, two and one same token."""
    for k in range(3, least - 1, -1):
        if any(text[at : at + k] == text[-k:] for at in range(len(text) - k)):
            return {1: 2, 2: 3, 3: 7}[k]
    return 0


def check_trust(e: Engine, prompt: list[int], longest: int) -> set[tuple[int, int]]:
    """Every call drafts what SPEC says. (trust, tokens drafted) of the calls."""
    e.reset()
    text, trust, seen = [*prompt, greedy(e.prefill(prompt))], 1, set()
    while len(text) + 8 < POSITIONS:
        want = min(longest, lookup(text, 1 if trust else 2))
        e.counters(clear=True)
        text += e.greedy(text[-1], 8)
        c = e.counters()
        assert c["drafted"] == want
        seen.add((trust, want))
        if want:
            trust = min(3, trust + 1) if c["taken"] else max(0, trust - 1)
    return seen


def some_masks(image: Image) -> np.ndarray:
    masks = dense_thresholds(image)
    masks[0, :5] = (0.3, 0.1, 0.2, 0.05, 0.02)
    masks[-1, 3] = 0.2
    return masks


@pytest.mark.parametrize("flash", ["map", "stream", "late"])
@pytest.mark.parametrize("shape", ["llama", "bias"])
def test_random_model(shape: str, flash: str, host: Board, tmp_path: Path) -> None:
    """Mapped with 1 and 3 threads, streamed, and streamed with reads that fail."""
    model = random_model(n_layers=6, tied_head=False, vocab=60, head_bias=shape == "bias")
    pack(model, tmp_path / "m.sfm", Formats())
    image = Image(tmp_path / "m.sfm")
    board, ram = host, None
    if flash != "map":
        board, ram = replace(stream_board(host, ring_buffers=5), kind="bare"), 170_000
    none = dense_thresholds(image)
    plan = make_plan(image, board, none, POSITIONS, ram=ram, draft=7)
    assert plan["draft"] == (7 if flash == "map" else 3)
    generate(plan, tmp_path / "gen")
    library = build_library(
        tmp_path / "gen",
        tmp_path / "lib.so",
        flags=["-O1", "-g1", "-fsanitize=undefined", "-fno-sanitize-recover=all"],
        flash=None if flash == "map" else FAULTS,
    )
    rng = np.random.default_rng(5)
    once = [int(t) for t in rng.integers(0, image.spec.vocab, 12)]
    early = rng.integers(0, image.spec.vocab, (30, 3)).tolist()
    prompts = [once * 3, once + once[:6], once + once[4:9] + once[2:7]]
    for threads in (1, 3) if flash == "map" else (1,):
        e = Engine(shutil.copy(library, tmp_path / f"lib{threads}.so"), image)
        e.threads(threads)
        for masks in (none, some_masks(image)):
            e.set_thresholds(masks)
            check(e, prompts, 80, fail=flash == "late")
            if flash == "map":
                seen = set().union(*(check_trust(e, p, 7) for p in prompts))
                assert {t for t, _ in seen} >= {0, 1, 2} and {n for _, n in seen} >= {0, 2, 3, 7}
            for a, b, c in early:
                check_early(e, a, b, c)


def test_the_end_of_the_cache(host: Board, tmp_path: Path) -> None:
    """Drafts do not pass it, and the position after it is refused as without them."""
    pack(random_model(vocab=40), tmp_path / "m.sfm", Formats())
    image = Image(tmp_path / "m.sfm")
    generate(make_plan(image, host, dense_thresholds(image), 32, draft=7), tmp_path / "gen")
    e = Engine(build_library(tmp_path / "gen", tmp_path / "lib.so", flags=["-O1"]), image)
    prompt = [1, 2, 3, 4, 5] * 5
    tokens, _ = plainly(e, prompt, 8)
    e.reset()
    got = [greedy(e.prefill(prompt))]
    while len(got) < 8:
        got += e.greedy(got[-1], 8)
    assert got == tokens
    with pytest.raises(SparseflashError, match="answered -3"):
        e.greedy(got[-1], 8)


def test_story(host: Board, tmp_path: Path) -> None:
    """A real text: the sparse model of this repository, streamed; an answer's end ends a draft."""
    recipe = load_recipe("story")
    model = open_model(recipe)
    pack(model, tmp_path / "m.sfm", Formats(**recipe.formats))
    image = Image(tmp_path / "m.sfm")
    board = replace(stream_board(host), kind="bare", sram_bytes=1 << 20)
    none = dense_thresholds(image)
    plan = make_plan(image, board, none, POSITIONS, ram=900_000, draft=7)
    assert plan["draft"] == 3
    generate(plan, tmp_path / "gen")
    library = build_library(tmp_path / "gen", tmp_path / "lib.so", flags=["-O2"], flash=FAULTS)
    e = Engine(library, image)
    assert model.tokenizer is not None
    prompt = model.tokenizer.encode("Once upon a time, there was a cat. One day, the cat")
    assert check(e, [prompt], 100) >= 8
    assert {n for _, n in check_trust(e, prompt, 3)} == {0, 2, 3}


def test_planned_where_reading_is_the_wall(host: Board, tmp_path: Path) -> None:
    pack(random_model(n_layers=30, ffn_dim=704), tmp_path / "m.sfm", Formats())
    image = Image(tmp_path / "m.sfm")
    none = dense_thresholds(image)
    disk, chip = stream_board(host), replace(stream_board(host), kind="bare")

    def draft(board: Board, ram: int | None, asked: int | None = None) -> int:
        return int(make_plan(image, board, none, 16, ram=ram, draft=asked)["draft"])

    assert draft(host, None) == 0
    assert draft(disk, 2_600_000) == 7
    assert draft(disk, 10_000_000) == 0
    assert draft(disk, 2_600_000, 0) == 0
    assert draft(chip, 300_000) == 0
    assert draft(chip, 300_000, 7) == 3
