"""The command style of MLPerf Tiny's runner, against a device of counters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sparseflash.device.link.protocol import COUNTERS
from sparseflash.device.profile import HELP, Profile


class Counting:
    """A token is 7 bytes and 500 ticks of a microsecond."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.since = 0

    def info(self) -> Any:
        shape = {"kv_len": 64, "vocab": 100, "board": "desk", "model": "toy"}
        return SimpleNamespace(**shape, ticks_per_second=1_000_000)

    def reset(self) -> None:
        self.ran.clear()

    def prefill(self, ids: list[int]) -> None:
        self.ran += ids
        self.since += len(ids)

    def step(self, token: int) -> int:
        self.ran.append(token)
        self.since += 1
        return (token + 1) % 100

    def counters(self, clear: bool = False) -> dict[str, int]:
        n, self.since = self.since, 0 if clear else self.since
        return dict.fromkeys(COUNTERS, 0) | {"tokens": n, "bytes": 7 * n, "time_total": 500 * n}


def session(*commands: str, time_model: str = "clock") -> list[str]:
    profile = Profile(Counting(), 8, time_model)  # type: ignore[arg-type]
    return [line for c in commands for line in profile.answers(c)]


LOAD = ("db load 16", "db 0100000002000000", "db 0300000004000000")


def test_a_run() -> None:
    said = session("name", "profile", *LOAD, "infer 3 1", "results")
    assert said[:2] == ["m-name-dut-[desk]", "m-ready"]
    assert "m-model-[toy]" in said and "m-time-[the device's clock]" in said
    assert said.count("m-ready") == 7 and said.count("m-load-done") == 1
    for line in ("m-warmup-done", "m-infer-start-3", "m-infer-done"):
        assert said.count(line) == 1
    for line in (
        "m-prefill-tokens-3", "m-prefill-us-1500", "m-decode-tokens-8", "m-decode-us-4000",
        "m-bytes-per-token-7", "m-energy-uj-[]",
    ):  # fmt: skip
        assert said.count(line) == 2, line
    laps = [int(line.rpartition("-")[2]) for line in said if line.startswith("m-lap-us-")]
    assert len(laps) == 2 and laps[1] >= laps[0]


def test_no_time_where_the_board_has_none() -> None:
    said = session(*LOAD, "infer 1", time_model="instructions")
    assert not [line for line in said if "-us-" in line and "lap" not in line]
    assert "m-instructions-per-token-500000" in said


def test_what_is_wrong_is_said() -> None:
    for commands, word in (
        (("infer 1",), "no prompt is loaded"),
        (("db load 6",), "multiple of 4"),
        (("db load 4", "db 0102030405"), "more than the 4 bytes"),
        (("db load 4", "db xx"), "hexadecimal"),
        (("db load 4", "db ffffffff", "infer 1"), "outside the vocabulary of 100"),
        ((*LOAD, "infer 0"), "one iteration or more"),
        (("infer",), "missing 1 required positional argument"),
        (("dance",), "no command 'dance'"),
        (("results",), "nothing was measured yet"),
        (("",), "no command ''"),
    ):
        *_, error, ready = session(*commands)
        assert error.startswith("e-[") and word in error and ready == "m-ready"
    assert [line for line in session("help") if "help" in line] == [
        f"m-help-[{line}%]" for line in HELP
    ]
