"""Serial ports and drives: found when one fits, named when several do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from sparseflash.base.errors import UsageError
from sparseflash.device import ports
from sparseflash.device.ports import find_drive, find_port
from sparseflash.device.runners import Files, runner_commands
from sparseflash.plan.boards import load_board


@dataclass
class Port:
    """What pyserial says of a port."""

    device: str
    vid: int | None = 0x1A86
    pid: int | None = 0x7523
    description: str = "USB serial"
    serial_number: str | None = None


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> list[Port]:
    found: list[Port] = [Port("/dev/ttyS0", None, None, "n/a")]
    monkeypatch.setattr(ports.list_ports, "comports", lambda: found)
    return found


def test_the_board_s_own_device_comes_first(plugged: list[Port]) -> None:
    board = load_board("nucleo-u575zi-q")
    with pytest.raises(UsageError, match=r"no serial port .* nucleo-u575zi-q; plug it in"):
        find_port(board)
    plugged.append(Port("/dev/ttyUSB0"))
    assert find_port(board) == "/dev/ttyUSB0"
    plugged.append(Port("/dev/ttyACM0", 0x0483, 0x374E, "STLINK-V3"))
    assert find_port(board) == "/dev/ttyACM0"


def test_several_are_named(plugged: list[Port]) -> None:
    plugged += [Port("/dev/ttyUSB1"), Port("/dev/ttyUSB0", serial_number="42")]
    with pytest.raises(UsageError) as e:
        find_port(load_board("esp32c3"))
    assert "/dev/ttyUSB0 (USB serial, number 42); /dev/ttyUSB1 (USB serial)" in str(e.value)


def test_a_runner_takes_the_port_that_is_there(plugged: list[Port], tmp_path: Path) -> None:
    plugged.append(Port("/dev/ttyUSB7"))
    files = Files(tmp_path / "firmware", tmp_path / "model.sfm", tmp_path / "plan.json")
    commands = runner_commands(load_board("esp32c3"), "esptool", files, {})
    assert all("/dev/ttyUSB7" in c for c in commands)
    given = runner_commands(load_board("esp32c3"), "esptool", files, {"port": "/dev/other"})
    assert all("/dev/other" in c for c in given)


def test_drives(tmp_path: Path) -> None:
    def mount(name: str) -> Path:
        place = tmp_path / "media" / "me" / name
        place.mkdir(parents=True)
        (place / "INFO_UF2.TXT").write_text("UF2")
        return place

    assert find_drive("RPI-RP2", base=tmp_path) is None
    place = mount("RPI-RP2")
    assert find_drive("RPI-RP2", base=tmp_path) == place
    assert find_drive("RP2350", base=tmp_path) is None
    mount("RPI-RP21")
    with pytest.raises(UsageError, match=r"several drives RPI-RP2 .*RPI-RP2, .*RPI-RP21; give DRI"):
        find_drive("RPI-RP2", base=tmp_path)
