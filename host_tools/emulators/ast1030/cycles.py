"""Runs firmware of ast1030-evb under the plugin m4_cycles.c and gives back what it noted."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from emulators.ast1030.dma_model import parse
from sparseflash.base.errors import ToolError
from sparseflash.base.programs import missing, run
from sparseflash.device.emulator import start_emulator
from sparseflash.device.link.client import Device
from sparseflash.device.runners import reply_seconds
from sparseflash.plan.boards import Board

HERE = Path(__file__).parent
MARKS = {"S": "sf_flash_token", "L": "sf_count_time", "T": "sf_count_tokens"}
LOADS = {"R": "sf_mark_read", "W": "sf_mark_wait"}
Event = tuple[str, int, int]


def build_plugin(folder: Path) -> Path:
    """The plugin as a shared library.

    Raises:
        ToolError: no C compiler.
    """
    target = folder / "m4_cycles.so"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    run(["cc", *flags, str(HERE / "m4_cycles.c"), "-o", str(target)])
    return target


def why_no_plugin(plugin: Path, command: list[str]) -> str | None:
    """One sentence when this QEMU does not take the plugin."""
    done = subprocess.run(
        [command[0], "-machine", "none", "-display", "none", "-monitor", "stdio",
         "-plugin", f"{plugin},out=/dev/null"],
        input="quit\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = " ".join(done.stderr.split())
    return f"{command[0]} does not load the plugin: {said}" if done.returncode else None


def marked(board: Board) -> Board:
    """The board with flash_marks.c in front of its reads."""
    wrap = "-Wl,--wrap=sf_flash_submit,--wrap=sf_flash_wait"
    chain = board.toolchain | {"ldflags": [*board.toolchain["ldflags"], wrap]}
    return replace(board, toolchain=chain, sources=[*board.sources, str(HERE / "flash_marks.c")])


def symbols(board: Board, elf: Path) -> dict[str, tuple[int, int]]:
    """Address and size of each function of a program."""
    nm = board.toolchain["objcopy"].removesuffix("objcopy") + "nm"
    out = {}
    for line in run([nm, "-S", str(elf)]).splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[2] in "tT":
            out[fields[3]] = (int(fields[0], 16) & ~1, int(fields[1], 16))
    return out


def plugin_arguments(board: Board, elf: Path, plugin: Path, out: Path) -> list[str]:
    """What starts QEMU with the plugin on a marked program."""
    known = symbols(board, elf)
    absent = {"sf_dma_irq", *MARKS.values(), *LOADS.values()} - set(known)
    if absent:
        raise ToolError(f"{elf} lacks {', '.join(sorted(absent))}")
    words = [f"out={out}", f"exception={known['sf_dma_irq'][0]:#x}"]
    words += [f"at={known[name][0]:#x}:{letter}" for letter, name in MARKS.items()]
    for letter, name in LOADS.items():
        first, size = known[name]
        words.append(f"loads={first:#x}-{first + size - 1:#x}:{letter}")
    return ["-plugin", ",".join([str(plugin), *words])]


def read_events(path: Path) -> list[Event]:
    with path.open() as f:
        return parse(f)


def run_tokens(
    board: Board,
    flashed: Path,
    plugin: Path,
    model_sha: bytes,
    plan: bytes,
    prompt: list[int],
    tokens: int,
    alone: bool = False,
) -> tuple[list[Event], dict[str, int], list[int]]:
    """Greedy steps of a flashed marked program: the plugin's events, the device's counters and what
    it answered to each token.

    alone: as the device generates by itself, the prompt in blocks and then with drafts.

    Raises:
        ToolError: QEMU is missing, does not take the plugin, or what it saw is not what the
            device counted.
    """
    command, out = board.settings()["command"], flashed / "events.txt"
    refused = missing(command[0]) or why_no_plugin(plugin, command)
    if refused:
        raise ToolError(refused)
    extra = plugin_arguments(board, flashed / "firmware", plugin, out)
    wait = reply_seconds(board)
    image = flashed / "flash.img"
    elf = flashed / "firmware"
    with (
        start_emulator(command, elf, image, timeout=wait, extra=extra) as process,
        Device.connect(process.port, process.url, model_sha, plan, 3 * wait) as device,
    ):
        device.reset()
        said: list[int] = []
        if alone:
            said = [token for token, _ in device.generate(prompt, tokens)]
        for i in range(0 if alone else tokens):
            said.append(device.step(prompt[i] if i < len(prompt) else said[-1]))
        counters = device.counters()
    events = read_events(out)
    check(events, counters)
    return events, counters, said


def check(events: list[Event], counters: dict[str, int]) -> None:
    """Whether the plugin saw the reads and bytes that the device counted, and no block too many.

    Raises:
        ToolError: it did not.
    """
    first = next(i for i, e in enumerate(events) if e[0] == "S")
    reads = [e[2] for e in events[first:] if e[0] == "R"]
    blocks, seen = sum(e[0] == "T" for e in events), (len(reads), sum(reads))
    counted = tuple(counters[k] for k in ("reads", "bytes_read"))
    if seen != counted or not 0 < blocks <= counters["tokens"]:
        raise ToolError(
            f"the plugin saw reads, bytes {seen} and {blocks} blocks; the device counted {counted} "
            f"and {counters['tokens']} tokens"
        )
