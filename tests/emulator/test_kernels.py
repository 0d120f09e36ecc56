"""Each tier of the kernels against plain C, on the machine of the tier."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from conftest import random_model
from sparseflash.base.files import root
from sparseflash.base.programs import missing, run
from sparseflash.codegen.build import (
    STRICT,
    build_firmware,
    includes,
    kernel_objects,
    kernel_sources,
)
from sparseflash.codegen.generate import generate
from sparseflash.device.emulator import EmulatorProcess
from sparseflash.device.runners import Files, flash_files, start_board
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import dense_thresholds
from sparseflash.plan.boards import (
    Board,
    board_ids,
    load_board,
    load_cpu,
    native_tier,
    tier_kernels,
)
from sparseflash.plan.plan import make_plan

HERE = Path(__file__).parent
SOURCES = [HERE / "kernels_main.c"]
BARE = [
    b for b in board_ids() if b.startswith(("mps", "pico")) and "emulator" in load_board(b).runners
]
TOOLS: dict[str, tuple[str, str, list[str]]] = {
    "gcc": ("native", "cc", []),
    "clang": ("native", "clang", []),
    "cortex-a53": ("aarch64", "aarch64-linux-gnu-gcc", ["qemu-aarch64", "-cpu", "cortex-a53"]),
    "cortex-a76": ("aarch64", "aarch64-linux-gnu-gcc", ["qemu-aarch64", "-cpu", "cortex-a76"]),
    "arm-max": ("aarch64", "aarch64-linux-gnu-gcc", ["qemu-aarch64", "-cpu", "max"]),
}
"""CPU, compiler and launcher."""
HOSTED = [
    (name, tier) for name, (cpu, _, _) in TOOLS.items() for tier in ("plain", *load_cpu(cpu, {})[1])
]
LACKING = [("cortex-a53", "arm_dotprod"), ("cortex-a53", "arm_i8mm"), ("cortex-a76", "arm_i8mm")]
"""The choice at run time says that such a CPU does not run the tier."""
NEEDED = {
    "x86_avx2": {"avx2", "popcnt"},
    "x86_avxvnni": {"avx_vnni"},
    "x86_vnni": {"avx512_vnni", "avx512bw", "avx512dq", "avx512vl"},
}
"""Flags of /proc/cpuinfo, by tier."""
KERNELS = root() / "firmware" / "kernels"


def need(*programs: str) -> None:
    for absent in filter(None, map(missing, programs)):
        pytest.skip(absent)


@cache
def hosted(name: str) -> Path:
    """The comparison as a program, with every tier of its CPU."""
    cpu, cc, _ = TOOLS[name]
    need(cc)
    tier, tiers, chain = load_cpu(cpu, {})
    folder = Path(tempfile.mkdtemp(prefix="kernels"))
    sources = [*SOURCES, *kernel_objects(cc, chain["cflags"], tier, tiers).values()]
    command = [cc, *STRICT, *chain["cflags"], *includes(tier), *map(str, sources)]
    run([*command, "-o", str(folder / "kernels"), "-lm"])
    return folder / "kernels"


@pytest.mark.parametrize(("name", "tier"), HOSTED)
def test_hosted(name: str, tier: str) -> None:
    launcher = TOOLS[name][2]
    need(*launcher[:1])
    command = [*launcher, str(hosted(name)), tier]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    if done.stdout == "lacks\n" and not launcher:
        about = Path("/proc/cpuinfo")
        if not about.exists():
            pytest.skip(f"this system does not say whether its CPU runs {tier}")
        flags = re.search(r"^flags\s*:(.*)", about.read_text(), flags=re.M)
        assert flags and NEEDED[tier] - set(flags[1].split()), f"this CPU does run {tier}"
        return
    assert done.stdout == ("lacks\n" if (name, tier) in LACKING else "equal\n")


def compiled(tier: str, folder: Path) -> set[str]:
    """Kernels whose symbols a folder's objects hold, compiled for a CPU that has the tier."""
    raw = yaml.safe_load((root() / "firmware" / "port" / "cpus.yaml").read_text())
    of_group = [(g, tiers[tier]) for g, tiers in raw["run_time"].items() if tier in tiers]
    group, own = of_group[0] if of_group else (tier, [])
    cpu = next(c for c, entry in raw["cpus"].items() if entry["tier"] == group or c == "native")
    if of_group and native_tier() == group:
        cpu = "native"
    elif of_group or tier != "plain":
        cpu = next((c for c, entry in raw["cpus"].items() if entry["tier"] == group), "")
    if not cpu:
        pytest.skip(f"no compiler here makes code for {group}")
    chain = raw["cpus"][cpu]
    need(chain["cc"])
    nm = chain["cc"].removesuffix("gcc") + "nm" if chain["cc"].endswith("gcc") else "nm"
    found: set[str] = set()
    for source in kernel_sources(tier):
        out = folder / f"{source.stem}.o"
        flags = [*chain.get("machine", []), "-O1", *own, *includes(group)]
        run([chain["cc"], *STRICT, *flags, "-c", str(source), "-o", str(out)])
        found |= set(re.findall(rf"^\w+ T sf_{tier}_(\w+)$", run([nm, str(out)]), flags=re.M))
    return found


def matrix() -> dict[str, set[str]]:
    """Kernels of each tier by README.md."""
    lines = (KERNELS / "README.md").read_text().splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    tiers = rows[0][1:]
    return {t: {row[0].strip("`") for row in rows[2:] if row[i + 1]} for i, t in enumerate(tiers)}


@pytest.mark.parametrize(
    "tier",
    [
        p.parent.name
        for p in sorted(KERNELS.glob("*/*.h"))
        if p.name in ("tier.h", "has.h") and "RUN_TIME" not in p.read_text()
    ],
)
def test_matrix(tier: str, tmp_path: Path) -> None:
    """What a tier's header lists, README.md shows and the compiler made are the same."""
    found = compiled(tier, tmp_path)
    listed = tier_kernels(tier, {})
    if tier == "plain":
        header = (root() / "firmware" / "include" / "sf_kernels.h").read_text()
        listed = set(re.findall(r"X\(plain, (\w+)\)", header))
    assert listed and found == listed == matrix()[tier]


def only_kernels(board: Board) -> Board:
    """The board with the comparison for its main program."""
    return with_main(board, SOURCES)


def with_main(board: Board, main: list[Path]) -> Board:
    sources = [s for s in board.sources if Path(s).name != "main.c"]
    return replace(board, sources=[*sources, *map(str, main)])


@pytest.mark.parametrize("name", BARE)
def test_bare(name: str, tmp_path: Path) -> None:
    assert said(only_kernels(load_board(name)), tmp_path) == b"equal\n"


def said(board: Board, folder: Path) -> bytes:
    """The first line of a board's main program."""
    settings = board.settings("emulator")
    need(board.toolchain["cc"], settings["command"][0], *(["npm"] if "npm" in settings else []))
    pack(random_model(), folder / "model.sfm", Formats())
    image = Image(folder / "model.sfm")
    generate(make_plan(image, board, dense_thresholds(image)), folder / "gen", board)
    elf = build_firmware(board, folder / "gen", folder / "firmware")
    (folder / "plan.json").write_text("{}")
    flash_files(board, Files(elf, image.path, folder / "plan.json"), folder / "flashed")
    process = start_board(board, folder / "flashed")
    assert isinstance(process, EmulatorProcess)
    with process as emulator:
        return bytes(emulator.port.readline())


FLOATS = HERE / "floats_main.c"


def test_floats(tmp_path: Path) -> None:
    """Our float arithmetic of Armv6-M gives the bits that this machine's unit gives."""
    need("cc")
    exe = tmp_path / "floats"
    run(["cc", "-O1", *STRICT, *includes("plain"), str(FLOATS), "-o", str(exe), "-lm"])
    here = subprocess.run([exe], capture_output=True, check=True, timeout=60).stdout
    assert said(with_main(load_board("pico"), [FLOATS]), tmp_path) == here
