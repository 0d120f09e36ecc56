"""How byte-level tokenizers cut text before they merge, by the names of ``tokenizer.ggml.pre``.

A GGUF file does not carry the arrangement, only its name. Each is what ``tokenizer.json`` of the
named model says; the patterns are those of the models' publishers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

from sparseflash.base.errors import InputError, UnsupportedError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}|", r"\p{N}|", 1)
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Cut:
    """Patterns that cut one after the other; ``words`` cuts as GPT-2 at the end."""

    patterns: tuple[str, ...] = ()
    digits: bool = False
    """Every digit stands alone, before anything else."""
    words: bool = False
    nfc: bool = False
    whole_words: bool = False
    """A word of the vocabulary is taken without merging up to it."""


_CUTS = {
    "gpt-2": _Cut(words=True),
    "smollm": _Cut(digits=True, words=True),
    "llama-bpe": _Cut((_LLAMA3,), whole_words=True),
    "qwen2": _Cut((_QWEN2,), nfc=True),
    "gpt-4o": _Cut((_GPT4O,)),
    "dbrx": _Cut((_LLAMA3,)),
    "olmo": _Cut(words=True, nfc=True),
    "command-r": _Cut(digits=True, words=True, nfc=True),
    "deepseek-coder": _Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")),
    "deepseek-v3": _Cut((r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3)),
}
_ALIASES = {
    "gpt-2": ("phi-2", "jais", "trillion"),
    "smollm": ("starcoder", "refact", "codeshell"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "smaug-bpe"),
    "qwen2": ("deepseek-r1-qwen",),
    "olmo": ("mpt",),
    "gpt-4o": ("llama4",),
    "deepseek-v3": ("deepseek-r1",),
}
_NAMES = {alias: name for name, others in _ALIASES.items() for alias in (name, *others)}
_NAMES |= {name: name for name in _CUTS}


def arrange(engine: Any, pre: str | None) -> bool:
    """Gives a byte-level engine its normaliser and pre-tokenizer; True where whole words count.

    Raises:
        InputError: the file does not say how. UnsupportedError: an unknown name.
    """
    if pre is None or pre == "default":
        raise InputError(
            "tokenizer.ggml.pre does not say how this model cuts text, and a guess would give "
            "other tokens; convert the model again with a current converter"
        )
    if pre not in _NAMES:
        raise UnsupportedError(
            f"pre-tokenizer {pre!r} is not supported; known: {', '.join(sorted(_NAMES))}"
        )
    cut = _CUTS[_NAMES[pre]]
    if cut.nfc:
        engine.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Split(Regex(p), "isolated") for p in cut.patterns]
    if cut.digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.words))
    engine.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return cut.whole_words


def has_start(pre: str | None) -> bool:
    """Whether such models want the start token where the file does not say."""
    return pre is not None and _NAMES.get(pre) == "llama-bpe"
