"""How the story model was made, a step a verb: ``python -m sparseflash.train.story_run VERB``.

``write``: a writer (SmolLM2-135M-Instruct as GGUF) is tuned on the sample of stories and writes new
ones. ``prepare``: filter, tokenizer, tokens. ``compare``: short runs of FFNs of equal bytes.
``train``: the long run of one kind, which stops after ``--seconds`` and goes on when called again
(``torchrun`` spreads it over several cards). ``ship``: writes and measures the model's folder.
Everything lies under ``--state``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from sparseflash.train import shipped, texts
from sparseflash.train.story import Plan, Shape, Story, Texts, Trainer, measure

SHAPE = Shape(kind="split", gate_inputs=32)
PLAN = Plan(
    steps=15500, batch=64, lr=6e-3, warmup=200, density=0.168, ramp=0.15, decay=0.45,
    rounding=0.3, ema=0.998, dropout=0.05, seed=1,
)  # fmt: skip
WINDOW = 512
MIX = {"gen": 0.83, "books": 0.16, "tiny": 0.01}
"""Part of the windows from the written stories, the books and the sample."""
COMPARED: dict[str, tuple[dict[str, Any], float, float]] = {
    # name: shape, density, learning rate. All FFNs have 9.4M weights.
    "split64": ({"gate_inputs": 64}, 0.11, 3e-3),
    "split64-fast": ({"gate_inputs": 64}, 0.11, 6e-3),
    "split32": ({"gate_inputs": 32}, 0.168, 3e-3),
    "dense": ({"kind": "dense", "gate_inputs": 64}, 1.0, 3e-3),
    "reglu": ({"gate_inputs": 0, "ffn": 1536}, 0.06, 3e-3),
    "blocks": ({"kind": "blocks", "gate_inputs": 0, "ffn": 1536}, 0.21, 3e-3),
    "chosen": ({}, 0.168, 6e-3),
    # Tables that cost at most 1.2 KB of flash reads a token.
    "bigram-4096": ({"bigram": 4096}, 0.168, 6e-3),
    "bigram-16384": ({"bigram": 16384}, 0.168, 6e-3),
    "states": ({"tables": "states"}, 0.168, 6e-3),
    "values": ({"tables": "values"}, 0.168, 6e-3),
    "values-bigram-16384": ({"tables": "values", "bigram": 16384}, 0.168, 6e-3),
}


def put(path: Path, value: Any) -> None:
    """JSON to a file that appears whole."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(new, path)


def say(value: Any) -> None:
    print(value, flush=True)


def words_of(pool: set[str]) -> Callable[[str], list[str]]:
    """Words of a story that stand in the pool, each once."""
    return lambda story: [w for w in dict.fromkeys(texts.words(story)) if w in pool]


def write(a: argparse.Namespace) -> None:
    from sparseflash.model.load import load_model
    from sparseflash.model.spec import as_float32
    from sparseflash.train.writer import Base, Writer, examples, prompts

    model = load_model(a.writer)
    s = model.spec
    base = Base(s.n_layers, s.dim, s.n_heads, s.n_kv_heads, s.head_dim,
                s.layers[0].rope_theta, s.norm_eps)  # fmt: skip
    weights: dict[str, Any] = {"embed": as_float32(model.embed), "final": model.final_norm}
    for i, layer in enumerate(model.layers):
        f = {
            k: as_float32(v)
            for k, v in vars(layer).items()
            if k.endswith("_proj") and v is not None
        }
        weights |= {
            f"qkv.{i}": np.concatenate([f["q_proj"], f["k_proj"], f["v_proj"]]),
            f"o.{i}": f["o_proj"],
            f"gate_up.{i}": np.concatenate([f["gate_proj"], f["up_proj"]]),
            f"down.{i}": f["down_proj"],
            f"norm1.{i}": layer.attn_norm,
            f"norm2.{i}": layer.ffn_norm,
        }
    assert model.tokenizer is not None
    encode, decode = model.tokenizer.encode, model.tokenizer.decode
    train, _ = texts.split(texts.stories_of(a.sample.read_text(encoding="utf-8")))
    pool = texts.content_words(train)
    books = Counter(w for w in texts.raw_words(_books(a)) if w.islower() and 3 <= len(w) <= 9)
    pools = [pool, [w for w, _ in books.most_common(3200)[150:]]]
    writer = Writer(weights, base, a.device)
    told = [x for r in range(3) for x in examples(encode, train, words_of(set(pool)), r)]
    writer.tune(told, 1, 1e-4, 8, say)
    with (a.state / f"written.{a.seed}.txt").open("a", encoding="utf-8") as out:
        for answers in writer.write(
            prompts(encode, pools, a.seed), a.rows, a.length, a.seconds, a.seed, say
        ):
            for ids in answers:
                out.write(texts.plain(decode(ids)) + f"\n{texts.END}\n")
            out.flush()


def _books(a: argparse.Namespace) -> str:
    raw = a.books.read_bytes()
    return (lzma.decompress(raw) if a.books.suffix == ".xz" else raw).decode("utf-8")


def prepare(a: argparse.Namespace) -> None:
    train, held = texts.split(texts.stories_of(a.sample.read_text(encoding="utf-8")))
    written = []
    for path in sorted(a.state.glob("written.*.txt")):
        written += texts.stories_of(path.read_text(encoding="utf-8"))
    random.Random(1).shuffle(written)
    keep = texts.Filter()
    kept = list(keep(written))
    cut = max(1, min(400, len(kept) // 10))
    pieces = [texts.plain(p) for p in texts.pieces(_books(a).replace(texts.END, "\n"))]
    last = max(1, min(20, len(pieces) // 5))
    parts = {"gen": kept[cut:], "books": pieces[:-last], "tiny": train,
             "held_tiny": held, "held_gen": kept[:cut], "held_books": pieces[-last:]}  # fmt: skip
    sample = train * 4 + parts["gen"][:30000] + parts["books"][::6]
    if a.tokenizer:
        engine = Tokenizer.from_file(str(a.tokenizer))
    else:
        engine = texts.train_tokenizer(sample, a.vocab)
    engine.save(str(a.state / "tokenizer.json"))
    notes: dict[str, Any] = {"written": len(written), "dropped": dict(keep.dropped)}
    for name, stories in parts.items():
        tokens = texts.tokens_of(engine, stories)
        np.save(a.state / f"{name}.npy", tokens)
        notes[name] = {
            "stories": len(stories),
            "bytes": sum(len(s.encode()) for s in stories),
            "tokens": len(tokens),
            "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        }
    put(a.state / "data.json", notes)
    say(notes)


def streams(a: argparse.Namespace, seed: int) -> Texts:
    rank = dist.get_rank() if dist.is_initialized() else 0
    parts = [(np.load(a.state / f"{k}.npy"), w) for k, w in MIX.items()]
    return Texts(parts, a.window, a.device, seed + 1000 * rank)


def evaluate(
    a: argparse.Namespace, m: Story, weights: dict[str, torch.Tensor] | None = None
) -> dict[str, Any]:
    """Figures on the held-out texts, on the grids."""
    notes = json.loads((a.state / "data.json").read_text(encoding="utf-8"))
    out = {}
    for name in ("held_tiny", "held_gen", "held_books"):
        tokens = np.load(a.state / f"{name}.npy")
        size = notes[name]["bytes"]
        if len(tokens) > 120001:
            size, tokens = size * 120001 / len(tokens), tokens[:120001]
        out[name] = measure(m, tokens, size, a.window, True, weights)
    return out


def compare(a: argparse.Namespace) -> None:
    found = {}
    for name in a.only or COMPARED:
        change, density, lr = COMPARED[name]
        shape = replace(a.shape, **change) if a.full else a.shape
        plan = Plan(
            steps=a.steps or 240, batch=a.batch, lr=lr, warmup=30, density=density, ramp=0.3,
            decay=0.4, rounding=0.0, ema=0.9,
        )  # fmt: skip
        t = Trainer(Story(shape, a.device, 1), plan, streams(a, 1))
        t.run(float("inf"), lambda _: None)
        found[name] = evaluate(a, t.model) | {"shape": shipped.describe(shape), "lr": lr}
        say({name: found[name]})
        put(a.state / "compare.json", found)


def train(a: argparse.Namespace) -> None:
    shape = replace(a.shape, kind=a.kind)
    plan = replace(PLAN, steps=a.steps or PLAN.steps, batch=a.batch)
    t = Trainer(Story(shape, a.device, 1), plan, streams(a, plan.seed))
    checkpoint = a.state / f"{a.kind}.pt"
    if checkpoint.exists():
        t.load(checkpoint)
    main = not dist.is_initialized() or dist.get_rank() == 0
    done = t.run(a.seconds, say if main else (lambda _: None), checkpoint if main else None)
    say(f"step {t.step} of {plan.steps}" + ("" if done else "; call again to go on"))


def ship(a: argparse.Namespace) -> None:
    """The average of the weights to ``--out``, and its figures."""
    shape = replace(a.shape, kind=a.kind)
    t = Trainer(Story(shape, a.device, 1), PLAN, streams(a, 1))
    t.load(a.state / f"{a.kind}.pt")
    shipped.save(t.averaged(), a.out)
    Tokenizer.from_file(str(a.state / "tokenizer.json")).save(str(a.out / "tokenizer.json"))
    model, weights = shipped.weights(a.out, a.device)
    figures = {"held_out": evaluate(a, model, weights), "plan": asdict(PLAN), "step": t.step}
    put(a.state / f"{a.kind}.json", figures | {"shape": shipped.describe(shape)})
    say(figures)


VERBS = {"write": write, "prepare": prepare, "compare": compare, "train": train, "ship": ship}


def main(given: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="sparseflash.train.story_run", description=__doc__)
    p.add_argument("verb", choices=VERBS)
    p.add_argument("--state", type=Path, default=Path("build/story"))
    p.add_argument("--sample", type=Path, default=Path(".cache/texts/tiny.utf8"))
    p.add_argument("--books", type=Path, default=Path("books.txt.xz"))
    p.add_argument("--writer", default=".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    p.add_argument("--tokenizer", type=Path, help="for prepare: kept; without, one is trained")
    p.add_argument("--out", type=Path, default=Path("build/story/model"))
    p.add_argument("--kind", choices=("split", "dense"), default="split")
    p.add_argument("--seconds", type=float, default=float("inf"))
    p.add_argument("--steps", type=int, default=0, help="0: those of the recipe")
    p.add_argument("--only", nargs="*", choices=COMPARED, help="for compare; none: all")
    p.add_argument("--batch", type=int, default=PLAN.batch)
    p.add_argument("--seed", type=int, default=100)
    p.add_argument("--rows", type=int, default=2048)
    p.add_argument("--length", type=int, default=320)
    p.add_argument("--vocab", type=int, default=SHAPE.vocab)
    p.add_argument("--window", type=int, default=WINDOW)
    p.add_argument("--shape", type=json.loads, default={}, help="JSON, to rehearse with less")
    a = p.parse_args(given)
    a.full = not a.shape
    a.shape = replace(SHAPE, vocab=a.vocab, **a.shape)
    a.state.mkdir(parents=True, exist_ok=True)
    a.device = "cuda" if torch.cuda.is_available() else "cpu"
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if a.device == "cuda" else "gloo")
        if a.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        VERBS[a.verb](a)
    except FileNotFoundError as e:
        raise SystemExit(f"{e.filename} is missing; run the verb before, or name the file") from e
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
