"""Tokenizers built from a model's own metadata: byte-level BPE and SentencePiece-style BPE."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2.sandbox
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from sparseflash.errors import InputError, UnsupportedError
from sparseflash.spec import ModelSpec

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
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


class Tokenizer:
    """Text to ids and back; ``token_bytes`` is what a device streams for an id."""

    def __init__(
        self,
        texts: Sequence[bytes],
        special: dict[str, int],
        encode_plain: Callable[[str], list[int]],
        chat_template: str = "",
        bos_id: int = -1,
        add_bos: bool = False,
        strip_first_space: bool = False,
    ) -> None:
        self._texts = list(texts)
        self._special = special
        self._encode_plain = encode_plain
        self._template = chat_template
        self.bos_id = bos_id
        self.add_bos = add_bos
        self._strip = strip_first_space
        pattern = "|".join(re.escape(t) for t in sorted(special, key=len, reverse=True))
        self._split = re.compile(f"({pattern})") if pattern else None

    @property
    def vocab_size(self) -> int:
        return len(self._texts)

    def token_bytes(self, token: int) -> bytes:
        """Raw bytes of an id; control tokens have none."""
        return self._texts[token]

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        """Ids of ``text``; control tokens written in it are recognised."""
        ids = [self.bos_id] if (self.add_bos if bos is None else bos) and self.bos_id >= 0 else []
        for part in self._split.split(text) if self._split else [text]:
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids += self._encode_plain(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text = b"".join(self._texts[i] for i in ids).decode("utf-8", "replace")
        return text[1:] if self._strip and text.startswith(" ") else text

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a conversation that asks for an answer; without a template, the last text."""
        if not self._template:
            return self.encode(messages[-1]["content"], bos=True)
        env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        env.globals["raise_exception"] = _raise
        bos = next((t for t, i in self._special.items() if i == self.bos_id), "")
        text = env.from_string(self._template).render(
            messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=""
        )
        return self.encode(text, bos=False)

    @classmethod
    def from_gguf(cls, get: Callable[..., Any], spec: ModelSpec) -> Tokenizer:
        """From GGUF metadata; ``get(key, default)`` reads it."""
        tokens: list[str] = get("tokenizer.ggml.tokens")
        types: list[int] = get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
        model = get("tokenizer.ggml.model")
        special = {
            t: i for i, (t, k) in enumerate(zip(tokens, types)) if k in (CONTROL, UNKNOWN, USER)
        }
        add_bos = bool(get("tokenizer.ggml.add_bos_token", model == "llama"))
        if model == "gpt2":
            merges = [tuple(m.split(" ", 1)) for m in get("tokenizer.ggml.merges")]
            texts = _byte_level_texts(tokens, types)
            encode = _byte_level(tokens, merges, str(get("tokenizer.ggml.pre", "gpt-2")))
            return cls(texts, special, encode, spec.chat_template, spec.bos_id, add_bos)
        if model == "llama":
            scores: list[float] = get("tokenizer.ggml.scores")
            prefix = bool(get("tokenizer.ggml.add_space_prefix", True))
            texts = [_piece_bytes(t, k) for t, k in zip(tokens, types)]
            return cls(
                texts,
                special,
                _pieces(tokens, scores, types, prefix),
                spec.chat_template,
                spec.bos_id,
                add_bos,
                prefix,
            )
        raise UnsupportedError(f"tokenizer model {model!r} is not supported; known: gpt2, llama")

    @classmethod
    def from_tokenizer_json(cls, path: Path, spec: ModelSpec) -> Tokenizer:
        """From a Hugging Face ``tokenizer.json``, run by the tokenizers package."""
        engine = Engine.from_file(str(path))
        tokens = [engine.id_to_token(i) or "" for i in range(spec.vocab)]
        added = engine.get_added_tokens_decoder()
        special = {t.content: i for i, t in added.items() if t.special}
        byte_level = any(t.startswith("\u0120") for t in tokens)
        types = [CONTROL if t in special else NORMAL for t in tokens]
        if byte_level:
            texts = _byte_level_texts(tokens, types)
        else:
            types = [
                BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", t) else k for t, k in zip(tokens, types)
            ]
            texts = [_piece_bytes(t, k) for t, k in zip(tokens, types)]

        def encode(text: str) -> list[int]:
            return list(engine.encode(text, add_special_tokens=False).ids)

        return cls(
            texts, special, encode, spec.chat_template, spec.bos_id, not byte_level, not byte_level
        )

    @classmethod
    def from_llama2c(cls, path: Path, vocab: int) -> Tokenizer:
        """From llama2.c's ``tokenizer.bin``: int32, then (float score, int32 length, bytes)."""
        data = path.read_bytes()
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
        tokens = [p.decode("utf-8", "replace").replace(" ", SPACE) for p in pieces]
        types = [NORMAL] * vocab
        types[:3] = [UNKNOWN, CONTROL, CONTROL]
        types[3:259] = [BYTE] * 256
        tokens[:3] = ["<unk>", "<s>", "</s>"]
        tokens[3:259] = [f"<0x{b:02X}>" for b in range(256)]
        texts = [_piece_bytes(t, k) for t, k in zip(tokens, types)]
        special = {"<s>": 1, "</s>": 2}
        return cls(texts, special, _pieces(tokens, scores, types, True), "", 1, True, True)


def _raise(message: str) -> None:
    raise InputError(f"the chat template refuses the conversation: {message}")


def _byte_level_texts(tokens: list[str], types: list[int]) -> list[bytes]:
    table = _byte_alphabet()
    out = []
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
    engine = Engine(models.BPE(vocab=vocab, merges=merges))
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
        raise UnsupportedError(f"pre-tokenizer {pre!r} is not supported; known: smollm, gpt-2, ...")
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
    """SentencePiece BPE: the neighbouring pair with the best score merges first."""
    vocab = {t: i for i, (t, k) in enumerate(zip(tokens, types)) if k in (NORMAL, USER)}
    fallback = {int(t[3:5], 16): i for i, (t, k) in enumerate(zip(tokens, types)) if k == BYTE}

    def encode(text: str) -> list[int]:
        import heapq

        text = (SPACE if prefix else "") + text.replace(" ", SPACE)
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
