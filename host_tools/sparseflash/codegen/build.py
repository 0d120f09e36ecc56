"""Compiles generated C with the runtime: a board's firmware, or a shared library for the host."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from sparseflash.base.errors import ToolError, TooSmallError
from sparseflash.base.files import root, whole, work
from sparseflash.base.programs import run
from sparseflash.base.progress import each
from sparseflash.plan.boards import Board, load_cpu
from sparseflash.plan.kept import plan_digest, read_plan

STRICT = [
    "-std=c11",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wdouble-promotion",
    "-Wshadow",
    "-Werror",
]


def runtime_sources(flash: str = "map") -> list[Path]:
    """Portable C that every build contains, with one way to reach the flash; not the kernels."""
    fw = root() / "firmware"
    return [*sorted((fw / "runtime").glob("*.c")), fw / "flash" / f"{flash}.c"]


def kernel_sources(folder: str) -> list[Path]:
    """C and assembly of a folder of kernels."""
    place = root() / "firmware" / "kernels" / folder
    return sorted([*place.glob("*.c"), *place.glob("*.S")])


def tier_sources(tier: str) -> list[Path]:
    """Plain C, which every build contains, and the kernels of a tier."""
    return kernel_sources("plain") + (kernel_sources(tier) if tier != "plain" else [])


def includes(tier: str) -> list[str]:
    """Flags that find every header; ``tier.h`` is that of the tier."""
    fw = root() / "firmware"
    places = ["include", "link", "port/common", "kernels", f"kernels/{tier}"]
    return [f"-I{fw / place}" for place in places]


def kernel_objects(
    cc: str,
    flags: list[str],
    tier: str,
    tiers: dict[str, list[str]],
    headers: list[Path] | None = None,
) -> dict[Path, Path]:
    """Objects of plain C, of the choice of a tier and of each tier at run time, by their sources.

    ``flags`` for one machine alone (-march, -mcpu) are not for the ``tiers``. ``headers``: folders
    of a board's own. Kernels know nothing of a model, so their objects, and the call graphs beside
    them, are kept by the digest of all sources and of the flags.
    """
    fw = root() / "firmware"
    places = [fw / "include", fw / "kernels", *(headers or [])]
    files = sorted(
        p for place in places for p in place.rglob("*") if p.suffix in (".c", ".h", ".S")
    )
    sources = hashlib.sha256(b"".join(p.read_bytes() for p in files))
    own = [f for f in flags if f == "-fPIC" or f[:2] in ("-O", "-f", "-g", "-m", "-D")]
    common = [f for f in own if not f.startswith(("-march=", "-mcpu="))]
    wanted = [(source, own) for source in tier_sources(tier)]
    wanted += [(s, [*common, *more]) for name, more in tiers.items() for s in kernel_sources(name)]
    out = {}
    for source, used in each("compiling kernels", wanted):
        key = sources.copy()
        name = str(source.relative_to(fw))
        key.update("\0".join([cc, *STRICT, *used, tier, name]).encode())
        target = work() / "build" / "kernels" / f"{source.stem}-{key.hexdigest()[:16]}.o"
        if not target.is_file():
            found = [*(f"-I{place}" for place in headers or []), *includes(tier)]
            with whole(target) as temporary:
                run([cc, *STRICT, *used, *found, "-c", str(source), "-o", str(temporary)])
                graph = temporary.with_suffix(".ci")
                if graph.is_file():
                    graph.replace(target.with_suffix(".ci"))
        out[source] = target
    return out


def _command(
    cc: str, flags: list[str], tier: str, sources: list[Path], gen: Path, target: Path, show: bool
) -> None:
    libraries = [] if "-c" in flags else ["-lm"]
    plan = gen / "plan.json"
    digest = plan_digest(read_plan(plan)).hex() if plan.is_file() else ""
    asked = [f"-DSF_PLAN_ASKED=0x{digest[:16]}ull"] if digest else []
    command = [cc, *STRICT, *flags, *asked, f"-I{gen}", *includes(tier), *map(str, sources)]
    run([*command, "-o", str(target), *libraries], show)


def _compile(
    cc: str,
    flags: list[str],
    tier: tuple[str, dict[str, list[str]]],
    sources: list[Path],
    gen: Path,
    target: Path,
    show: bool,
) -> Path:
    """A program or library of a machine with an operating system, with every tier of it."""
    objects = kernel_objects(cc, flags, *tier).values()
    with whole(target) as temporary:
        _command(cc, flags, tier[0], [*sources, *objects], gen, temporary, show)
    return target


def build_firmware(board: Board, gen: Path, target: Path, show: bool = False) -> Path:
    """The board's program at ``target``, from the sources generated in ``gen``.

    A bare board also gets ``objects/`` (with call graphs when GCC compiles), and ``target`` with
    the suffixes ``.bin`` and ``.map``.

    Raises:
        TooSmallError: it does not fit the memories of the board.
        ToolError: the compiler is missing or failed.
    """
    fw = root() / "firmware"
    sources = [
        gen / "sf_model.c",
        *runtime_sources("stream" if "stream" in board.raw else "map"),
        *sorted((fw / "link").glob("*.c")),
        *[(board.folder / s).resolve() for s in board.sources],
    ]
    chain = board.toolchain
    if not board.memories:
        flags = [*chain["cflags"], *chain.get("ldflags", [])]
        return _compile(chain["cc"], flags, (board.tier, board.tiers), sources, gen, target, show)

    graphs = ["-fcallgraph-info=su,da"] if chain["cc"].endswith("gcc") else []
    headers = [(board.folder / place).resolve() for place in chain.get("includes", [])]
    flags = [*chain.get("machine", []), *chain["cflags"], *graphs]
    folder = target.parent / "objects"
    shutil.rmtree(folder, ignore_errors=True)
    objects = []
    for source in each("compiling files", sources):
        part = "model" if source.parent == gen else source.parent.name
        objects.append(folder / part / f"{source.stem}.o")
        objects[-1].parent.mkdir(parents=True, exist_ok=True)
        own = [*flags, *(f"-I{place}" for place in headers), "-c"]
        _command(chain["cc"], own, board.tier, [source], gen, objects[-1], show)
    (folder / "kernels").mkdir()
    for source, kept in kernel_objects(chain["cc"], flags, board.tier, {}, headers).items():
        objects.append(folder / "kernels" / f"{source.parent.name}-{source.stem}.o")
        shutil.copyfile(kept, objects[-1])
        if kept.with_suffix(".ci").is_file():
            shutil.copyfile(kept.with_suffix(".ci"), objects[-1].with_suffix(".ci"))
    script = [f"-Wl,-T,{gen / 'board.ld'}", f"-Wl,-Map,{target}.map"]
    link = [
        chain.get("ld", chain["cc"]),
        *chain.get("machine", []),
        *chain["cflags"],
        *chain.get("ldflags", []),
        *script,
    ]
    try:
        with whole(target) as temporary:
            libraries = chain.get("libraries", ["-lm"])
            run([*link, *map(str, objects), "-o", str(temporary), *libraries], show)
    except ToolError as e:
        full = re.search(r"region `(\w+)' overflowed by (\d+) bytes", str(e))
        if not full:
            raise
        held = next(m for m in board.memories if m.name.upper() == full[1])
        raise TooSmallError(
            f"board {board.id}: {', '.join(held.holds)} of the linked program take "
            f"{held.length + int(full[2]):,} bytes of memory {held.name!r} and it has "
            f"{held.length:,}: shorten the KV cache (--kv-len) or choose a smaller model"
        ) from e
    if "objcopy" in chain:
        with whole(Path(f"{target}.bin")) as temporary:
            run([chain["objcopy"], "-O", "binary", str(target), str(temporary)], show)
    return target


def build_library(
    gen: Path,
    target: Path,
    cc: str = "cc",
    flags: list[str] | None = None,
    show: bool = False,
    flash: Path | None = None,
) -> Path:
    """The same C as a shared library that the host calls (firmware/port/library).

    With ``flash``, C that answers reads, the weights are streamed from it.
    """
    port = root() / "firmware" / "port"
    sources = [gen / "sf_model.c", *runtime_sources("stream" if flash else "map")]
    sources.append(port / "library" / "port.c")
    if flash:
        sources.append(flash)
    flags = flags if flags is not None else ["-O3"]
    tier, tiers, _ = load_cpu("native", {})
    return _compile(
        cc, [*flags, "-shared", "-fPIC", "-pthread"], (tier, tiers), sources, gen, target, show
    )
