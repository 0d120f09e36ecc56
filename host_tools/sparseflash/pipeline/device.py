"""The stages of a device, from what ``generate`` wrote: they need neither model nor torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sparseflash import __version__
from sparseflash.base.errors import MismatchError, UsageError
from sparseflash.base.files import alone, write_csv, write_json
from sparseflash.codegen import footprint
from sparseflash.codegen.build import build_firmware
from sparseflash.device.bench import bench
from sparseflash.device.flash_curve import measure as flash_curve
from sparseflash.device.profile import Profile
from sparseflash.device.runners import Files, flash_files
from sparseflash.device.session import Session
from sparseflash.device.validate import validate
from sparseflash.image.sfm import Image
from sparseflash.model.tokenizer import Tokenizer
from sparseflash.pipeline.places import Places, curve_path
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.kept import plan_digest, read_plan

PROMPT = 16
"""Tokens that a benchmark begins with."""


def check_generated(places: Places) -> None:
    """Refuses what needs a plan before there is one."""
    if not places.plan.is_file():
        raise UsageError(
            f"nothing is generated for {places.model} on {places.board}; first run sparseflash "
            f"generate --model {places.model} --board {places.board}"
        )


def check_image(places: Places) -> None:
    """Whether model.sfm is sound and the one that the plan was made for."""
    image, plan = Image(places.planned_image()), read_plan(places.plan)
    if image.sha256.hex() != plan["model_sha"]:
        raise MismatchError(
            f"{places.plan} was made for another image than {image.path}; "
            "run sparseflash generate again"
        )


def build_board(board: Board, model: str, show: bool = False) -> Path:
    """The firmware of a board, from what ``generate`` wrote; show: the compiler's commands."""
    places = Places(model, board.id)
    check_generated(places)
    with alone(places.target):
        return build_firmware(board, places.generated, places.firmware, show)


def flash_board(
    board: Board,
    model: str,
    runner: str | None = None,
    asked: dict[str, str] | None = None,
    dry: bool = False,
) -> list[list[str]]:
    """Puts image and firmware on the board and verifies them; returns the commands of it."""
    places = Places(model, board.id)
    check_generated(places)
    check_image(places)
    words = places.generated / "tokenizer.json"
    files = Files(places.firmware, places.planned_image(), places.plan, words)
    with alone(places.target):
        return flash_files(board, files, places.flashed, runner, asked, dry)


def session(
    model: str,
    board_id: str,
    port: str | None = None,
    warn: Callable[[str], None] = lambda _: None,
    threads: int = 0,
) -> Session:
    """The device of a board under what was flashed on it: its process, or the one on ``port``.

    warn: is told when a later ``generate`` was not flashed. threads: of a Linux board's process, 0:
    one for each core.
    """
    places = Places(model, board_id)
    opened = Session(load_board(board_id), places.flashed, model, port, threads)
    if places.plan.is_file() and plan_digest(read_plan(places.plan)) != plan_digest(opened.plan):
        warn(
            f"{board_id} runs an older plan of {model} than the last generate wrote; "
            "sparseflash flash puts the new one on it"
        )
    return opened


def open_tokenizer(places: Places) -> Tokenizer | None:
    """The tokenizer of what was flashed, if its model has one."""
    path = places.flashed / "tokenizer.json"
    if not path.is_file():
        return None
    return Tokenizer.from_kept(path.read_text(encoding="utf-8", errors="replace"), str(path))


def check_chats(places: Places) -> None:
    """Refuses a conversation with a model that has no words."""
    if places.flashed.is_dir() and not (places.flashed / "tokenizer.json").is_file():
        raise UsageError(
            f"{places.model} has no tokenizer, so it cannot chat; give another --model"
        )


def validation_ids(places: Places, vocab: int, positions: int) -> np.ndarray:
    """Tokens of a fixed text, and random ones when the model has no tokenizer."""
    tokenizer = open_tokenizer(places)
    if tokenizer is None:
        return np.random.default_rng(1).integers(0, vocab, positions)
    words = "Once upon a time, a small board read only the weights it needed. " * 40
    return np.array(tokenizer.encode(words)[:positions])


def validate_board(
    model: str,
    board_id: str,
    port: str | None,
    positions: int,
    warn: Callable[[str], None] = lambda _: None,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """validate.json: whether the device equals the reference, and where it does not.

    At most as many positions as the KV cache holds. progress: is told the share that is done.
    """
    places, active = Places(model, board_id), list[float]()
    with session(model, board_id, port, warn) as opened:
        plan, image, vocab = opened.plan, opened.image, opened.device.info().vocab
        held = plan["kv_len"]
        if positions > held:
            warn(f"the KV cache holds {held} positions, so {held} are compared")
        ids = validation_ids(places, vocab, min(positions, held))
        found = validate(
            opened.device,
            image,
            ids,
            opened.thresholds,
            lambda done: progress(done / len(ids)),
            plan.get("head_rows", 0),
            active,
        )
    result = {
        "model": model,
        "board": board_id,
        "positions": len(ids),
        "layers": image.spec.n_layers,
        "equal": found is None,
        "difference": found and str(found),
        "active_by_layer": active,
        "model_sha": plan["model_sha"],
        "plan": plan_digest(plan).hex(),
    }
    write_json(places.target / "validate.json", result)
    return result


def bench_board(
    model: str,
    board_id: str,
    port: str | None,
    tokens: int,
    repetitions: int,
    warn: Callable[[str], None] = lambda _: None,
    progress: Callable[[float], None] = lambda _: None,
    threads: int = 0,
) -> dict[str, Any]:
    """bench.json and .csv: what the device does in a second, and what it reads.

    A KV cache that does not hold the prompt and ``tokens`` shortens both.
    """
    places = Places(model, board_id)
    with session(model, board_id, port, warn, threads) as opened:
        plan, info = opened.plan, opened.device.info()
        prompt = max(1, min(PROMPT, info.kv_len // 2))
        ids = [int(i) for i in validation_ids(places, info.vocab, prompt)]
        ticks = time_model(opened.board, port)
        drafts = plan.get("draft", 0) > 0
        result = bench(opened.device, ids, tokens, repetitions, ticks, progress, drafts)
        result["threads"] = opened.threads
    result |= {"version": __version__, "method": plan["method"], "sparsity": plan["sparsity"]}
    result |= {"head_rows": plan.get("head_rows", 0), "plan": plan_digest(plan).hex()}
    result |= {"model_sha": plan["model_sha"], "seed": "greedy"}
    if result["tokens"] < tokens:
        warn(f"the KV cache holds {info.kv_len} positions, so {result['tokens']} tokens are timed")
    write_json(places.target / "bench.json", result)
    figures = {k: v for k, v in result.items() if not isinstance(v, list)}
    write_csv(places.target / "bench.csv", [figures])
    return result


def time_model(board: Board, port: str | None) -> str:
    """What the ticks of a board mean: those of hardware on a port are its clock."""
    return "clock" if port else str(board.settings().get("time", "clock"))


def obey(
    model: str,
    board_id: str,
    port: str | None,
    tokens: int,
    commands: Iterable[str],
    warn: Callable[[str], None] = lambda _: None,
) -> Iterator[str]:
    """Answers to the commands of MLPerf Tiny's runner, a line each (``device.profile``)."""
    with session(model, board_id, port, warn) as opened:
        profile = Profile(opened.device, tokens, time_model(opened.board, port))
        yield "m-init-done"
        yield "m-ready"
        for command in commands:
            yield from profile.answers(command)


def measure_curve(board: Board, model: str) -> tuple[Path, dict[str, Any]]:
    """flash_curve.json: what a read of the board's flash costs by its size."""
    if "stream" not in board.raw or board.kind != "process":
        raise UsageError(f"board {board.id} does not stream from a disk; host-flash does")
    image = Places(model, board.id).image
    if not image.is_file():
        raise UsageError(
            f"{image} is missing; first run sparseflash generate --model {model} --board {board.id}"
        )
    curve = flash_curve(image, int(board.raw["stream"]["ring_buffers"]))
    write_json(curve_path(board), curve)
    return curve_path(board), curve


def program_sizes(board: Board, model: str) -> dict[str, dict[str, int]]:
    """Bytes by section of each part of the built program, and of all."""
    footprint.check_bare(board)
    build_board(board, model)
    rows = footprint.sizes(board, Places(model, board.id).firmware)
    total = {s: sum(r.get(s, 0) for r in rows.values()) for s in footprint.SECTIONS}
    return {**rows, "total": total}


def program_stack(board: Board, model: str) -> footprint.Stack:
    """The deepest stack of the built program."""
    footprint.check_bare(board)
    build_board(board, model)
    return footprint.stack(board, Places(model, board.id).firmware)
