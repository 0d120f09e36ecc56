"""What a linked program takes: bytes by section and part, and the deepest stack.

Both read what the linker and the compiler wrote beside the objects (``.map``, ``.ci``); the stack
of library functions comes from their disassembly.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from sparseflash.base.errors import InputError, SparseflashError, UsageError
from sparseflash.base.programs import run
from sparseflash.plan.boards import Board

SECTIONS = (".text", ".rodata", ".stack", ".data", ".bss", ".dma")
INDIRECT = "__indirect_call"
FRAME = {"soft": 32 + 4, "hard": 104 + 4}
"""What a Cortex-M pushes for an interrupt, with alignment, without and with an FPU."""

_INPUT = re.compile(r"^ (\.\S+|COMMON|\*fill\*)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)(?: (\S+))?$")
_NODE = re.compile(r'^node: \{ title: "([^"]+)" label: "([^"]*)"')
_EDGE = re.compile(r'^edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"')
_BYTES = re.compile(r"\\n(\d+) bytes \((static|dynamic|dynamic,bounded)\)")


def check_bare(board: Board) -> None:
    """Refuses a board with an operating system, whose sections and stack are not the program's."""
    if not board.memories:
        raise UsageError(
            f"board {board.id} has an operating system, which gives memory and stack as they are "
            "asked for; take a microcontroller, as --board mps2-an386"
        )


def sizes(board: Board, elf: Path) -> dict[str, dict[str, int]]:
    """Bytes by part of the program (kernels, model, library, ...) and output section."""
    check_bare(board)
    text = Path(f"{elf}.map").read_text()
    start = text.find("Linker script and memory map")
    if start < 0:
        raise InputError(f"{elf}.map: the linker of board {board.id} wrote no memory map")
    out: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    section = ""
    # A long name stands on a line of its own.
    for line in re.sub(r"^( ?\.\S+)\n\s+", r"\1 ", text[start:], flags=re.M).splitlines():
        head = re.match(r"^(\.\w+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)", line)
        if head or re.match(r"^\S", line):
            section = head[1] if head and head[1] in SECTIONS else ""
            if section == ".stack" and head:
                out["stack"][section] += int(head[3], 16)
            continue
        found = _INPUT.match(line)
        if not found or not section:
            continue
        name, size, where = found[1], int(found[3], 16), found[4] or ""
        if name == "*fill*":
            part = "stack" if section == ".stack" else "padding"
        elif where.endswith(")") or "/objects/" not in where:
            part = "library"
        else:
            part = Path(where).parent.name
        if section != ".stack":
            out[part][section] += size
    return {part: dict(row) for part, row in sorted(out.items())}


@dataclass(frozen=True)
class Stack:
    """Deepest use of the stack, in bytes, and the calls that lead there."""

    bytes: int
    path: tuple[str, ...]
    interrupt: int
    limit: int


def _compiled(objects: Path) -> tuple[dict[str, int], dict[str, set[str]]]:
    """Own frame of each function, and what it calls."""
    frames: dict[str, int] = {}
    calls: dict[str, set[str]] = defaultdict(set)
    for path in sorted(objects.rglob("*.ci")):
        # A static function's title is file:name; the same file name may exist twice.
        def key(title: str, path: Path = path) -> str:
            return f"{path.parent.name}/{path.stem}/{title}" if ":" in title else title

        for line in path.read_text().splitlines():
            node, edge = _NODE.match(line), _EDGE.match(line)
            if node:
                size = _BYTES.search(node[2])
                if size and size[2] == "dynamic":
                    raise SparseflashError(
                        f"{node[2].split(chr(92))[0]} has a variable-length array or alloca; "
                        "give it a fixed size"
                    )
                if size:
                    frames[key(node[1])] = int(size[1])
            elif edge:
                calls[key(edge[1])].add(key(edge[2]))
    if not frames:
        raise InputError(f"{objects} holds no call graphs; build with GCC")
    return frames, calls


def _library(elf: Path, objdump: str) -> tuple[dict[str, int], dict[str, set[str]]]:
    """The same of the machine code, for functions that came from a library."""
    frames: dict[str, int] = {}
    calls: dict[str, set[str]] = defaultdict(set)
    name = ""
    for line in run([objdump, "-d", "--no-show-raw-insn", str(elf)]).splitlines():
        head = re.match(r"^[0-9a-f]+ <([^>]+)>:$", line)
        if head:
            name = head[1]
            frames[name] = 0
            continue
        push = re.search(r"\t(push|vpush|stmdb\tsp!,|stmfd\tsp!,)\s*\{([^}]*)\}", line)
        if push:
            width = 8 if re.search(r"\bd\d", push[2]) else 4
            for item in push[2].split(","):
                low, _, high = item.strip().partition("-")
                n = int(high[1:]) - int(low[1:]) + 1 if high else 1
                frames[name] += width * n
        drop = re.search(r"\tsub(?:w|\.w)?\s+sp, (?:sp, )?#(\d+)", line)
        drop = drop or re.search(r"\taddi?\s+sp,sp,-(\d+)", line)  # RISC-V
        if drop:
            frames[name] += int(drop[1])
        single = re.search(r"\tstr(?:d|\.w)?\s.*\[sp, #-(\d+)\]!", line)
        if single:
            frames[name] += int(single[1])
        jump = re.search(r"\t(?:b[a-z.]*|j|jal)\s+(?:\w+,)*[0-9a-f]+ <([^>+]+)>", line)
        if jump and jump[1] != name:
            calls[name].add(jump[1])
    return frames, calls


def stack(board: Board, elf: Path) -> Stack:
    """The deepest stack of the program, interrupts included.

    Raises:
        SparseflashError: recursion, a frame of unknown size, or more than the board reserves.
    """
    check_bare(board)
    frames, calls = _compiled(elf.parent / "objects")
    objdump = board.toolchain["objcopy"].replace("objcopy", "objdump")
    linked, jumps = _library(elf, objdump)
    by_name = {k: k for k in frames}
    deepest: dict[str, tuple[int, tuple[str, ...]]] = {}

    def depth(f: str, above: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        if f in above:
            loop = " -> ".join([*above[above.index(f) :], f])
            raise SparseflashError(f"recursion has no stack limit: {loop}; make it a loop")
        if f not in deepest:
            if f in by_name:
                own, next_ = frames[f], calls.get(f, set())
            elif f in linked:
                own, next_ = linked[f], jumps.get(f, set())
            else:
                own, next_ = 0, set()
            if INDIRECT in next_:
                raise SparseflashError(f"{f} calls through a pointer; its stack is unknown")
            best: tuple[int, tuple[str, ...]] = (0, ())
            for g in sorted(next_):
                best = max(best, depth(g, (*above, f)), key=lambda b: b[0])
            deepest[f] = (own + best[0], (f, *best[1]))
        return deepest[f]

    start, path = depth("sf_start", ())
    abi = (
        "hard"
        if "-mfloat-abi=hard" in [*board.toolchain.get("machine", []), *board.toolchain["cflags"]]
        else "soft"
    )
    handlers = [f for f in frames if f.rpartition(":")[2] in {"wrapped", *board.irqs.values()}]
    interrupt = FRAME[abi] + max(depth(h, ())[0] for h in handlers) if handlers else 0
    limit = board.reserve["stack"]
    found = Stack(start + interrupt, path, interrupt, limit)
    if found.bytes > limit:
        raise SparseflashError(
            f"the stack of board {board.id} needs {found.bytes:,} bytes and has {limit:,}: "
            f"{' -> '.join(found.path)}; raise reserve.stack in board.yaml or shorten the path"
        )
    return found
