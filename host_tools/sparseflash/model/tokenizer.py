"""Tokenizers built from a model's own metadata: byte-level BPE and SentencePiece-style BPE."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Engine

from sparseflash.base.errors import InputError, UnsupportedError
from sparseflash.model.chat_template import holds, render, text_of
from sparseflash.model.pieces import engine_of, read_model
from sparseflash.model.pretokenizers import arrange, has_start

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens in a GGUF and in a SentencePiece file."""
SPACE = "\u2581"
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
"""Special tokens that end an answer whatever the metadata says."""
MOST_TOKENS = 1 << 24
_WRITES_BOS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
_BOS = ("<s>", "<bos>", "<|begin_of_text|>")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: character to byte."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in keep}
    extra = (b for b in range(256) if b not in keep)
    table |= {chr(256 + i): b for i, b in enumerate(extra)}
    return table


class Facts(Protocol):
    """What a tokenizer is told of its model."""

    @property
    def vocab(self) -> int: ...

    @property
    def bos_id(self) -> int: ...

    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    @property
    def chat_template(self) -> str: ...


class Tokenizer:
    """Text to ids and back; ``token_bytes`` is what a device streams for an id."""

    def __init__(
        self,
        engine: Any,
        texts: Sequence[bytes],
        special: dict[str, int],
        *,
        vocab: int = 0,
        chat_template: str = "",
        bos_id: int = -1,
        add_bos: bool = False,
        strip_first_space: bool = False,
        eos_id: int = -1,
        leads: bool = False,
        names: dict[str, Any] | None = None,
    ) -> None:
        """``vocab``: rows of the embedding, which may be more than ``texts``.

        leads: text that no special token begins gets a space before it.
        """
        self._engine = engine
        self._used = len(texts)
        self._texts = [*texts, *([b""] * (vocab - len(texts)))]
        self.special = special
        """Special tokens that ``encode`` recognises in text, with their ids."""
        self._template = chat_template
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.add_bos = add_bos
        """The model was trained with bos_id before every text."""
        self._strip = strip_first_space
        self._leads = leads
        by_id = {i: t for t, i in special.items()}
        marks = {"bos_token": by_id.get(bos_id), "eos_token": by_id.get(eos_id)}
        self.names = {k: v for k, v in marks.items() if v} | (names or {})
        """Special tokens by the names under which templates know them."""

    @property
    def vocab_size(self) -> int:
        return len(self._texts)

    @property
    def used_size(self) -> int:
        """Ids up to the last one that has a token; models may pad their embedding beyond."""
        return self._used

    def token_bytes(self, token: int) -> bytes:
        """Raw bytes of an id; control tokens have none. Raises InputError out of range."""
        if not 0 <= token < len(self._texts):
            raise InputError(
                f"token {token} is outside the vocabulary of {len(self._texts)}; "
                "the ids belong to another model"
            )
        return self._texts[token]

    def encode(self, text: str, bos: bool = False) -> list[int]:
        """Ids of ``text``; special tokens written in it are recognised.

        ``bos`` puts the beginning-of-sequence id first, where the model has one.

        Raises:
            InputError: the text is no Unicode: half of a surrogate pair stands alone.
        """
        if self._leads and text and not text.startswith(tuple(self.special)):
            text = " " + text
        try:
            ids = self._engine.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as e:
            if not any("\ud800" <= c <= "\udfff" for c in text):
                raise
            raise InputError(
                "the text holds half of a surrogate pair, which is no character; remove it"
            ) from e
        return [self.bos_id, *ids] if bos and self.bos_id >= 0 else list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special tokens leave nothing, broken UTF-8 becomes U+FFFD."""
        text = b"".join(self.token_bytes(i) for i in ids).decode("utf-8", "replace")
        return text[1:] if self._strip and text.startswith(" ") else text

    def prompt(self, messages: list[dict[str, Any]], raw: bool = False) -> str:
        """Text of a conversation (``role``, ``content``) that asks for an answer.

        Without a template, or ``raw``, this is the last user's text. Content may be a list of
        parts where the template takes one.

        Raises:
            InputError: no message, or the template fails on these.
        """
        if not messages:
            raise InputError("the conversation is empty; give at least one message")
        if raw or not self._template:
            users = [m for m in messages if m.get("role") == "user"]
            return text_of((users or messages)[-1])
        return render(self._template, messages, self.names)

    def chat(
        self,
        messages: list[dict[str, Any]],
        raw: bool = False,
        warn: Callable[[str], None] | None = None,
    ) -> list[int]:
        """Ids of ``prompt``; without a template they begin with the bos id, where there is one.

        warn: is told when the template leaves the last message out.
        """
        text = self.prompt(messages, raw)
        if warn is not None and not holds(text, messages[-1]):
            warn(
                "the model's chat template leaves your message out or changes it; --raw sends it "
                "as it is"
            )
        return self.encode(text, bos=raw or not self._template)

    def kept(self) -> str:
        """The tokenizer as text, for a host that has it without the model's weights."""
        return json.dumps(
            {
                "engine": self._engine.to_str(),
                "texts": [t.decode("latin-1") for t in self._texts],
                "used": self._used,
                "special": self.special,
                "template": self._template,
                "bos_id": self.bos_id,
                "eos_id": self.eos_id,
                "add_bos": self.add_bos,
                "strip": self._strip,
                "leads": self._leads,
                "names": self.names,
            }
        )

    @classmethod
    def from_kept(cls, kept: str, where: str = "known.json") -> Tokenizer:
        """From :meth:`kept` in a file ``where``. Raises InputError when it is damaged."""
        try:
            raw = json.loads(kept)
            texts = [t.encode("latin-1") for t in raw["texts"]]
            return cls(
                Engine.from_str(raw["engine"]),
                texts[: raw["used"]],
                raw["special"],
                vocab=len(texts),
                chat_template=raw["template"],
                bos_id=raw["bos_id"],
                eos_id=raw["eos_id"],
                add_bos=raw["add_bos"],
                strip_first_space=raw["strip"],
                leads=raw["leads"],
                names=raw["names"],
            )
        except Exception as e:  # the tokenizers package raises Exception itself
            raise InputError(
                f"{where}: no kept tokenizer; run sparseflash generate and flash again"
            ) from e

    @classmethod
    def from_gguf(cls, get: Callable[..., Any], vocab: int = 0) -> Tokenizer:
        """From GGUF metadata; ``get(key, default)`` reads it.

        Raises:
            InputError: the metadata is incomplete. UnsupportedError: another tokenizer.
        """
        tokens: list[str] = list(get("tokenizer.ggml.tokens", None) or [])
        types: list[int] = list(get("tokenizer.ggml.token_type", None) or [NORMAL] * len(tokens))
        model = get("tokenizer.ggml.model", None)
        if not tokens or len(types) != len(tokens):
            raise InputError("the tokenizer metadata is incomplete; convert the model again")
        pre = get("tokenizer.ggml.pre", None)
        kinds = (CONTROL, UNKNOWN, USER)
        special = {t: i for i, (t, k) in enumerate(zip(tokens, types)) if k in kinds and t}
        add_bos = get("tokenizer.ggml.add_bos_token", model == "llama" or has_start(pre))
        names = {}
        for name, key in (("unk_token", "unknown"), ("pad_token", "padding")):
            i = int(get(f"tokenizer.ggml.{key}_token_id", -1))
            if 0 <= i < len(tokens):
                names[name] = tokens[i]
        options: dict[str, Any] = {
            "vocab": vocab,
            "chat_template": str(get("tokenizer.chat_template", "")),
            "bos_id": int(get("tokenizer.ggml.bos_token_id", -1)),
            "eos_id": int(get("tokenizer.ggml.eos_token_id", -1)),
            "add_bos": bool(add_bos),
            "names": names,
        }
        if model == "gpt2":
            merges = [tuple(m.split(" ", 1)) for m in get("tokenizer.ggml.merges", None) or []]
            engine = _byte_level(tokens, types, merges, None if pre is None else str(pre))
            return cls(engine, _byte_level_texts(tokens, types), special, **options)
        if model == "llama":
            scores: list[float] = list(get("tokenizer.ggml.scores", None) or [])
            if len(scores) != len(tokens):
                raise InputError("the tokenizer has no scores; convert the model again")
            # User tokens (Gemma's runs of spaces) belong to the text, not between texts.
            special = {t: i for t, i in special.items() if types[i] != USER}
            prefix = bool(get("tokenizer.ggml.add_space_prefix", True))
            texts = [_piece_bytes(t, k) for t, k in zip(tokens, types)]
            # User tokens are found after the space, which then cannot be the normaliser's.
            leads = prefix and USER in types
            engine = _pieces(tokens, scores, types, prefix and not leads)
            options |= {"leads": leads, "strip_first_space": prefix}
            return cls(engine, texts, special, **options)
        raise UnsupportedError(f"tokenizer model {model!r} is not supported; known: gpt2, llama")

    @classmethod
    def from_tokenizer_json(
        cls, path: Path, spec: Facts | None = None, config: dict[str, Any] | None = None
    ) -> Tokenizer:
        """From a Hugging Face ``tokenizer.json``, run by the tokenizers package.

        ``spec`` brings the vocabulary's size, the bos id and the chat template; ``config`` is
        ``tokenizer_config.json``, whose added tokens and named tokens count as in transformers.

        Raises:
            InputError: damaged. UnsupportedError: neither byte-level nor SentencePiece.
        """
        config = config or {}
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            engine = Engine.from_file(str(path))
            _add_tokens(engine, config)
        except Exception as e:  # the tokenizers package raises plain Exception
            why = " ".join(str(e).split())[:200]
            raise InputError(f"{path}: not a readable tokenizer ({why}); download it again") from e
        parts = json.dumps([raw.get("pre_tokenizer"), raw.get("decoder")])
        byte_level = '"ByteLevel"' in parts
        pieces = '"ByteFallback"' in parts or '"Metaspace"' in parts
        if not byte_level and not pieces:
            raise UnsupportedError(
                f"{path}: only byte-level BPE and SentencePiece (BPE or unigram) are supported"
            )
        return cls._of_engine(engine, byte_level, path, spec, config)

    @classmethod
    def from_tokenizer_model(
        cls, path: Path, spec: Facts | None = None, config: dict[str, Any] | None = None
    ) -> Tokenizer:
        """From SentencePiece's ``tokenizer.model``; the rest as from_tokenizer_json.

        Raises:
            InputError: missing or damaged. UnsupportedError: words, characters or suffixes.
        """
        config = {"add_bos_token": True, "tokenizer_class": "LlamaTokenizer"} | (config or {})
        model = read_model(path)
        tokens, types = [p.piece for p in model.pieces], [int(p.type) for p in model.pieces]
        prefix = bool(model.normalizer_spec.add_dummy_prefix)
        # As in a GGUF: user tokens are found after the space, which the text then brings.
        leads = prefix and USER in types
        engine = engine_of(model, _merges, prefix and not leads)
        _recognise(engine, tokens, types, normalized=not prefix or leads)
        _add_tokens(engine, config)
        for name, i in (
            ("bos_token", model.trainer_spec.bos_id),
            ("eos_token", model.trainer_spec.eos_id),
        ):
            if 0 <= i < len(tokens) and not config.get(name):
                config[name] = tokens[i]
        found = cls._of_engine(engine, False, path, spec, config)
        found._leads, found._strip = leads, prefix
        return found

    @classmethod
    def _of_engine(
        cls, engine: Any, byte_level: bool, path: Path, spec: Facts | None, config: dict[str, Any]
    ) -> Tokenizer:
        """What every tokenizer file of a folder becomes."""
        known = engine.get_vocab(with_added_tokens=True)
        size = max(known.values(), default=-1) + 1
        if size > MOST_TOKENS:
            raise InputError(f"{path}: {size:,} tokens are not believable; download it again")
        tokens = [""] * size
        for text, i in known.items():
            tokens[i] = text
        added = engine.get_added_tokens_decoder()
        special = {t.content: i for i, t in added.items() if t.special}
        types = [NORMAL] * size
        for i, t in added.items():
            types[i] = CONTROL if t.special else USER
        prefix = False
        if byte_level:
            texts = _byte_level_texts(tokens, types)
        else:
            for i, text in enumerate(tokens):
                if re.fullmatch(r"<0x[0-9A-F]{2}>", text):
                    types[i] = BYTE
            texts = [_piece_bytes(t, k) for t, k in zip(tokens, types)]
            probe = engine.encode("a", add_special_tokens=False).tokens
            prefix = bool(probe) and probe[0].startswith(SPACE)
        names = _named_tokens(config)
        bos = spec.bos_id if spec else next((special[t] for t in _BOS if t in special), -1)
        bos = known.get(names.get("bos_token", ""), bos)
        eos = spec.eos_ids[0] if spec and spec.eos_ids else -1
        eos = known.get(names.get("eos_token", ""), eos)
        first = engine.encode("a").ids
        add_bos = bos >= 0 and bool(first) and first[0] == bos
        if str(config.get("tokenizer_class", "")).startswith(_WRITES_BOS):
            # These classes of transformers write the template of tokenizer.json anew.
            add_bos = bos >= 0 and bool(config.get("add_bos_token", True))
        return cls(
            engine,
            texts,
            special,
            vocab=spec.vocab if spec else 0,
            chat_template=spec.chat_template if spec else "",
            bos_id=bos,
            eos_id=eos,
            add_bos=add_bos,
            strip_first_space=prefix,
            names=names,
        )

    @classmethod
    def from_llama2c(cls, path: Path, vocab: int) -> Tokenizer:
        """From llama2.c's ``tokenizer.bin``: int32, then (float score, int32 length, bytes).

        Raises:
            InputError: missing, or it does not hold exactly ``vocab`` tokens.
        """
        try:
            data = path.read_bytes()
        except OSError as e:
            raise InputError(
                f"{path}: cannot be read ({e.strerror}); put the tokenizer there"
            ) from e
        if vocab < 259:
            raise InputError(f"{path}: {vocab} tokens leave no room for the 256 byte tokens")
        pieces: list[bytes] = []
        scores: list[float] = []
        at = 4
        try:
            for _ in range(vocab):
                score, length = struct.unpack_from("<fi", data, at)
                at += 8
                if length < 0 or at + length > len(data):
                    raise InputError(f"{path}: truncated tokenizer; download it again")
                pieces.append(data[at : at + length])
                scores.append(score)
                at += length
        except struct.error:
            raise InputError(f"{path}: truncated tokenizer; download it again") from None
        if at != len(data):
            raise InputError(
                f"{path}: it holds more than the model's {vocab} tokens; give the model's own"
            )
        tokens = [p.decode("utf-8", "replace").replace(" ", SPACE) for p in pieces]
        types = [NORMAL] * vocab
        types[:3] = [UNKNOWN, CONTROL, CONTROL]
        types[3:259] = [BYTE] * 256
        tokens[:3] = ["<unk>", "<s>", "</s>"]
        tokens[3:259] = [f"<0x{b:02X}>" for b in range(256)]
        texts = [_piece_bytes(t, k) for t, k in zip(tokens, types)]
        special = {"<s>": 1, "</s>": 2}
        engine = _pieces(tokens, scores, types, True)
        return cls(engine, texts, special, bos_id=1, eos_id=2, add_bos=True, strip_first_space=True)


def _byte_level_texts(tokens: list[str], types: list[int]) -> list[bytes]:
    table = _byte_alphabet()
    out: list[bytes] = []
    for text, kind in zip(tokens, types):
        if kind in (CONTROL, UNKNOWN):
            out.append(b"")
        elif kind == USER or any(c not in table for c in text):
            out.append(text.encode())
        else:
            out.append(bytes(table[c] for c in text))
    return out


def _named_tokens(config: dict[str, Any]) -> dict[str, Any]:
    """What tokenizer_config.json calls bos_token, eos_token and so on, where it says so."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
    out: dict[str, Any] = {}
    for name in (*names, "mask_token"):
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            out[name] = value
    return out


def _add_tokens(engine: Any, config: dict[str, Any]) -> None:
    """Adds tokens of tokenizer_config.json that tokenizer.json lacks, as transformers does."""
    entries = config.get("added_tokens_decoder") or {}
    have = engine.get_added_tokens_decoder()
    for i in sorted(entries, key=int):
        entry = entries[i]
        flags = ("single_word", "lstrip", "rstrip", "special")
        options = {k: bool(entry.get(k, False)) for k in flags}
        normalized = bool(entry.get("normalized", not options["special"]))
        token = AddedToken(entry["content"], normalized=normalized, **options)
        if have.get(int(i)) != token:
            engine.add_special_tokens([token]) if token.special else engine.add_tokens([token])


def _byte_level(
    tokens: list[str], types: list[int], merges: list[tuple[str, ...]], pre: str | None
) -> Any:
    """The engine of byte-level BPE that cuts text as ``pre`` names it."""
    vocab = {t: i for i, t in enumerate(tokens)}
    if not merges:
        raise InputError("the tokenizer has no merges; convert the model again")
    bpe = models.BPE(vocab=vocab, merges=merges)
    engine = Engine(bpe)
    if arrange(engine, pre):
        bpe.ignore_merges = True
        engine.model = bpe
    engine.decoder = decoders.ByteLevel()
    _recognise(engine, tokens, types, normalized=False)
    return engine


def _recognise(engine: Any, tokens: list[str], types: list[int], normalized: bool) -> None:
    """Control and user tokens are found in text; the latter after the normaliser if asked."""
    control = [
        AddedToken(t, special=True, normalized=False)
        for t, k in zip(tokens, types)
        if k in (CONTROL, UNKNOWN) and t
    ]
    user = [
        AddedToken(t, special=False, normalized=normalized)
        for t, k in zip(tokens, types)
        if k == USER and t
    ]
    engine.add_special_tokens(control)
    engine.add_tokens(user)


def _piece_bytes(text: str, kind: int) -> bytes:
    if kind in (CONTROL, UNKNOWN):
        return b""
    if kind == BYTE:
        return bytes([int(text[3:5], 16)])
    return text.replace(SPACE, " ").encode()


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, the best piece first.

    The order is that of transformers' converter, also where scores are equal.
    """
    ids = {t: i for i, t in enumerate(scores)}
    out: list[tuple[str, str, float]] = []
    for piece, score in scores.items():
        pairs = [
            (piece[:cut], piece[cut:], score)
            for cut in range(1, len(piece))
            if piece[:cut] in ids and piece[cut:] in ids
        ]
        out += sorted(pairs, key=lambda p: (ids[p[0]], ids[p[1]]))
    out.sort(key=lambda p: (-p[2], -len(p[0]), -len(p[1])))
    return [(a, b) for a, b, _ in out]


def _pieces(tokens: list[str], scores: list[float], types: list[int], prefix: bool) -> Any:
    """The engine of SentencePiece BPE: the pair that makes the piece with the best score merges
    first; characters without a piece become bytes. ``prefix`` puts a space before text."""
    vocab = {t: i for i, t in enumerate(tokens)}
    normal = {t: s for t, s, k in zip(tokens, scores, types) if k == NORMAL and t}
    unknown = next((t for t, k in zip(tokens, types) if k == UNKNOWN), None)
    engine = Engine(
        models.BPE(
            vocab=vocab,
            merges=_merges(normal),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replace = normalizers.Replace(" ", SPACE)
    engine.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix else replace
    )
    _recognise(engine, tokens, types, normalized=not prefix)
    return engine
