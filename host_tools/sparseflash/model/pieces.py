"""SentencePiece files (``tokenizer.model``) as engines of the tokenizers package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Regex, models, normalizers
from tokenizers import Tokenizer as Engine

from sparseflash.base.errors import InputError, UnsupportedError

SPACE = "\u2581"
NORMAL, UNKNOWN, USER = 1, 2, 4
UNIGRAM, BPE = 1, 2
"""``trainer_spec.model_type``."""


def read_model(path: Path) -> Any:
    """The file's message.

    Raises:
        InputError: missing or damaged. UnsupportedError: neither unigram nor BPE.
    """
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}); put the tokenizer there") from e
    except Exception as e:  # protobuf's DecodeError has no base of its own
        raise InputError(f"{path}: not a SentencePiece file; download it again") from e
    if not model.pieces:
        raise InputError(f"{path}: it holds no pieces; download it again")
    if model.trainer_spec.model_type not in (UNIGRAM, BPE):
        raise UnsupportedError(f"{path}: SentencePiece by words or characters is not supported")
    if (
        model.trainer_spec.treat_whitespace_as_suffix
        or not model.normalizer_spec.escape_whitespaces
    ):
        raise UnsupportedError(f"{path}: spaces behind words, or as they are, are not supported")
    return model


def engine_of(
    model: Any, merges: Callable[[dict[str, float]], list[tuple[str, str]]], prefix: bool
) -> Engine:
    """Without added tokens. ``merges`` orders the pairs of a BPE; ``prefix``: the engine puts a
    space before text."""
    pieces = model.pieces
    unknown = next((i for i, p in enumerate(pieces) if p.type == UNKNOWN), None)
    fallback = bool(model.trainer_spec.byte_fallback)
    if model.trainer_spec.model_type == UNIGRAM:
        scored = [(p.piece, p.score) for p in pieces]
        engine = Engine(models.Unigram(scored, unknown, fallback))
    else:
        bpe = models.BPE(
            vocab={p.piece: i for i, p in enumerate(pieces)},
            merges=merges({p.piece: p.score for p in pieces if p.type == NORMAL}),
            unk_token=None if unknown is None else pieces[unknown].piece,
            fuse_unk=True,
            byte_fallback=fallback,
        )
        engine = Engine(bpe)
    steps: list[Any] = []
    if model.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap))
    if model.normalizer_spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    if prefix:
        steps.append(normalizers.Prepend(SPACE))
    engine.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    return engine
