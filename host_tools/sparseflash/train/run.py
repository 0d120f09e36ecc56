"""A distillation from texts to a delta file: one call a run, resumed where the last one stopped.

Files in the run's folder: ``checkpoint.pt`` (what the next run goes on from), ``written.npz``
(text that the model wrote), ``curve.json`` and ``curve.png``, ``figures.json`` and
``model.delta``. Started by torchrun, every process takes one GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from sparseflash.base.errors import InputError, UsageError
from sparseflash.base.files import file_sha256, whole, write_arrays, write_json
from sparseflash.model.load.delta import read_delta, write_delta
from sparseflash.model.spec import Model
from sparseflash.train import student as st
from sparseflash.train.distill import Distiller, Pace, Settings
from sparseflash.train.evaluate import dense_of, measure, sparse_of, with_budget
from sparseflash.train.student import Base, base_of
from sparseflash.train.windows import Mixture
from sparseflash.train.write import Writer, write_text

WRITTEN = 0.2
"""Share of the drawn windows that the model wrote itself, where it wrote any."""


@dataclass
class Time:
    """How long a run is: ``steps`` in all, or ``seconds`` now and ``later`` in runs to come."""

    steps: int | None = None
    seconds: float | None = None
    later: float = 0.0
    write_seconds: float = 0.0


def _join(device: str) -> tuple[str, int]:
    """This process's device and rank; joins the others when torchrun started it."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("torch finds no GPU here; use --device cpu")
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return device, 0
    if device == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device, dist.get_rank()


def settings_for(
    budgets: Sequence[float], windows: int, window: int, lr: float, seed: int
) -> Settings:
    """Settings of a run over whole percents; the middle budgets get the larger share.

    Raises:
        UsageError: a budget is no whole percentage, or there are more than windows.
    """
    whole = sorted({int(b) for b in budgets}, reverse=True)
    if not whole or any(b != int(b) or not 0 < b < 100 for b in budgets):
        raise UsageError("--budgets are whole percents below 100, as 50,35,25")
    if len(whole) > windows:
        raise UsageError(f"{len(whole)} budgets need at least {len(whole)} windows a step")
    # Shares of the run that made models/smollm2-135m-sparse.
    shares = (0.2, 0.45, 0.35) if len(whole) == 3 else (1 / len(whole),) * len(whole)
    return Settings(
        budgets=tuple(whole),
        shares=shares,
        windows=windows,
        window=window,
        lr=lr,
        quantise_from=0.3,
        seed=seed,
    )


def read_texts(
    model: Model,
    folder: Path | None,
    declared: Mapping[str, Path],
    out: Path,
    say: Callable[[str], None],
) -> dict[str, tuple[np.ndarray, float]]:
    """Tokens of the .txt files of ``folder`` (or of the declared texts), weighted by their size.

    Parts of a file are divided by lines of ``<|endoftext|>``. Tokens are kept in ``out``.

    Raises:
        InputError: no text there, or one that is not UTF-8.
    """
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer; distill needs one")
    files = (
        {p.stem: p for p in sorted(folder.glob("*.txt"))} if folder is not None else dict(declared)
    )
    if not files:
        raise InputError(f"{folder or 'the recipe'}: no text to train on; give --texts FOLDER")
    end = min(model.spec.eos_ids, default=-1)
    found = {}
    for name, path in files.items():
        key = file_sha256(path)[:16]
        kept = out / "tokens" / f"{name}.{key}.npz"
        if not kept.exists():
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as e:
                raise InputError(f"{path}: no UTF-8 text ({e}); convert it") from e
            ids: list[int] = []
            for part in text.split("<|endoftext|>"):
                if part.strip():
                    ids += [*model.tokenizer.encode(part.strip("\n")), *([end] if end >= 0 else [])]
            write_arrays(kept, tokens=np.array(ids, np.int32))
            say(f"{path}: {len(ids):,} tokens")
        with np.load(kept) as z:
            found[name] = (z["tokens"], float(len(z["tokens"])))
    return found


_ASKED = """
Write a short story about, Write a poem about, Write an email to, Write a function that,
Write a Python program that, Write a letter to, Explain how, Explain why, Explain what,
What is the, What are the, What does, How do I, How can I, How does, How many, Why do,
Why is the, Who was, When did, Where is, Which of, Can you explain, Can you help me,
Can you give me, Could you tell me, Give me a list of, Give an example, List three,
Describe the, Summarize the, Rewrite the sentence, Tell me about, Tell me a story,
Translate the, Compare the, Create a, Design a, Suggest some, I want to, I need to,
I am planning, I have a, I feel, My friend, Is it true that, Is there a, Should I,
Do you know, Let's talk about, Help me, Imagine that, Solve the, If a, A train, Hello,
Hi, Good morning, Please, In the story
"""
ASKED = tuple(words.strip() for words in _ASKED.split(","))
"""Words that questions begin with: written conversations differ more than from nothing."""


def chat_openings(model: Model) -> list[list[int]]:
    """Conversations up to the user's words, and some with the first of them; [] without chat."""
    empty = chat_opening(model)
    if not empty or model.tokenizer is None:
        return []
    return [empty, *([*empty, *model.tokenizer.encode(words)] for words in ASKED)]


def chat_opening(model: Model) -> list[int]:
    """Tokens of a conversation up to the user's words; empty without a chat template."""
    if not model.spec.chat_template or model.tokenizer is None:
        return []
    mark = "\x02"
    marked = model.tokenizer.encode(mark)
    ids = model.tokenizer.chat([{"role": "user", "content": mark}])
    for i in range(len(ids)):
        if ids[i : i + len(marked)] == marked:
            return list(ids[:i])
    return []


def distill(
    model: Model,
    texts: Mapping[str, tuple[np.ndarray, float]],
    tests: Mapping[str, np.ndarray],
    folder: Path,
    settings: Settings,
    time: Time,
    device: str = "auto",
    say: Callable[[str], None] = print,
    start: Path | None = None,
) -> dict[str, Any]:
    """Runs or goes on with a distillation in ``folder``; returns the figures.

    ``texts``: tokens and weight by name. ``tests``: windows (N, T) by kind, never trained on.
    ``start``: a finished delta of the model to go on from, instead of from the model itself.
    The delta and the figures are made at the end of every run, so a run cut short has them too.

    Raises:
        InputError: the checkpoint belongs to another run, or the texts are too short.
    """
    device, rank = _join(device)
    gpu = device.startswith("cuda")
    base = base_of(model)
    if gpu:
        st.compile_all()
    d = Distiller(base, settings, device, torch.bfloat16 if gpu else torch.float32)
    quiet: Callable[[str], None] = say if rank == 0 else (lambda _: None)
    mixed = dict(texts)
    written = folder / f"written.{rank}.npz"
    if time.write_seconds and not written.exists():
        _write(d, model, mixed, time.write_seconds, written, gpu, quiet)
    if written.exists():
        with np.load(written) as z:
            total = sum(w for _, w in texts.values()) * WRITTEN / (1 - WRITTEN)
            mixed |= {f"written {k}": (z[k], total / len(z.files)) for k in z.files}
    mixture = Mixture(mixed, settings.window, device, settings.seed)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        d.load(checkpoint)
        quiet(f"goes on from step {d.step:,}, {100 * d.progress:.0f} % done")
    elif start is not None:
        d.start_from(read_delta(start, [base.lines(i) for i in range(base.shape.layers)]))
    else:
        d.begin(mixture)

    def report(x: Distiller) -> None:
        line = x.line()
        x.curve.append(line)
        if rank == 0:
            _say_line(line, quiet)
            x.save(checkpoint)
            write_json(folder / "curve.json", x.curve)

    pace = Pace(time.steps, time.seconds, time.later)
    d.run(mixture, pace, report, 60.0 if gpu else 15.0)
    if rank != 0:
        return {}
    report(d)
    draw_curve(folder / "curve.png", d.curve, model.name)
    return finish(d, model, base, mixture, tests, folder, quiet)


def _write(
    d: Distiller,
    model: Model,
    texts: Mapping[str, tuple[np.ndarray, float]],
    seconds: float,
    path: Path,
    gpu: bool,
    say: Callable[[str], None],
) -> None:
    torch.manual_seed(d.settings.seed * 1000 + d.rank)
    source = Mixture(texts, d.settings.window, d.student.device, d.settings.seed + 1 + d.rank)
    length = min(512, d.settings.window)
    writer = Writer(d.student, 1024 if gpu else 8, length, gpu)
    special = sorted(model.tokenizer.special.values()) if model.tokenizer else []
    found = write_text(writer, seconds, source.draw, chat_openings(model), special, say)
    write_arrays(path, **found)


def _say_line(line: dict[str, Any], say: Callable[[str], None]) -> None:
    read = ", ".join(f"{100 * b:.0f} %" for b in line["bytes"])
    say(
        f"{100 * line['progress']:.0f} %: step {line['step']:,}, "
        f"{line['tokens'] / 1e6:.1f}M tokens, "
        f"KL {line['kl']:.4f}, FFN bytes {read}, {line['bits']:.2f} bits a changed weight"
        + (", rounded" if line["quantised"] else "")
    )


def finish(
    d: Distiller,
    model: Model,
    base: Base,
    mixture: Mixture,
    tests: Mapping[str, np.ndarray],
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Rounds, writes ``model.delta``, measures what was written and writes ``figures.json``."""
    mixture.generator.manual_seed(d.settings.seed + 987_654_321)
    delta = d.delta(
        mixture.draw(min(24, 2 * d.settings.windows)),
        {"base": model.source.get("file", ""), "base_sha256": model.source.get("sha256", "")},
    )
    lines = [base.lines(i) for i in range(base.shape.layers)]
    path = folder / "model.delta"
    size = write_delta(path, delta, lines)
    say(f"{path}: {size:,} bytes")
    # What is measured is what a reader gets.
    delta = read_delta(path, lines)
    dense = dense_of(d.student)
    whole = sparse_of(d.student, delta, base, None)
    table: dict[str, Any] = {}
    for budget in (None, *d.settings.budgets):
        sparse = whole if budget is None else with_budget(whole, delta, budget)
        row = {}
        for kind, windows in tests.items():
            ids = torch.from_numpy(windows.astype(np.int64)).to(d.student.device)
            row[kind] = r = measure(dense, sparse, ids)
            read = f", {100 * r['bytes']:.1f} % of FFN bytes" if "bytes" in r else ""
            say(
                f"{'all weights' if budget is None else f'{budget} %'}, {kind}: perplexity "
                f"{r['perplexity']:.3f} ({100 * (r['ratio'] - 1):+.1f} %), KL {r['kl']:.4f}{read}"
            )
        table["all" if budget is None else str(budget)] = row
    figures = {"delta_bytes": size, "run": d.line(), "table": table}
    write_json(folder / "figures.json", figures)
    return figures


def draw_curve(path: Path, curve: Sequence[Mapping[str, Any]], name: str) -> None:
    """KL and bytes over the tokens seen, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tokens = [c["tokens"] / 1e6 for c in curve]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    left.plot(tokens, [c["kl"] for c in curve])
    left.set(xlabel="million tokens", ylabel="KL to the dense model, nats", yscale="log")
    for k in range(len(curve[-1]["bytes"]) if curve else 0):
        right.plot(tokens, [100 * c["bytes"][k] for c in curve])
    right.set(xlabel="million tokens", ylabel="FFN bytes a token, % of dense")
    figure.suptitle(f"{name}: distillation on training text")
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix[1:])
    plt.close(figure)
