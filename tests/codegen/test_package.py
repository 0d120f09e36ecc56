"""Packages of the generated C: the metadata is what each ecosystem reads, and the code compiles in
their layout; the one of CMake is built, run and compared with the reference."""

from __future__ import annotations

import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from conftest import random_model
from sparseflash.base.errors import UsageError
from sparseflash.base.files import parse_yaml, root
from sparseflash.base.programs import missing
from sparseflash.codegen.build import STRICT
from sparseflash.codegen.package import (
    ECOSYSTEMS,
    Example,
    check_package,
    package_name,
    write_package,
)
from sparseflash.device.conform import expected_tokens
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import dense_thresholds
from sparseflash.plan.boards import load_board
from sparseflash.plan.plan import make_plan

PROMPT = Example('say "a"\n', [5, 9, 11], 12)
STUBS = {
    "esp_partition.h": """
#include <stddef.h>
#include <stdint.h>
typedef struct { uint32_t address, size; } esp_partition_t;
typedef uint32_t esp_partition_mmap_handle_t;
typedef int esp_err_t;
#define ESP_OK 0
enum { ESP_PARTITION_TYPE_DATA = 1, ESP_PARTITION_SUBTYPE_ANY = 0xff, ESP_PARTITION_MMAP_DATA = 0 };
const esp_partition_t *esp_partition_find_first(int type, int subtype, const char *label);
esp_err_t esp_partition_mmap(const esp_partition_t *p, size_t at, size_t n, int memory,
                             const void **out, esp_partition_mmap_handle_t *handle);
void app_main(void);
""",
    "esp_timer.h": "#include <stdint.h>\nint64_t esp_timer_get_time(void);\n",
    "zephyr/kernel.h": """
#include <stdint.h>
#define CONFIG_SYS_CLOCK_TICKS_PER_SEC 10000
#define CONFIG_SPARSEFLASH_IMAGE_ADDRESS 0x8020000
int64_t k_uptime_ticks(void);
void printk(const char *format, ...);
""",
    "Arduino.h": """
#include <stdint.h>
#include <stddef.h>
extern "C" unsigned long micros(void);
struct Stream {
    void begin(int);
    size_t write(const uint8_t *, size_t);
    void println(const char *);
};
extern Stream Serial;
void setup();
void loop();
""",
    "stdio.h": """
#include <stddef.h>
typedef struct file FILE;
extern FILE *stdout;
int printf(const char *, ...);
size_t fwrite(const void *, size_t, size_t, FILE *);
int fflush(FILE *);
""",
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """A random model whose tokens read <0>, <1> and so on."""
    model = random_model()
    model.tokenizer = SimpleNamespace(token_bytes=lambda i: b"<%d>" % i)  # type: ignore[assignment]
    path = tmp_path_factory.mktemp("package") / "model.sfm"
    pack(model, path)
    return Image(path)


def packaged(image: Image, board_name: str, ecosystem: str, folder: Path) -> Path:
    board = load_board(board_name)
    plan = make_plan(image, board, dense_thresholds(image), kv_len=32)
    return write_package(plan, board, ecosystem, Path(image.path), folder / "out", PROMPT)


def compiled(
    place: Path,
    board_name: str,
    main: str,
    folder: Path,
    cplusplus: bool = False,
    more: tuple[str, ...] = (),
) -> str:
    """Compiles all of ``src`` and an example; the instructions of all."""
    folder.mkdir(exist_ok=True)
    board = load_board(board_name)
    cc = board.toolchain["cc"]
    if absent := missing(cc):
        pytest.skip(absent)
    own = [f"-I{board.folder / i}" for i in board.toolchain.get("includes", [])]
    flags = [*board.toolchain["machine"], *board.toolchain["cflags"], *own, *more]
    flags = [f for f in flags if f[:2] != "-D"] + [f"-I{place / 'src'}"]
    for source in sorted(p for p in (place / "src").rglob("*") if p.suffix in (".c", ".S")):
        target = folder / f"{source.parent.name}-{source.stem}.o"
        warnings = [w for w in STRICT if not w.startswith("-ffp")]
        command = [cc, *warnings, *flags, "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=True)
    for name, text in STUBS.items():
        if name == "stdio.h" and not own:
            continue  # the C library's
        path = folder / "stubs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#pragma once\n" + text)
    language = ["-x", "c++", "-include", "Arduino.h"] if cplusplus else ["-std=c11"]
    command = [cc, *flags, f"-I{folder / 'stubs'}", "-Wall", "-Wextra", "-Werror", *language]
    subprocess.run([*command, "-c", str(place / main), "-o", str(folder / "main.o")], check=True)
    objects = [str(p) for p in sorted(folder.glob("*.o"))]
    text = subprocess.check_output([cc.replace("gcc", "objdump"), "-d", *objects], text=True)
    return "\n".join(line for line in text.splitlines() if "file format" not in line)


def listed(place: Path, text: str, prefix: str = "src/") -> None:
    """Every C file of ``src`` is named in ``text``."""
    sources = [p for p in (place / "src").rglob("*") if p.suffix in (".c", ".S")]
    assert len(sources) > 15
    for p in sources:
        assert f"{prefix}{p.relative_to(place / 'src')}" in text


def test_cmake_runs(image: Image, tmp_path: Path) -> None:
    """The example writes what the reference generates; the package installs and is found."""
    if absent := missing("cmake"):
        pytest.skip(absent)
    place = packaged(image, "host", "cmake", tmp_path)
    listed(place, (place / "CMakeLists.txt").read_text())
    build = tmp_path / "build"
    options = ["-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'there'}"]
    subprocess.run(["cmake", "-S", place, "-B", build, *options], check=True, capture_output=True)
    command = ["cmake", "--build", build, "--target", "install", "--parallel", "2"]
    subprocess.run(command, check=True, capture_output=True)
    said = subprocess.check_output([build / "example" / "generate", place / "model.sfm"], text=True)
    tokens = expected_tokens(image, PROMPT.tokens, dense_thresholds(image), PROMPT.count)
    tokens = tokens[: tokens.index(2)] if 2 in tokens else tokens
    assert said == "".join(f"<{t}>" for t in tokens) + "\n"
    name = package_name(image.name)
    assert list((tmp_path / "there").rglob(f"{name}-config.cmake"))
    command = [str(build / "example" / "generate"), "no"]
    missing_image = subprocess.run(command, capture_output=True, check=False)
    assert missing_image.returncode == 1 and b"name it" in missing_image.stderr


def test_esp_idf(image: Image, tmp_path: Path) -> None:
    place = packaged(image, "esp32c3", "esp-idf", tmp_path)
    listed(place, (place / "CMakeLists.txt").read_text())
    about = parse_yaml((place / "idf_component.yml").read_text())
    assert set(about) == {"version", "description", "license", "dependencies"}
    rows = (place / "examples/generate/partitions.csv").read_text().splitlines()[1:]
    sizes = {r.split(",")[0]: int(r.split(",")[4], 0) for r in rows}
    assert sizes["model"] >= image.size and sizes["model"] % 65536 == 0
    compiled(place, "esp32c3", "examples/generate/main/main.c", tmp_path)


def test_arduino(image: Image, tmp_path: Path) -> None:
    place = packaged(image, "mps2-an386", "arduino", tmp_path)
    lines = (place / "library.properties").read_text().splitlines()
    about = dict(line.split("=", 1) for line in lines)
    assert {"name", "version", "author", "maintainer", "sentence", "paragraph"} <= set(about)
    assert about["category"] == "Data Processing" and about["architectures"] == "*"
    assert (place / "src" / about["includes"]).is_file()
    compiled(place, "mps2-an386", "examples/generate/generate.ino", tmp_path, cplusplus=True)


def test_zephyr(image: Image, tmp_path: Path) -> None:
    place = packaged(image, "mps2-an385", "zephyr", tmp_path)
    module = parse_yaml((place / "zephyr" / "module.yml").read_text())
    assert set(module) == {"name", "build"}
    assert (place / module["build"]["cmake"] / "CMakeLists.txt").is_file()
    assert (place / module["build"]["kconfig"]).is_file()
    listed(place, (place / "CMakeLists.txt").read_text())
    compiled(place, "mps2-an385", "samples/generate/src/main.c", tmp_path)


def test_cmsis_pack(image: Image, tmp_path: Path) -> None:
    """The description names files of the pack alone, in the order of the schema."""
    place = packaged(image, "mps2-an505", "cmsis-pack", tmp_path)
    name = package_name(image.name)
    (pack_file,) = place.glob("Sparseflash.*.pack")
    with zipfile.ZipFile(pack_file) as z:
        held = set(z.namelist())
        tree = ElementTree.fromstring(z.read(f"Sparseflash.{name}.pdsc"))
    order = ["vendor", "name", "description", "url", "license", "releases", "conditions"]
    assert [e.tag for e in tree] == [*order, "components"]
    conditions = {c.get("id") for c in tree.iter("condition")}
    assert {c.get("condition") for c in tree.iter("component")} <= conditions
    files = {f.get("name") for f in tree.iter("file")}
    assert {str(f) for f in files if not str(f).endswith("/")} <= held
    listed(place, "\n".join(map(str, files)))
    main = "example/main.c"
    code = compiled(place, "mps2-an505", main, tmp_path / "a")
    exact = compiled(place, "mps2-an505", main, tmp_path / "b", more=("-ffp-contract=off",))
    assert code == exact, "a product and a sum were contracted: bits would differ"


def test_what_cannot_be_packaged() -> None:
    with pytest.raises(UsageError, match=r"no package 'make'; there are cmake, esp-idf"):
        check_package("make", load_board("host"))
    with pytest.raises(UsageError, match=r"streams its weights"):
        check_package("cmake", load_board("pico"))
    with pytest.raises(UsageError, match=r"for\s+microcontrollers"):
        check_package("arduino", load_board("host"))


def test_a_failed_package_leaves_the_old_one(image: Image, tmp_path: Path) -> None:
    place = packaged(image, "mps2-an386", "cmake", tmp_path)
    before = sorted(p.name for p in place.rglob("*"))
    board = replace(load_board("mps2-an386"), tier="none")
    plan = make_plan(image, load_board("mps2-an386"), dense_thresholds(image), kv_len=32)
    with pytest.raises(OSError):
        write_package(plan, board, "cmake", tmp_path / "no image", place, PROMPT)
    assert sorted(p.name for p in place.rglob("*")) == before
    assert not list(tmp_path.glob("*.part"))


def test_every_ecosystem_has_templates() -> None:
    folders = {p.name for p in (root() / "codegen_templates" / "package").iterdir() if p.is_dir()}
    assert folders == set(ECOSYSTEMS)
