"""What ``board.yaml`` may say: its keys, their types and allowed values.

What a CPU gives its boards (``cpus.yaml``) may be left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from sparseflash.base.errors import InputError

Size = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)


class Memory(_Strict):
    """A region of the memory map."""

    name: str
    origin: Size
    length: PositiveInt
    holds: list[Literal["code", "constants", "data", "dma"]] = Field(min_length=1)
    dma_from: Size = 0


class Timing(_Strict):
    """Of the flash, for the cycle model."""

    clock_hz: PositiveInt
    lanes: Literal[1, 2, 4, 8]
    command_clocks: Size
    restart_cycles: Size


class Flash(_Strict):
    """Where the image lies."""

    base: Size
    bytes: PositiveInt
    control: Size | None = None
    dma_granule: PositiveInt | None = None
    offset: Size | None = None
    uncached: Size | None = None
    timing: Timing | None = None


class Stream(_Strict):
    """Buffers of a board that reads weights from flash for each token."""

    align: PositiveInt
    gap: Size
    ring_buffers: PositiveInt
    ring_bytes: PositiveInt
    pick_buffers: PositiveInt
    pick_bytes: PositiveInt
    pick_reads: PositiveInt | None = None
    program_bytes: Size = 0
    constants: bool = False


class Uart(_Strict):
    """The serial line."""

    driver: str | int | None = None
    base: Size | None = None
    clock: PositiveInt | None = None
    baud: PositiveInt | None = None
    divisor: PositiveInt | None = None
    shift: Size | None = None
    irq: Size | None = None


class Uf2(_Strict):
    """Of a boot loader that takes UF2 files."""

    family: Size
    boot_crc: bool = False


class Toolchain(_Strict):
    """What is added to the lists of the CPU in ``cpus.yaml``."""

    cc: str | None = None
    ld: str | None = None
    objcopy: str | None = None
    machine: list[str] | None = None
    cflags: list[str] | None = None
    ldflags: list[str] | None = None
    includes: list[str] | None = None
    libraries: list[str] | None = None


class Runner(BaseModel):
    """How ``flash`` and the sessions reach a board; other keys are values of its commands."""

    model_config = ConfigDict(extra="allow", defer_build=True)
    command: list[str] | None = None
    commands: list[list[str]] | None = None
    launcher: list[str] | None = None
    time: Literal["clock", "instructions", "cycles", "none"] | None = None
    start_seconds: Annotated[float, Field(gt=0)] | None = None
    reply_seconds: Annotated[float, Field(gt=0)] | None = None
    pad: bool | None = None
    npm: str | None = None
    label: str | None = None


class BoardFile(_Strict):
    """A whole ``board.yaml``."""

    id: str
    description: str
    cpu: str
    clock_hz: PositiveInt | None = None
    kind: Literal["process", "bare"] | None = None
    kv_len_default: PositiveInt | None = None
    threads: PositiveInt | None = None
    """Most that a board with an operating system may use."""
    sram_bytes: PositiveInt | None = None
    flash_bytes: PositiveInt | None = None
    memories: list[Memory] = []
    reserve: dict[Literal["stack", "code and constants", "runtime"], Size] = {}
    flash: Flash | None = None
    stream: Stream | None = None
    code_in_sram: bool = False
    uart: Uart | None = None
    irqs: dict[int, str] = {}
    uf2: Uf2 | None = None
    toolchain: Toolchain = Toolchain()
    usb: list[str] = []
    sources: list[str] = []
    uses: list[str] = []
    runner: str
    runners: dict[str, Runner | None] = {}


def check(path: Path, raw: dict[str, Any]) -> None:
    """Refuses a file with a wrong key or value.

    Raises:
        InputError: names the file, the key and what is allowed there.
    """
    try:
        BoardFile.model_validate(raw)
    except ValidationError as e:
        raise InputError(f"{path}: {_sentence(e)}") from e
    if raw["id"] != path.parent.name:
        raise InputError(f"{path}: id is {raw['id']!r} in a folder named {path.parent.name!r}")


def check_complete(path: Path, raw: dict[str, Any]) -> None:
    """Refuses a board that lacks something, ``raw`` being what file and CPU say together.

    Raises:
        InputError: names the file and the key.
    """
    for key in ("kind", "kv_len_default", "sources"):
        if not raw.get(key):
            raise InputError(f"{path}: {key} is missing, and its CPU gives none")
    if raw["kind"] == "bare":
        held = [h for m in raw.get("memories", []) for h in m["holds"]]
        for needed in ("code", "data", "dma"):
            if needed not in held:
                raise InputError(f"{path}: no entry of memories holds {needed!r}; add it to one")
        for key in ("flash", "reserve", "clock_hz"):
            if not raw.get(key):
                raise InputError(f"{path}: {key} is missing, which a board of kind bare needs")
        if "stack" not in raw["reserve"]:
            raise InputError(f"{path}: reserve.stack is missing; give its bytes")
    else:
        for key in ("sram_bytes", "flash_bytes"):
            if not raw.get(key):
                raise InputError(f"{path}: {key} is missing, which a board of kind process needs")
    names = {raw["runner"], *raw.get("runners", {})}
    for name in names - {"process", "uf2", "picotool", "openocd", "st-flash", "pyocd", "esptool",
                         "ssh"}:  # fmt: skip
        known = (raw.get("runners", {}).get(name) or {}).keys() & {"command", "commands"}
        if not known:
            raise InputError(
                f"{path}: runner {name!r} has no command; runners without one are process, uf2, "
                "picotool, openocd, st-flash, pyocd, esptool and ssh"
            )


def _sentence(e: ValidationError) -> str:
    """The first fault: its key, what is wrong and what is allowed."""
    first = e.errors()[0]
    where = [str(p) for p in first["loc"] if p != "[key]"]
    key = ".".join(where)
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(_keys(first["loc"][:-1]))
        return f"{key} is no key of a board; there are {allowed}"
    said = first["msg"].removeprefix("Input should be ").partition(", unable")[0]
    said = said.replace("valid dictionary", "mapping").replace("valid ", "")
    given = first["input"]
    if first["loc"][-1:] == ("[key]",):
        return f"{key} is no key of a board; there are {said}"
    shown = repr(given) if isinstance(given, (str, int, float, bool)) else "that"
    return f"{key} is {shown} and should be {said}"


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model at ``place``."""
    model: Any = BoardFile
    for step in place:
        if isinstance(step, str) and step in getattr(model, "model_fields", {}):
            model = _model_of(model.model_fields[step].annotation)
    return list(model.model_fields)


def _model_of(annotation: Any) -> Any:
    """The model in a type such as ``list[Memory]`` or ``Flash | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_model_of(a) for a in getattr(annotation, "__args__", ())]
    return next((f for f in found if f is not None), None)
