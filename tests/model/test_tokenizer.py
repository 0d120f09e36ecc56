"""Tokenizers: round trips, agreement with the tokenizers package, refusals."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from conftest import data_folder
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
    import json

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
        SPACE,
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


def test_stories_tokenizers_agree() -> None:
    data = data_folder()
    if not (data / "tok512.bin").is_file():
        pytest.skip(f"no tok512.bin in {data}")
    tok = Tokenizer.from_llama2c(data / "tok512.bin", 512)
    json_path = data / "stories260K_hf" / "tokenizer.json"
    other = Tokenizer.from_tokenizer_json(json_path)
    engine = tokenizers.Tokenizer.from_file(str(json_path))
    story = 'Lily saw a big, red ball \u2014 it was \u4f60 fun!\nShe said: "Can I play?" ' * 20
    for text in (*TEXTS, story):
        assert tok.decode(tok.encode(text)) == text
        assert tok.encode(text, bos=True) == other.encode(text, bos=True)
        if text:
            assert tok.encode(text, bos=True) == engine.encode(text).ids
    assert tok.add_bos
    assert other.add_bos
    assert [tok.token_bytes(i) for i in range(512)] == [other.token_bytes(i) for i in range(512)]
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
    values = byte_level_fields(engine, "deepseek")
    with pytest.raises(UnsupportedError, match="deepseek"):
        Tokenizer.from_gguf(fields(values))
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
