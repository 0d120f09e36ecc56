"""Tokenizers built from a model's own metadata: byte-level BPE and SentencePiece-style BPE."""

from __future__ import annotations

import heapq
import json
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2.sandbox
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Engine

from sparseflash.base.errors import InputError, UnsupportedError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
"""Special tokens that end an answer whatever the metadata says."""
_BOS = ("<s>", "<bos>", "<|begin_of_text|>")
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


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
        texts: Sequence[bytes],
        special: dict[str, int],
        encode_plain: Callable[[str], list[int]],
        *,
        chat_template: str = "",
        bos_id: int = -1,
        add_bos: bool = False,
        strip_first_space: bool = False,
        eos_id: int = -1,
    ) -> None:
        self._texts = list(texts)
        self.special = special
        """Special tokens that ``encode`` recognises in text, with their ids."""
        self._encode_plain = encode_plain
        self._template = chat_template
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.add_bos = add_bos
        """The model was trained with bos_id before every text."""
        self._strip = strip_first_space
        pattern = "|".join(re.escape(t) for t in sorted(special, key=len, reverse=True))
        self._split = re.compile(f"({pattern})") if pattern else None

    @property
    def vocab_size(self) -> int:
        return len(self._texts)

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
        """
        ids = [self.bos_id] if bos and self.bos_id >= 0 else []
        for part in self._split.split(text) if self._split else [text]:
            if part in self.special:
                ids.append(self.special[part])
            elif part:
                ids += self._encode_plain(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special tokens leave nothing, broken UTF-8 becomes U+FFFD."""
        text = b"".join(self.token_bytes(i) for i in ids).decode("utf-8", "replace")
        return text[1:] if self._strip and text.startswith(" ") else text

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a conversation (``role``, ``content``) that asks for an answer.

        Without a template these are the last user's text after the bos id. The
        template runs in a sandbox.

        Raises:
            InputError: no message, or the template fails on these.
        """
        if not messages:
            raise InputError("the conversation is empty; give at least one message")
        if not self._template:
            users = [m for m in messages if m.get("role") == "user"]
            return self.encode((users or messages)[-1]["content"], bos=True)
        env = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        env.globals["raise_exception"] = _raise
        names = {i: t for t, i in self.special.items()}
        try:
            text = env.from_string(self._template).render(
                messages=messages,
                add_generation_prompt=True,
                bos_token=names.get(self.bos_id, ""),
                eos_token=names.get(self.eos_id, ""),
            )
        except jinja2.TemplateError as e:
            raise InputError(f"the model's chat template fails: {e}; use a plain prompt") from e
        return self.encode(text)

    @classmethod
    def from_gguf(cls, get: Callable[..., Any]) -> Tokenizer:
        """From GGUF metadata; ``get(key, default)`` reads it.

        Raises:
            InputError: the metadata is incomplete. UnsupportedError: another tokenizer.
        """
        tokens: list[str] = list(get("tokenizer.ggml.tokens", None) or [])
        types: list[int] = list(get("tokenizer.ggml.token_type", None) or [NORMAL] * len(tokens))
        model = get("tokenizer.ggml.model", None)
        if not tokens or len(types) != len(tokens):
            raise InputError("the tokenizer metadata is incomplete; convert the model again")
        kinds = (CONTROL, UNKNOWN, USER)
        special = {t: i for i, (t, k) in enumerate(zip(tokens, types)) if k in kinds and t}
        options: dict[str, Any] = {
            "chat_template": str(get("tokenizer.chat_template", "")),
            "bos_id": int(get("tokenizer.ggml.bos_token_id", -1)),
            "eos_id": int(get("tokenizer.ggml.eos_token_id", -1)),
            "add_bos": bool(get("tokenizer.ggml.add_bos_token", model == "llama")),
        }
        if model == "gpt2":
            merges = [tuple(m.split(" ", 1)) for m in get("tokenizer.ggml.merges", None) or []]
            texts = _byte_level_texts(tokens, types)
            encode = _byte_level(tokens, merges, str(get("tokenizer.ggml.pre", "gpt-2")))
            return cls(texts, special, encode, **options)
        if model == "llama":
            scores: list[float] = list(get("tokenizer.ggml.scores", None) or [])
            if len(scores) != len(tokens):
                raise InputError("the tokenizer has no scores; convert the model again")
            # User tokens (Gemma's runs of spaces) belong to the text, not between texts.
            special = {t: i for t, i in special.items() if types[i] != USER}
            prefix = bool(get("tokenizer.ggml.add_space_prefix", True))
            texts = [_piece_bytes(t, k) for t, k in zip(tokens, types)]
            encode = _pieces(tokens, scores, types, prefix)
            return cls(texts, special, encode, **options, strip_first_space=prefix)
        raise UnsupportedError(f"tokenizer model {model!r} is not supported; known: gpt2, llama")

    @classmethod
    def from_tokenizer_json(cls, path: Path, spec: Facts | None = None) -> Tokenizer:
        """From a Hugging Face ``tokenizer.json``, run by the tokenizers package.

        ``spec`` brings the vocabulary's size, the bos id and the chat template.

        Raises:
            InputError: damaged. UnsupportedError: neither byte-level nor SentencePiece BPE.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            engine = Engine.from_file(str(path))
        except Exception as e:  # the tokenizers package raises plain Exception
            raise InputError(f"{path}: not a readable tokenizer ({e}); download it again") from e
        parts = json.dumps([raw.get("pre_tokenizer"), raw.get("decoder")])
        byte_level = '"ByteLevel"' in parts
        if not byte_level and '"ByteFallback"' not in parts:
            raise UnsupportedError(
                f"{path}: only byte-level BPE and BPE with byte fallback are supported"
            )
        known = engine.get_vocab(with_added_tokens=True)
        size = max(max(known.values(), default=-1) + 1, spec.vocab if spec else 0)
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
        bos = spec.bos_id if spec else next((special[t] for t in _BOS if t in special), -1)
        eos = spec.eos_ids[0] if spec and spec.eos_ids else -1
        first = engine.encode("a").ids
        add_bos = bos >= 0 and bool(first) and first[0] == bos

        def encode(text: str) -> list[int]:
            return list(engine.encode(text, add_special_tokens=False).ids)

        return cls(
            texts,
            special,
            encode,
            chat_template=spec.chat_template if spec else "",
            bos_id=bos,
            eos_id=eos,
            add_bos=add_bos,
            strip_first_space=prefix,
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
        encode = _pieces(tokens, scores, types, True)
        return cls(texts, special, encode, bos_id=1, eos_id=2, add_bos=True, strip_first_space=True)


def _raise(message: str) -> None:
    raise InputError(f"the chat template refuses the conversation: {message}")


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


def _byte_level(
    tokens: list[str], merges: list[tuple[str, ...]], pre: str
) -> Callable[[str], list[int]]:
    vocab = {t: i for i, t in enumerate(tokens)}
    if not merges:
        raise InputError("the tokenizer has no merges; convert the model again")
    # Llama 3 takes a whole word that is in the vocabulary without merging up to it.
    engine = Engine(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    steps: list[Any]
    if pre == "smollm":
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    elif pre in ("gpt-2", "default"):
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    elif pre in ("qwen2", "llama-bpe"):
        pattern = _QWEN if pre == "qwen2" else _QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
        steps = [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        raise UnsupportedError(
            f"pre-tokenizer {pre!r} is not supported; known: smollm, gpt-2, qwen2, llama-bpe"
        )
    if pre == "qwen2":
        engine.normalizer = normalizers.NFC()
    engine.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return lambda text: list(engine.encode(text, add_special_tokens=False).ids)


def _piece_bytes(text: str, kind: int) -> bytes:
    if kind in (CONTROL, UNKNOWN):
        return b""
    if kind == BYTE:
        return bytes([int(text[3:5], 16)])
    return text.replace(SPACE, " ").encode()


def _pieces(
    tokens: list[str], scores: list[float], types: list[int], prefix: bool
) -> Callable[[str], list[int]]:
    """SentencePiece BPE: the neighbouring pair with the best score merges first.

    User tokens are found before, the longest first, and never merge. ``prefix``
    puts a space before the text.
    """
    user = {t.replace(" ", SPACE): i for i, (t, k) in enumerate(zip(tokens, types)) if k == USER}
    user.pop("", None)
    found = "|".join(re.escape(t) for t in sorted(user, key=len, reverse=True))
    split = re.compile(f"({found})") if found else None
    vocab = {t: i for i, (t, k) in enumerate(zip(tokens, types)) if k == NORMAL}
    fallback = {int(t[3:5], 16): i for i, (t, k) in enumerate(zip(tokens, types)) if k == BYTE}

    def encode(text: str) -> list[int]:
        text = (SPACE if prefix else "") + text.replace(" ", SPACE)
        ids: list[int] = []
        for chunk in split.split(text) if split else [text]:
            ids += [user[chunk]] if chunk in user else merge(chunk)
        return ids

    def merge(text: str) -> list[int]:
        part: list[str] = list(text)
        after = [*range(1, len(part)), -1]
        before = list(range(-1, len(part) - 1))
        heap: list[tuple[float, int, str, int]] = []

        def offer(i: int) -> None:
            j = after[i]
            if j >= 0 and part[i] + part[j] in vocab:
                joined = part[i] + part[j]
                heapq.heappush(heap, (-scores[vocab[joined]], i, joined, j))

        for i in range(len(part)):
            offer(i)
        while heap:
            _, i, joined, j = heapq.heappop(heap)
            if after[i] != j or part[i] + part[j] != joined or not part[i]:
                continue
            part[i], part[j] = joined, ""
            after[i] = after[j]
            if after[j] >= 0:
                before[after[j]] = i
            after[j] = -1
            offer(i)
            if before[i] >= 0:
                offer(before[i])
        ids: list[int] = []
        i = 0 if part else -1
        while i >= 0:
            if part[i] in vocab:
                ids.append(vocab[part[i]])
            else:
                ids += [fallback.get(b, 0) for b in part[i].encode()]
            i = after[i]
        return ids

    return encode
