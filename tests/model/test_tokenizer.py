"""Tokenizers: round trips, agreement with the tokenizers package, refusals."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import generate_merges

from small import pieces, write_tokenizer
from sparseflash.base.errors import InputError, UnsupportedError
from sparseflash.base.files import root
from sparseflash.model.load import load_model
from sparseflash.model.tokenizer import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER, Tokenizer

TEXTS = (
    "Once upon a time, there was a little girl.",
    "don't  stop\n\n\tHere: 1234567 + 89 = 12,345!",
    " leading and trailing ",
    "na\u00efve caf\u00e9 \u2014 \u4f60\u597d \U0001f600 \u0416",
    "def f(x):\n    return x*x  # ok\r\n",
    "",
    "\x00\x7f\u2028",
)
CORPUS = [
    "Once upon a time there was a little girl who didn't stop. 1234 12 99",
    "def f(x):\n    return x * x\n\n  the cat sat on the mat, the end!",
] * 4
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def fields(values: dict[str, Any]) -> Callable[..., Any]:
    return lambda key, default=None: values.get(key, default)


def byte_level_engine() -> Any:
    """SmolLM2's arrangement, trained on a few lines."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(IM),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(CORPUS, trainer)
    return engine


def byte_level_fields(engine: Any, pre: str) -> dict[str, Any]:
    model = json.loads(engine.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if t in IM else NORMAL for t in tokens],
        "tokenizer.ggml.merges": [" ".join(m) for m in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


@pytest.fixture(scope="module")
def engine() -> Any:
    return byte_level_engine()


@pytest.fixture(scope="module")
def byte_level(engine: Any) -> Tokenizer:
    return Tokenizer.from_gguf(fields(byte_level_fields(engine, "smollm")))


def piece_fields(prefix: bool) -> dict[str, Any]:
    """A small SentencePiece vocabulary, scores falling with the id."""
    words = [SPACE, "t", "h", "e", "a", "c", f"{SPACE}t", "he", f"{SPACE}the", "th", "at", "ca"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    types = [CONTROL, CONTROL, CONTROL, UNKNOWN] + [BYTE] * 256
    tokens += ["  ", "<start_of_turn>", *words]
    types += [USER, CONTROL] + [NORMAL] * len(words)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


# Byte-level BPE -------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "qwen2", "llama-bpe"])
def test_byte_level_round_trip(pre: str, text: str, engine: Any) -> None:
    tok = Tokenizer.from_gguf(fields(byte_level_fields(engine, pre)))
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert b"".join(tok.token_bytes(i) for i in ids) == text.encode()
    assert tok.vocab_size == engine.get_vocab_size()


@pytest.mark.parametrize("text", TEXTS)
def test_gguf_and_tokenizer_json_agree(
    text: str, engine: Any, byte_level: Tokenizer, tmp_path: Path
) -> None:
    engine.save(str(tmp_path / "tokenizer.json"))
    other = Tokenizer.from_tokenizer_json(tmp_path / "tokenizer.json")
    assert byte_level.encode(text) == other.encode(text) == engine.encode(text).ids
    assert other.decode(other.encode(text)) == text
    everything = range(byte_level.vocab_size)
    assert [other.token_bytes(i) for i in everything] == [
        byte_level.token_bytes(i) for i in everything
    ]


def test_special_tokens_in_text(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("<|im_start|>the<|im_end|>")
    assert (ids[0], ids[-1]) == (1, 2)
    assert byte_level.decode(ids) == "the"
    assert byte_level.token_bytes(1) == b""
    assert byte_level.encode("the", bos=True) == [1, *byte_level.encode("the")]


def test_chat_renders_the_template(byte_level: Tokenizer, engine: Any) -> None:
    ids = byte_level.chat([{"role": "user", "content": "the cat"}])
    want = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    assert ids == byte_level.encode(want) == engine.encode(want).ids
    with pytest.raises(InputError, match="empty"):
        byte_level.chat([])


def test_raw_text_and_texts_that_templates_leave_out(engine: Any) -> None:
    values = {**byte_level_fields(engine, "smollm"), "tokenizer.chat_template": "{{ bos_token }}x"}
    tok = Tokenizer.from_gguf(fields(values))
    said: list[str] = []
    message = [{"role": "user", "content": "the end"}]
    assert tok.prompt(message) == "<|im_start|>x"
    assert tok.chat(message, warn=said.append) == tok.encode("<|im_start|>x")
    assert len(said) == 1 and "leaves your message out" in said[0]
    assert tok.chat(message, raw=True, warn=said.append) == tok.encode("the end", bos=True)
    assert len(said) == 1


def test_chat_without_a_template_takes_the_last_user_text(engine: Any) -> None:
    values = byte_level_fields(engine, "smollm")
    del values["tokenizer.chat_template"]
    tok = Tokenizer.from_gguf(fields(values))
    messages = [{"role": "user", "content": "the end"}, {"role": "assistant", "content": "x"}]
    assert tok.chat(messages) == tok.encode("the end", bos=True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% for %}",
        "{{ messages.missing.attribute }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_bad_templates_are_refused(template: str, engine: Any) -> None:
    values = {**byte_level_fields(engine, "smollm"), "tokenizer.chat_template": template}
    with pytest.raises(InputError, match="template"):
        Tokenizer.from_gguf(fields(values)).chat([{"role": "user", "content": "x"}])


# SentencePiece-style BPE ----------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_round_trip(text: str, prefix: bool) -> None:
    tok = Tokenizer.from_gguf(fields(piece_fields(prefix)))
    assert tok.decode(tok.encode(text, bos=True)) == text


def test_pieces_merge_by_score() -> None:
    values = piece_fields(True)
    tok = Tokenizer.from_gguf(fields(values))
    names = values["tokenizer.ggml.tokens"]
    assert [names[i] for i in tok.encode("the cat")] == [f"{SPACE}the", SPACE, "c", "at"]
    assert [names[i] for i in tok.encode("a<start_of_turn>\u00e9")][-3:] == [
        "<start_of_turn>",
        "<0xC3>",
        "<0xA9>",
    ]
    assert tok.token_bytes(names.index("  ")) == b"  "


def test_pieces_agree_with_byte_fallback_json(tmp_path: Path) -> None:
    values = piece_fields(False)
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    vocab = {t.replace(" ", SPACE): i for i, t in enumerate(tokens)}
    merges = [
        (t[:cut], t[cut:])
        for t, k in zip(tokens, types)
        if k == NORMAL
        for cut in range(1, len(t))
        if t[:cut] in vocab and t[cut:] in vocab
    ]
    merges.sort(key=lambda m: vocab[m[0] + m[1]])
    engine = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    engine.normalizer = normalizers.Replace(" ", SPACE)
    engine.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    engine.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"])
    engine.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_gguf(fields(values))
    theirs = Tokenizer.from_tokenizer_json(tmp_path / "tokenizer.json")
    for text in (*TEXTS, "the that cat heath catthe"):
        if "  " not in text:
            assert ours.encode(text) == theirs.encode(text)
        assert theirs.decode(theirs.encode(text)) == text


# llama2.c -------------------------------------------------------------------


def llama2c_ids(text: str) -> list[int]:
    """As run.c of llama2.c: characters or their bytes, then the best pair again and again."""
    index = {p: 259 + i for i, p in enumerate(pieces())}
    ids = [index[" "]] if text else []
    for character in text:
        found = index.get(character)
        ids += [found] if found else [3 + b for b in character.encode()]
    known = {v: k for k, v in index.items()}
    while True:
        pairs = [
            (index[known[a] + known[b]], i)
            for i, (a, b) in enumerate(pairwise(ids))
            if a in known and b in known and known[a] + known[b] in index
        ]
        if not pairs:
            return [1, *ids]
        best, at = min(pairs)
        ids[at : at + 2] = [best]


def test_llama2c_tokens_are_those_of_llama2c(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tok512.bin")
    tok = Tokenizer.from_llama2c(tmp_path / "tok512.bin", 512)
    story = 'Lily saw a big, red ball \u2014 it was \u4f60 fun!\nShe said: "Can I play?" ' * 20
    for text in (*TEXTS, story):
        assert tok.decode(tok.encode(text)) == text
        assert tok.encode(text, bos=True) == llama2c_ids(text)
    assert len(tok.encode(story)) < 0.7 * len(story)
    assert tok.add_bos
    assert tok.token_bytes(13) == b"\n"
    assert tok.chat([{"role": "user", "content": "Hi"}])[0] == 1


def llama2c_bytes(n: int) -> bytes:
    pieces = [b"x%d" % i for i in range(n)]
    body = b"".join(struct.pack("<fi", -1.0, len(p)) + p for p in pieces)
    return struct.pack("<i", 4) + body


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (llama2c_bytes(300)[:-3], "truncated"),
        (llama2c_bytes(299), "truncated"),
        (b"", "truncated"),
        (llama2c_bytes(301), "more than"),
    ],
)
def test_wrong_llama2c_tokenizers(data: bytes, word: str, tmp_path: Path) -> None:
    path = tmp_path / "tok.bin"
    path.write_bytes(data)
    with pytest.raises(InputError, match=word):
        Tokenizer.from_llama2c(path, 300)


# Refusals -------------------------------------------------------------------


def test_unknown_and_incomplete_tokenizers(engine: Any, tmp_path: Path) -> None:
    values = byte_level_fields(engine, "no-such")
    with pytest.raises(UnsupportedError, match="no-such"):
        Tokenizer.from_gguf(fields(values))
    for pre in (None, "default"):
        with pytest.raises(InputError, match=r"tokenizer\.ggml\.pre does not say"):
            Tokenizer.from_gguf(fields({**values, "tokenizer.ggml.pre": pre}))
    with pytest.raises(UnsupportedError, match="bert"):
        Tokenizer.from_gguf(fields({**values, "tokenizer.ggml.model": "bert"}))
    for key in ("tokens", "merges"):
        with pytest.raises(InputError):
            part = {**values, f"tokenizer.ggml.{key}": [], "tokenizer.ggml.pre": "smollm"}
            Tokenizer.from_gguf(fields(part))
    with pytest.raises(InputError, match="scores"):
        Tokenizer.from_gguf(fields({**piece_fields(True), "tokenizer.ggml.scores": []}))
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(InputError, match="not a readable"):
        Tokenizer.from_tokenizer_json(path)
    tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    with pytest.raises(UnsupportedError, match="byte-level"):
        Tokenizer.from_tokenizer_json(path)
    with pytest.raises(InputError, match="outside"):
        Tokenizer.from_gguf(fields(piece_fields(True))).token_bytes(9999)


def test_half_of_a_surrogate_pair_is_one_sentence(byte_level: Tokenizer) -> None:
    with pytest.raises(InputError, match="surrogate"):
        byte_level.encode("a\ud83d b")


def test_vocabularies_shorter_than_the_embedding(engine: Any) -> None:
    tok = Tokenizer.from_gguf(fields(byte_level_fields(engine, "smollm")), 500)
    assert (tok.used_size, tok.vocab_size) == (engine.get_vocab_size(), 500)
    assert tok.token_bytes(499) == b""


# Ids of transformers --------------------------------------------------------


def corpus(size: int) -> str:
    """Mixed text of about ``size`` bytes, the same every time."""
    rng = random.Random(7)
    line = "the cat sat Don't stop I'LL we've naïve café STRASSE ẞ ﬁn ½ ² Ⅷ x1y2"
    words = line.split(" ")
    scripts = [
        "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก", "你好，世界。", "こんにちは",
        "안녕하세요", "Žluťoučký kůň", "Ελληνικά", "Привет, мир!", "\u202eRTL\u202c",
    ]  # fmt: skip
    marks = ["e\u0301", "a\u0308\u0323", "Å", "A\u030a", "\u1e9b\u0323", "z\u0335\u0336\u0337"]
    emoji = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "①"]
    code = ["def f(x):\r\n\treturn x*x  # ok\r\n", "if (a != b) { a->c[0] += 0x1F; }\n", "</p>\n\n"]
    odd = ["\0", "\x7f", "\u2028", "\ufeff", "\u00a0", "\t\t", "\r", "\r\n", "\u3000", "\U000e0041"]
    numbers = ["1", "12", "1234567", "3.14159", "１２３", "٣٤", "12,345"]
    runs = [" " * 40, "a" * 300, "=" * 80, "\n" * 20, "ab" * 100, "0" * 50, "\u2581" * 3, "!?" * 30]
    special = ["<|im_start|>", "<|im_end|>", " <|im_end|> \n", "<|im_end", "<s>", "<0x41>"]
    kinds = [words] * 6 + [scripts, marks, emoji, code, odd, numbers, runs, special]
    out: list[str] = []
    length = 0
    while length < size:
        part = rng.choice(rng.choice(kinds)) + rng.choice(["", " ", " ", " ", "  ", "\n", "."])
        out.append(part)
        length += len(part.encode())
    return "".join(out)


def split_at(*patterns: str) -> list[Any]:
    return [pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in patterns]


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
ARRANGEMENTS: dict[str, tuple[Any, list[Any], bool]] = {
    # name: normaliser, steps before the bytes, whether the bytes are cut as GPT-2 cuts them
    "gpt-2": (None, [], True),
    "smollm": (None, [pre_tokenizers.Digits(individual_digits=True)], True),
    "command-r": (normalizers.NFC(), [pre_tokenizers.Digits(individual_digits=True)], True),
    "olmo": (normalizers.NFC(), [], True),
    "llama-bpe": (
        None,
        split_at(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + TAIL),
        False,
    ),
    "qwen2": (
        normalizers.NFC(),
        split_at(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + TAIL),
        False,
    ),
    "deepseek-coder": (
        None,
        split_at("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN, r"\p{N}"),
        False,
    ),
}


@pytest.fixture(scope="module")
def mixed() -> str:
    return corpus(120_000)


@pytest.mark.parametrize("pre", ARRANGEMENTS)
def test_byte_level_ids_are_those_of_transformers(pre: str, mixed: str, tmp_path: Path) -> None:
    """The same vocabulary as tokenizer.json and as GGUF against the fast tokenizer."""
    normalizer, steps, words = ARRANGEMENTS[pre]
    engine = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if normalizer is not None:
        engine.normalizer = normalizer
    bytes_step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    engine.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_step])
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=list(IM),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator([mixed[:60_000]], trainer)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=engine, eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    theirs.save_pretrained(tmp_path)
    want = theirs(mixed, add_special_tokens=False)["input_ids"]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    ours = Tokenizer.from_tokenizer_json(tmp_path / "tokenizer.json", None, config)
    assert ours.encode(mixed) == want
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert Tokenizer.from_gguf(fields(byte_level_fields(engine, pre))).encode(mixed) == want


def test_a_megabyte(tmp_path: Path) -> None:
    text = corpus(1_000_000)
    engine = byte_level_engine()
    engine.save(str(tmp_path / "tokenizer.json"))
    want = transformers.PreTrainedTokenizerFast(tokenizer_object=engine)(text)["input_ids"]
    assert Tokenizer.from_tokenizer_json(tmp_path / "tokenizer.json").encode(text) == want
    gguf_path = Tokenizer.from_gguf(fields(byte_level_fields(engine, "smollm")))
    assert gguf_path.encode(text) == want
    assert gguf_path.decode([i for i in want if i > 2]) == re.sub(
        r"<\|(im_start|im_end|endoftext)\|>", "", text
    )


def piece_vocabulary(text: str) -> dict[str, float]:
    """Pieces with falling scores, as SentencePiece's BPE learns them."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.normalizer = normalizers.Replace(" ", SPACE)
    engine.pre_tokenizer = pre_tokenizers.Split(
        tokenizers.Regex(f"{SPACE}+[^{SPACE}]*"), "isolated"
    )
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False, limit_alphabet=150)
    engine.train_from_iterator([text.replace("\0", "")], trainer)
    vocab = engine.get_vocab()
    return {t: -float(i) for i, t in enumerate(sorted(vocab, key=vocab.get))}  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", [True, False])
def test_piece_ids_are_those_of_transformers(prefix: bool, mixed: str, tmp_path: Path) -> None:
    pieces = piece_vocabulary(mixed[:60_000])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)]
    scores = [0.0, 0.0, 0.0, *[0.0] * 256, *pieces.values()]
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = generate_merges({t: vocab[t] for t in pieces}, pieces)
    engine = tokenizers.Tokenizer(
        models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    steps = [normalizers.Prepend(SPACE)] if prefix else []
    engine.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    engine.decoder = decoders.Sequence(parts + [decoders.Strip(" ", 1, 0)] * prefix)
    engine.add_special_tokens(["<unk>", "<s>", "</s>"])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=engine, eos_token="</s>")
    theirs.save_pretrained(tmp_path)
    want = theirs(mixed, add_special_tokens=False)["input_ids"]
    assert Tokenizer.from_tokenizer_json(tmp_path / "tokenizer.json").encode(mixed) == want
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    assert Tokenizer.from_gguf(fields(values)).encode(mixed) == want


def test_unigram_ids_are_those_of_transformers(mixed: str, tmp_path: Path) -> None:
    pieces = piece_vocabulary(mixed[:60_000])
    scored = [("<unk>", 0.0), *((f"<0x{b:02X}>", -20.0) for b in range(256))]
    scored += [(t, -1.0 + v / 100) for t, v in pieces.items()]
    engine = tokenizers.Tokenizer(models.Unigram(scored, 0, byte_fallback=True))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    engine.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)]
    )
    engine.add_special_tokens(["<unk>", "<|im_end|>"])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=engine)
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_tokenizer_json(tmp_path / "tokenizer.json")
    assert ours.encode(mixed) == theirs(mixed, add_special_tokens=False)["input_ids"]
    assert ours.decode(ours.encode("the cat \U0001f600")) == "the cat \U0001f600"


def test_special_tokens_that_take_spaces(engine: Any, tmp_path: Path) -> None:
    """rstrip and lstrip, a Metaspace prefix at the start only, tokens of tokenizer_config.json."""
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=engine)
    theirs.add_tokens([tokenizers.AddedToken("<|end|>", rstrip=True, special=True)], True)
    theirs.add_tokens([tokenizers.AddedToken("<tool>", lstrip=True)])
    theirs.eos_token = "<|end|>"
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    text = "the <|end|> \n cat <tool>the<|im_end|> <|end|>"
    want = theirs(text, add_special_tokens=False)["input_ids"]
    path = tmp_path / "tokenizer.json"
    ours = Tokenizer.from_tokenizer_json(path, None, config)
    assert ours.encode(text) == want
    assert ours.eos_id == theirs.eos_token_id
    assert ours.names == {"eos_token": "<|end|>"}
    raw = json.loads(path.read_text())  # a tokenizer.json that lacks what the configuration adds
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] in IM]
    path.write_text(json.dumps(raw))
    assert Tokenizer.from_tokenizer_json(path, None, config).encode(text) == want


def test_smollm2_tokenizer() -> None:
    path = root() / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.skip(f"no {path}; `make fetch` brings it")
    tok = load_model(path).tokenizer
    assert tok is not None
    for text in TEXTS:
        assert tok.decode(tok.encode(text)) == text
    ids = tok.chat([{"role": "user", "content": "Hi"}])
    assert ids[0] == 1
    assert ids.count(1) == 3
    assert ids.count(2) == 2
    assert tok.decode(ids).endswith("user\nHi\nassistant\n")


def piece_file(folder: Path, kind: str, rule: str, fallback: bool, user: str = "") -> Path:
    """A small ``tokenizer.model`` that SentencePiece itself trains."""
    lines = [x for x in corpus(60_000).replace("\0", "").split("\n") if x.strip()]
    (folder / "text.txt").write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=600,
        model_type=kind,
        byte_fallback=fallback,
        normalization_rule_name=rule,
        remove_extra_whitespaces=rule != "identity",
        character_coverage=0.99,
        hard_vocab_limit=False,
        user_defined_symbols=user,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_ids_of_a_piece_file_are_those_of_sentencepiece(
    kind: str, rule: str, fallback: bool, tmp_path: Path
) -> None:
    """On the corpus, less what the tokenizers engine is known to do otherwise, in transformers too:
    marks that a table composes, long runs with several best cuts, byte pieces spelt in the text."""
    path = piece_file(tmp_path, kind, rule, fallback)
    theirs = sentencepiece.SentencePieceProcessor(str(path))
    ours = Tokenizer.from_tokenizer_model(path)
    other = ["<s>", "</s>", "<unk>"]
    other += ["\u0323"] if rule != "identity" else []
    other += ["<0x"] if kind == "unigram" else []
    runs = re.compile(r"(.{1,2})\1{7}" if kind == "unigram" else "(?!)")
    lines = (*TEXTS, *corpus(80_000).split("\n"))
    texts = [t for t in lines if not any(o in t for o in other) and not runs.search(t)]
    assert len(texts) > 400
    for text in texts:
        assert ours.encode(text) == theirs.encode(text), text
    assert (ours.bos_id, ours.eos_id, ours.add_bos) == (1, 2, True)
    assert not fallback or ours.decode(ours.encode(TEXTS[0])) == TEXTS[0]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_ids_of_a_piece_file_are_those_of_transformers(
    kind: str, mixed: str, tmp_path: Path
) -> None:
    """The whole corpus, special tokens included."""
    path = piece_file(tmp_path, kind, "identity", True)
    theirs = transformers.LlamaTokenizerFast(vocab_file=str(path), add_prefix_space=True)
    want = theirs(mixed, add_special_tokens=False)["input_ids"]
    assert Tokenizer.from_tokenizer_model(path).encode(mixed) == want


def test_user_tokens_of_a_piece_file(tmp_path: Path) -> None:
    path = piece_file(tmp_path, "bpe", "identity", True, "<turn>")
    theirs = sentencepiece.SentencePieceProcessor(str(path))
    ours = Tokenizer.from_tokenizer_model(path)
    for text in ("<turn>Once upon", "a<turn>  b", "a <turn>", "Once<turn><turn>upon a time"):
        assert ours.encode(text) == theirs.encode(text), text


def test_a_folder_with_a_piece_file_alone(tmp_path: Path) -> None:
    piece_file(tmp_path, "bpe", "identity", True)
    config = transformers.LlamaConfig(
        vocab_size=640,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.tokenizer is not None
    assert model.tokenizer.encode("Once upon", bos=True)[0] == 1
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\xffno message")
    with pytest.raises(InputError, match="not a SentencePiece file"):
        load_model(tmp_path)
    piece_file(tmp_path, "char", "identity", False)
    with pytest.raises(UnsupportedError, match="by words or characters"):
        load_model(tmp_path)
