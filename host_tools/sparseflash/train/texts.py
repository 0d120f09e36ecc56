"""Texts of the story model: split, filter, tokenizer, tokens.

Stories are separated by ``<|endoftext|>``, which is also the first token of a prompt and ends a
story. The tokenizer is a byte-level BPE in the Hugging Face format.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END = "<|endoftext|>"
END_ID = 0
HELD_OUT = 6
"""Every sixth story of a text is held out."""
_ASCII = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "--"}
_ASCII |= {"\u2013": "-", "\u2026": "...", "\u00a0": " ", "\r": ""}
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_SENTENCE = re.compile(r"(?<=[.!?\"])\s+")


def stories_of(text: str) -> list[str]:
    """The stories of a text, stripped, without empty ones."""
    return [s for s in (part.strip() for part in text.split(END)) if s]


def split(stories: list[str]) -> tuple[list[str], list[str]]:
    """(training, held out): every ``HELD_OUT``-th story is held out."""
    train = [s for i, s in enumerate(stories) if i % HELD_OUT]
    return train, stories[::HELD_OUT]


def plain(story: str) -> str:
    """Typographic marks in ASCII, no trailing spaces, no empty lines."""
    for mark, instead in _ASCII.items():
        story = story.replace(mark, instead)
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in story.split("\n"))
    return "\n".join(line for line in lines if line)


LEAST, MOST = 300, 1800
TRIGRAMS = 0.82
"""Least part of a story's word trigrams that differ from each other."""
KNOWN = 0.4
"""Most part of a story's sentences that earlier stories had."""


def fault(story: str) -> str:
    """Why a story does not read like one, or ""."""
    if not LEAST <= len(story) <= MOST:
        return "length"
    if not story.isascii() or re.search(r"[<>\[\]{}|*#_@]|https?:|\d{3}", story):
        return "characters"
    if not re.match(r"[A-Z\"]", story) or not re.search(r"[.!?][\"']?$", story):
        return "edges"
    words = [w.lower() for w in _WORD.findall(story)]
    if len(words) < 50:
        return "length"
    if sum(map(len, words)) > 5.2 * len(words):
        return "long words"
    triples = list(zip(words, words[1:], words[2:]))
    if len(set(triples)) < TRIGRAMS * len(triples) or any(a == b == c for a, b, c in triples):
        return "repetition"
    sentences = _sentences(story)
    return "repetition" if len(set(sentences)) < len(sentences) else ""


def _sentences(story: str) -> list[str]:
    return [s for s in _SENTENCE.split(story) if len(s) > 15]


@dataclass
class Filter:
    """Keeps plain stories without a fault that are not made of sentences seen before."""

    dropped: Counter[str] = field(default_factory=Counter)
    _seen: set[bytes] = field(default_factory=set)

    def __call__(self, stories: Iterable[str]) -> Iterator[str]:
        for story in stories:
            why = fault(story)
            keys = [hashlib.blake2b(s.encode(), digest_size=8).digest() for s in _sentences(story)]
            if not why and sum(k in self._seen for k in keys) > KNOWN * len(keys):
                why = "seen"
            if why:
                self.dropped[why] += 1
            else:
                self._seen.update(keys)
                yield story


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """A byte-level BPE of exactly ``vocab`` entries; a text begins with ``<|endoftext|>``, id 0."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, END_ID)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    if engine.get_vocab_size() != vocab:
        raise ValueError(
            f"the text gives only {engine.get_vocab_size()} of {vocab} entries; give more text"
        )
    return engine


def tokens_of(engine: Tokenizer, stories: list[str]) -> np.ndarray:
    """uint16 stream: END, story, END, story, ... (vocabularies up to 65,536)."""
    parts: list[np.ndarray] = []
    for at in range(0, len(stories), 4096):
        for encoded in engine.encode_batch(stories[at : at + 4096], add_special_tokens=False):
            parts.append(np.array([END_ID, *encoded.ids], np.uint16))
    return np.concatenate(parts) if parts else np.empty(0, np.uint16)


def pieces(text: str, size: int = 20000) -> list[str]:
    """A long text cut at line ends into pieces of about ``size`` characters."""
    out: list[str] = []
    part: list[str] = []
    length = 0
    for line in text.split("\n"):
        part.append(line)
        length += len(line) + 1
        if length >= size:
            out.append("\n".join(part))
            part, length = [], 0
    return [*out, "\n".join(part)] if part else out


def raw_words(text: str) -> list[str]:
    """Words as they stand."""
    return _WORD.findall(text)


def words(text: str) -> list[str]:
    """Words in lower case."""
    return [w.lower() for w in _WORD.findall(text)]


def content_words(stories: list[str], common: float = 0.25) -> list[str]:
    """Words of three letters and more that stand in at most the part ``common`` of the stories."""
    seen = Counter(w for s in stories for w in {x.lower() for x in _WORD.findall(s)})
    return sorted(w for w, n in seen.items() if n <= common * len(stories) and len(w) > 2)
