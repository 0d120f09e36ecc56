"""The story model's training: it learns, resumes to the same bits, and its file reads back."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Engine

from sparseflash.model.load import load_model
from sparseflash.model.recipes import fetch, fetch_tokenizer, load_recipe
from sparseflash.model.spec import S4Blocks, S4Columns, as_float32
from sparseflash.train import grid, shipped, story_run, texts
from sparseflash.train.story import Plan, Shape, Story, Texts, Trainer, measure, tell

SHAPE = Shape(
    vocab=300, dim=64, layers=2, heads=2, head_dim=32, ffn=128, gate_inputs=32, context=64
)
PLAN = Plan(steps=60, batch=4, warmup=5, density=0.1, ramp=0.3, ema=0.9, dropout=0.1)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stream() -> np.ndarray:
    """A Markov chain over 40 tokens with few likely successors."""
    rng = np.random.default_rng(0)
    next_of = rng.dirichlet(np.ones(40) * 0.05, 40)
    tokens = [0]
    for _ in range(8000):
        tokens.append(int(rng.choice(40, p=next_of[tokens[-1]])))
    return np.array(tokens, np.uint16)


def trainer(stream: np.ndarray, shape: Shape = SHAPE, plan: Plan = PLAN) -> Trainer:
    torch.manual_seed(3)
    return Trainer(Story(shape, seed=1), plan, Texts([(stream, 1.0)], 32, "cpu", 1))


@pytest.mark.parametrize("kind", ["split", "dense", "blocks"])
def test_it_learns_and_density_reaches_its_target(stream, kind):
    shape = replace(SHAPE, kind=kind, gate_inputs=0 if kind == "blocks" else 32)
    t = trainer(stream, shape, replace(PLAN, steps=150, density=0.25, dropout=0.0, rounding=0.1))
    before = measure(t.model, stream[:2000], 4000, 32, False)
    t.run(1e9, lambda _: None)
    after = measure(t.model, stream[:2000], 4000, 32, True)
    assert after["nats"] < 0.6 * before["nats"]
    if kind != "dense":
        assert abs(after["density"] - 0.25) < 0.06
        assert after["ffn_bytes"] < 1


def test_stop_and_resume_give_the_same_weights(stream, tmp_path):
    whole = trainer(stream)
    whole.run(1e9, lambda _: None)
    first = trainer(stream)
    first.run(1e9, lambda _: None, until=25)
    first.save(tmp_path / "a.pt")
    second = trainer(stream)
    second.load(tmp_path / "a.pt")
    second.run(1e9, lambda _: None)
    assert second.step == whole.step == 60
    for name, p in whole.model.p.items():
        assert torch.equal(p, second.model.p[name]), name
    assert torch.equal(whole.model.log_t, second.model.log_t)
    for name, p in whole.average.items():
        assert torch.equal(p, second.average[name]), name


def test_a_checkpoint_of_another_shape_is_refused(stream, tmp_path):
    t = trainer(stream)
    t.save(tmp_path / "a.pt")
    other = trainer(stream, replace(SHAPE, ffn=160))
    with pytest.raises(ValueError, match="another shape"):
        other.load(tmp_path / "a.pt")


def test_s4_errs_less_than_rounding_by_the_largest():
    w = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    d = grid.s4_scales(w)
    plain = (w.view(64, 3, 32).abs().amax(-1) / 7).half().float().unsqueeze(-1)
    naive = (w.view(64, 3, 32) / plain).round().clamp(-8, 7) * plain
    ours = (grid.s4_round(w) - w).square().sum()
    assert ours < 0.95 * (naive.reshape(64, 96) - w).square().sum()
    q = grid.s4_codes(w, d)
    assert torch.equal(grid.unpack_nibbles(grid.pack_nibbles(q)), q)
    assert int(q.min()) == -8 and int(q.max()) <= 7
    assert torch.equal(grid.s4_round(torch.zeros(1, 32)), torch.zeros(1, 32))


def test_shipped_file_reads_back_with_equal_codes(stream, tmp_path):
    t = trainer(stream)
    t.run(1e9, lambda _: None, until=40)
    folder = tmp_path / "m"
    shipped.save(t.model, folder)
    with torch.no_grad():
        want = {k: v.detach() for k, v in t.model.weights(True).items()}
    model, w = shipped.weights(folder)
    for name, value in want.items():
        assert torch.equal(w[name], value), name

    corpus = ["A dog ran to the red house. " * 3, *(chr(97 + i % 26) * (i + 2) for i in range(200))]
    texts.train_tokenizer(corpus, 300).save(str(folder / "tokenizer.json"))
    m = load_model(folder)
    assert m.spec.gate_inputs == 32 and m.spec.act_threshold == 1.0
    assert m.spec.bos_id == 0 and m.spec.eos_ids == (0,)
    for i, layer in enumerate(m.layers):
        pairs = (("q", layer.q_proj), ("o", layer.o_proj), ("gate", layer.gate_proj))
        for name, block in (*pairs, ("up", layer.up_proj)):
            assert isinstance(block, S4Blocks)
            assert np.array_equal(as_float32(block), w[name][i].numpy()), name
        assert isinstance(layer.down_proj, S4Columns)
        assert np.array_equal(as_float32(layer.down_proj), w["down"][i].numpy().T)
    assert np.array_equal(as_float32(m.embed), w["embed"].numpy())
    assert m.tokenizer is not None
    assert m.tokenizer.decode(m.tokenizer.encode("A dog.")) == "A dog."
    told = tell(model, [[0, 5], [0, 7]], 6, 0.0, 1, 0, w)
    assert told == tell(model, [[0, 5], [0, 7]], 6, 0.0, 2, 0, w)


def test_masked_neurons_do_not_count(stream):
    """A neuron below its threshold leaves no trace: its up row and down column may be anything."""
    t = trainer(stream)
    t.run(1e9, lambda _: None, until=30)
    w = {k: v.detach().clone() for k, v in t.model.weights(False).items()}
    ids = torch.from_numpy(stream[:32].astype(np.int64))[None]
    with torch.no_grad():
        x, _, masks = t.model.hidden(ids, w, keep=True)
        never = masks[0][0].sum(0) == 0
        assert bool(never.any())
        w["up"][0, never] = 1e3
        w["down"][0, never] = -1e3
        again, _, _ = t.model.hidden(ids, w)
    assert torch.equal(x, again)


def test_split_is_every_sixth_and_texts_are_filtered():
    stories = texts.stories_of("a\n<|endoftext|>\nb<|endoftext|>c<|endoftext|> ")
    assert stories == ["a", "b", "c"]
    train, held = texts.split([str(i) for i in range(13)])
    assert held == ["0", "6", "12"] and len(train) == 10
    good = (
        "One day, a small dog named Max found a red ball under the old tree. He took it home and "
        "hid it behind the big chair in the hall. His friend Mia the cat looked for it all day "
        "long. At last she saw a bit of red and laughed out loud. They threw the ball over the "
        "wall and ran after it until the sun went down. Then they slept side by side."
    )
    assert texts.fault(good) == ""
    assert texts.fault(good[:-1]) == "edges"
    assert texts.fault(good + " He ran and he ran and he ran and he ran." * 8) == "repetition"
    assert texts.fault(good.replace("red", "r\u00e9d")) == "characters"
    assert texts.fault("Short.") == "length"
    keep = texts.Filter()
    assert list(keep([good, good])) == [good]
    assert keep.dropped == {"seen": 1}
    assert texts.plain("\u201cHi\u201d \u2014  he\u2019s\n\nhere ") == '"Hi" -- he\'s\nhere'


def test_tokens_start_each_story_with_the_end_token():
    engine = texts.train_tokenizer(["ab abc abcd bcd " * 5, "xyz xy z " * 9], 260)
    assert isinstance(engine, Engine) and engine.token_to_id(texts.END) == texts.END_ID
    tokens = texts.tokens_of(engine, ["abc", "xyz xy"])
    assert tokens.dtype == np.uint16 and list(tokens).count(0) == 2 and tokens[0] == 0
    assert engine.decode([int(t) for t in tokens if t]) == "abcxyz xy"
    with pytest.raises(ValueError, match="more text"):
        texts.train_tokenizer(["a"], 400)


def test_bytes_count_what_is_read():
    read, whole = SHAPE.ffn_bytes(0.25)
    row = 18  # bytes of 32 weights
    per_neuron = row * (1 + 1 + 2)
    assert whole == 2 * 128 * per_neuron
    assert read == 2 * 128 * row * (1 + 0.25 * 3)


def test_verbs_from_text_to_a_shipped_model(tmp_path, capsys):
    """prepare, train in two calls, ship, on a text of a few sentences' shapes."""
    names, things = ("Tom", "Mia", "Ben", "Sue", "Max"), ("ball", "boat", "kite", "drum", "cake")
    places = ("garden", "river", "forest", "kitchen", "village")
    rng = np.random.default_rng(1)

    def story() -> str:
        n, t, p = (str(rng.choice(x)) for x in (names, things, places))
        lines = [
            f"One day {n} found a {t} in the {p} and took it home with a big smile.",
            f"Then {n} lost the {t} near the old {p} and began to cry under the tree.",
            f"A bird saw the {t} and told {n} where it was lying in the tall grass.",
            f"So {n} said thank you and they all went to the {p} to sing and dance.",
            f"In the end the {t} was safe and everyone slept well in the warm house.",
        ]
        return " ".join(lines)

    corpus = f"\n{texts.END}\n".join(story() for _ in range(60))
    (tmp_path / "sample.txt").write_text(corpus)
    (tmp_path / "books.txt").write_text("The king rode to the castle.\n" * 3000)
    (tmp_path / "written.1.txt").write_text(corpus)
    small = {"dim": 64, "layers": 1, "heads": 2, "ffn": 64, "context": 64}
    common = ["--state", str(tmp_path), "--sample", str(tmp_path / "sample.txt"), "--books",
              str(tmp_path / "books.txt"), "--shape", json.dumps(small), "--vocab", "300",
              "--window", "32", "--batch", "2", "--out", str(tmp_path / "model")]  # fmt: skip
    with pytest.raises(SystemExit, match="is missing"):
        story_run.main(["train", *common])
    story_run.main(["prepare", *common])
    story_run.main(["train", "--steps", "200", "--seconds", "0", *common])
    assert "call again" in capsys.readouterr().out
    story_run.main(["train", "--steps", "100", *common])
    story_run.main(["ship", *common])
    model = load_model(tmp_path / "model")
    assert model.tokenizer is not None and model.tokenizer.add_bos
    figures = json.loads((tmp_path / "split.json").read_text())
    assert figures["step"] == 100
    assert figures["held_out"]["held_gen"]["nats"] < 4


def test_the_shipped_story_model_is_the_recipe():
    recipe = load_recipe("story")
    model = load_model(fetch(recipe), fetch_tokenizer(recipe))
    assert model.tokenizer is not None
    text = "Once upon a time, there was a little girl named Lily.\n"
    ids = model.tokenizer.encode(text, bos=True)
    assert ids[0] == 0 and model.tokenizer.decode(ids) == text
    floats, w = shipped.weights(fetch(recipe).parent)
    about = shipped.describe(floats.shape)
    assert about["weights"] > 8_000_000 and about["ffn_share"] >= 0.7
    files = list(fetch(recipe).parent.glob("*"))
    assert sum(f.stat().st_size for f in files) < 8 << 20
    with torch.no_grad():
        row = torch.tensor([ids])
        x, _, masks = floats.hidden(row[:, :-1], w, keep=True)
        nats = torch.nn.functional.cross_entropy((x @ w["embed"].T)[0], row[0, 1:])
    assert float(nats) < 1.2
    read, whole = floats.shape.ffn_bytes(float(torch.stack(masks).mean()))
    assert read < 0.3 * whole


@pytest.mark.parametrize(
    ("change", "read", "whole"),
    [
        ({"bigram": 128}, 2 * 18, 128 * 2 * 18),
        ({"tables": "states"}, 2 * 2 * 18, 2 * 300 * 2 * 18),
        ({"tables": "values"}, 2 * 18, 2 * 300 * 18),
    ],
)
def test_flash_tables_are_trained_on_the_grid_and_change_the_loss(stream, change, read, whole):
    shape = replace(SHAPE, **change)
    assert shape.table_bytes() == (read, whole)
    t = trainer(stream, shape, replace(PLAN, rounding=1.0))
    (name,) = shape.table_shapes()
    before = t.model.p[name].detach().clone()
    t.run(1e9, lambda _: None, until=20)
    assert not torch.equal(before, t.model.p[name])
    w = t.model.weights(True)
    assert torch.equal(w[name], grid.s4_round(t.model.p[name].detach()))
    ids = torch.from_numpy(stream[:33].astype(np.int64))[None]
    with torch.no_grad():
        with_table, _ = t.model.loss(ids, w)
        without, _ = t.model.loss(ids, w | {name: torch.zeros_like(w[name])})
    assert abs(float(with_table) - float(without)) > 1e-4
    with pytest.raises(ValueError, match="no file"):
        shipped.save(t.model, Path("nowhere"))
