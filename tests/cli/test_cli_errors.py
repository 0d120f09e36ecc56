"""What a user meets when something is wrong: one sentence, a documented exit code, no debris."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_load import write_gguf, write_llama2c

from conftest import make_workspace, random_model
from sparseflash import cli
from sparseflash.base.errors import Exit
from sparseflash.base.files import root, write_bytes
from sparseflash.base.sizes import parse_size
from sparseflash.cli import console
from sparseflash.device.host_board import start_host_device
from sparseflash.pipeline.places import Places

NAME = "small"


def add_recipe(base: Path, file: Path, name: str = NAME, **changes: Any) -> None:
    """A recipe of a model file in the workspace, with the hash the file has now."""
    data = file.read_bytes() if file.is_file() else b"absent"
    recipe = {
        "name": name,
        "title": "a random model",
        "licence": "MIT",
        "source": {
            "kind": "file",
            "path": str(file.relative_to(base)),
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        },
        "formats": {"attn": "q8", "ffn": "q8", "embed": "q8"},
        "kv_len": 64,
        **changes,
    }
    (base / "models" / f"{name}.yaml").write_text(yaml.safe_dump(recipe))


def add_board(base: Path, name: str, **changes: Any) -> None:
    """The host board under another name, changed by ``changes``."""
    source = root() / "firmware" / "port" / "host"
    folder = base / "firmware" / "port" / name
    folder.mkdir()
    for path in source.glob("*.[ch]"):
        (folder / path.name).symlink_to(path)
    raw = yaml.safe_load((source / "board.yaml").read_text())
    (folder / "board.yaml").write_text(yaml.safe_dump({**raw, "id": name, **changes}))


def command(*arguments: str) -> int:
    """Exit code of the command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sparseflash", *arguments])
        try:
            cli.main()
        except SystemExit as e:
            return int(e.code or 0)
        return 0


Refuse = Callable[..., str]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_workspace(tmp_path)
    write_llama2c(folder / "small.bin", random_model())
    add_recipe(folder, folder / "small.bin")
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(folder))
    monkeypatch.setattr(console, "EVERY", 1e6)
    return folder


@pytest.fixture(scope="module")
def flashed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder in which the model is flashed on host."""
    base = make_workspace(tmp_path_factory.mktemp("flashed"))
    write_llama2c(base / "small.bin", random_model())
    add_recipe(base, base / "small.bin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEFLASH_ROOT", str(base))
        assert command("generate", "--model", NAME, "--method", "dense") == 0
        assert command("flash", "--model", NAME) == 0
        assert command("validate", "--model", NAME) == 0
    return base / "build"


@pytest.fixture
def flashed(base: Path, flashed_once: Path) -> Path:
    kernels = shutil.ignore_patterns("kernels")
    shutil.copytree(flashed_once, base / "build", ignore=kernels, dirs_exist_ok=True)
    return base


@pytest.fixture
def refuse(base: Path, capfd: pytest.CaptureFixture[str]) -> Refuse:
    """Runs a command that must fail; returns its one sentence."""

    def run(code: Exit, *arguments: str) -> str:
        before = artefacts(base)
        capfd.readouterr()
        assert command(*arguments) == code
        said = capfd.readouterr().err.strip()
        assert said.startswith("error: "), said
        assert "\n" not in said and "Traceback" not in said
        after = artefacts(base)
        assert not [p for p in after if p.endswith(".part")]
        changed = {p for p in after if before.get(p) != after[p]}
        # An earlier stage may have given its whole result.
        whole = {f"build/models/{NAME}/{name}" for name in ("model.sfm", "known.json")}
        whole |= {f"build/host/{NAME}/{name}" for name in ("firmware", "validate.json")}
        assert not {p for p in changed - whole if not p.startswith("build/kernels/")}
        return said.removeprefix("error: ")

    return run


def artefacts(base: Path) -> dict[str, bytes]:
    """Files outside the sources, by path; links are not followed."""
    return {
        str(p.relative_to(base)): p.read_bytes()
        for p in base.rglob("*")
        if p.is_file() and not p.is_symlink()
    }


def generate(*more: str) -> tuple[str, ...]:
    return ("generate", "--model", NAME, "--method", "dense", *more)


# Model files ----------------------------------------------------------------


def test_changed_model_file(base: Path, refuse: Refuse) -> None:
    path = base / "small.bin"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    assert re.search(r"small\.bin has SHA-256 .* instead of", refuse(Exit.INPUT, *generate()))
    path.write_bytes(data[:-9])
    assert re.search(r"small\.bin has [\d,]+ bytes instead of", refuse(Exit.INPUT, *generate()))
    path.unlink()
    assert "small.bin does not exist" in refuse(Exit.INPUT, *generate())


@pytest.mark.parametrize("kind", ["bin", "gguf"])
@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "not finite"])
def test_damaged_model_file(kind: str, damage: str, base: Path, refuse: Refuse) -> None:
    """The hash of the recipe is that of the damaged file, so the loader has to notice."""
    path = base / f"damaged.{kind}"
    model = random_model(ffn_dim=96)
    if damage == "not finite":
        model.layers[1].attn_norm[3] = np.nan
    write_gguf(path, model) if kind == "gguf" else write_llama2c(path, model)
    data = path.read_bytes()
    if damage != "not finite":
        keep = {"truncated": data[: len(data) * 3 // 4], "empty": b"\0"}
        path.write_bytes(keep.get(damage, b"\xff" * 24 + data[24:]))
    add_recipe(base, path)
    assert f"damaged.{kind}" in refuse(Exit.INPUT, *generate())
    assert not Places(NAME).image.exists()


def test_unknown_architecture_and_kind(base: Path, refuse: Refuse) -> None:
    write_gguf(base / "m.gguf", random_model(ffn_dim=96), "mamba")
    add_recipe(base, base / "m.gguf")
    assert "architecture 'mamba' is not supported" in refuse(Exit.UNSUPPORTED, *generate())
    (base / "m.onnx").write_bytes(b"x")
    add_recipe(base, base / "m.onnx")
    assert "unknown kind of model file '.onnx'" in refuse(Exit.UNSUPPORTED, *generate())


def test_model_the_device_cannot_run(base: Path, refuse: Refuse) -> None:
    write_llama2c(base / "odd.bin", random_model(dim=72, n_heads=9, n_kv_heads=9))
    add_recipe(base, base / "odd.bin")
    assert "dim = 72, not a multiple of 32" in refuse(Exit.UNSUPPORTED, *generate())


def test_damaged_recipe(base: Path, refuse: Refuse) -> None:
    add_recipe(base, base / "small.bin", colour="red")
    assert "not known ['colour']" in refuse(Exit.INPUT, *generate())


# Flash image ----------------------------------------------------------------


def damaged_image(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        del data[len(data) * 2 // 3 :]
    elif damage == "empty":
        data.clear()
    elif damage == "other":
        data = bytearray(b"something else entirely" * 40)
    else:
        data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_damaged_image(damage: str, flashed: Path, refuse: Refuse) -> None:
    packed, on_board = Places(NAME).image, Places(NAME).flashed / "model.sfm"
    damaged_image(on_board, damage)
    for verb in ("validate", "bench"):
        assert "model.sfm" in refuse(Exit.INPUT, verb, "--model", NAME)
    damaged_image(packed, damage)
    assert "model.sfm" in refuse(Exit.INPUT, "flash", "--model", NAME)
    assert command(*generate()) == 0, "generate packs a damaged image again"
    assert command("flash", "--model", NAME) == 0
    assert command("validate", "--model", NAME, "--positions", "4") == 0


def test_image_truncated_anywhere(flashed: Path) -> None:
    from sparseflash.base.errors import InputError
    from sparseflash.image.sfm import Image

    data = Places(NAME).image.read_bytes()
    copy = flashed / "copy.sfm"
    rng = np.random.default_rng(1)
    for keep in [*range(0, 400, 13), *rng.integers(400, len(data), 30)]:
        write_bytes(copy, data[:keep])
        with pytest.raises(InputError, match=r"copy\.sfm"):
            Image(copy)
    for at in [*range(0, 64), *rng.integers(64, len(data), 60)]:
        wrong = bytearray(data)
        wrong[at] ^= 1 << int(rng.integers(8))
        write_bytes(copy, wrong)
        if 24 <= at < 32 and wrong[:24] == data[:24]:
            continue  # a reserved field
        with pytest.raises(InputError, match=r"copy\.sfm"):
            Image(copy)


def test_image_of_another_plan(flashed: Path, refuse: Refuse) -> None:
    write_llama2c(flashed / "small.bin", random_model(seed=2))
    add_recipe(flashed, flashed / "small.bin")
    old = Places(NAME).target / "old"
    shutil.copytree(Places(NAME).generated, old)
    assert command(*generate()) == 0
    shutil.rmtree(Places(NAME).generated)
    old.rename(Places(NAME).generated)
    assert "was made for another image" in refuse(Exit.MISMATCH, "flash", "--model", NAME)
    assert command(*generate()) == 0
    shutil.copy(Places(NAME).image, Places(NAME).flashed / "model.sfm")
    assert "not the image" in refuse(Exit.MISMATCH, "validate", "--model", NAME)


def test_damaged_plan(flashed: Path, refuse: Refuse) -> None:
    for text in ("{", "[]", "\xff"):
        (Places(NAME).flashed / "plan.json").write_text(text, encoding="latin-1")
        assert "plan.json" in refuse(Exit.INPUT, "validate", "--model", NAME)


# Port -----------------------------------------------------------------------


@pytest.fixture
def pty_that(request: pytest.FixtureRequest) -> Iterator[str]:
    """A pty whose other end echoes, or talks of something else."""
    master, slave = os.openpty()
    tty.setraw(slave)

    def serve() -> None:
        while True:
            try:
                data = os.read(master, 4096)
                os.write(master, data if request.param == "echoes" else b"OK\r\n\0" * 20)
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield os.ttyname(slave)
    os.close(slave)
    thread.join(5)
    os.close(master)


@pytest.fixture
def tcp_that(request: pytest.FixtureRequest) -> Iterator[str]:
    """A socket that echoes, or talks of something else."""

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                while data := client.recv(4096):
                    client.sendall(data if request.param == "echoes" else b"HTTP/1.1 400\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"socket://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_missing_port(flashed: Path, refuse: Refuse) -> None:
    for port in ("/dev/ttyNONE9", "socket://127.0.0.1:1", "nonsense://x"):
        said = refuse(Exit.LINK, "validate", "--model", NAME, "--port", port)
        assert f"cannot open port {port}" in said


@pytest.mark.parametrize("pty_that", ["echoes", "talks"], indirect=True)
def test_wrong_firmware_on_a_pty(flashed: Path, pty_that: str, refuse: Refuse) -> None:
    said = refuse(Exit.LINK, "validate", "--model", NAME, "--port", pty_that)
    assert "no Sparseflash firmware answers" in said and "of something else came" in said


@pytest.mark.parametrize("tcp_that", ["echoes", "talks"], indirect=True)
def test_wrong_firmware_on_a_socket(flashed: Path, tcp_that: str, refuse: Refuse) -> None:
    said = refuse(Exit.LINK, "bench", "--model", NAME, "--port", tcp_that)
    assert "no Sparseflash firmware answers" in said and "of something else came" in said


def test_another_model_or_plan_on_the_port(flashed: Path, tmp_path: Path, refuse: Refuse) -> None:
    old = tmp_path / "old"
    shutil.copytree(Places(NAME).flashed, old)
    with start_host_device(old / "firmware", old / "model.sfm") as device:
        assert command("validate", "--model", NAME, "--port", device.url) == 0
        assert command(*generate("--kv-len", "32")) == 0
        assert command("flash", "--model", NAME) == 0
        said = refuse(Exit.MISMATCH, "validate", "--model", NAME, "--port", device.url)
        assert "runs plan" in said
        write_llama2c(flashed / "small.bin", random_model(seed=2))
        add_recipe(flashed, flashed / "small.bin")
        assert command(*generate()) == 0
        assert command("flash", "--model", NAME) == 0
        said = refuse(Exit.MISMATCH, "validate", "--model", NAME, "--port", device.url)
        assert "runs model" in said


def test_difference_is_a_failure(flashed: Path, refuse: Refuse) -> None:
    """The plan on the host says other thresholds than the firmware has; digests are forged."""
    path = Places(NAME).flashed / "plan.json"
    plan = json.loads(path.read_text())
    plan["thresholds"][1][3] = 0.5
    for place in (path, Places(NAME).plan):
        place.write_text(json.dumps(plan))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparseflash.device.session.plan_digest", lambda _: None)
        said = refuse(Exit.FAILED, "validate", "--model", NAME)
    assert "position 0, layer 1, site h[" in said


# Board ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("small", "word"),
    [({"sram_bytes": 10_000}, "bytes of SRAM"), ({"flash_bytes": 50_000}, "bytes of flash")],
)
def test_board_too_small(small: dict[str, int], word: str, base: Path, refuse: Refuse) -> None:
    add_board(base, "tiny", **small)
    said = refuse(Exit.TOO_SMALL, *generate("--board", "tiny"))
    assert said.startswith("board tiny: ") and word in said
    assert not Places(NAME, "tiny").target.exists()


WRONG_BOARDS = (
    ({"kidn": "process"}, "kidn is no key of a board; there are id, description, cpu"),
    ({"kind": "proces"}, "kind is 'proces' and should be 'process' or 'bare'"),
    ({"stream": {"aling": 4}}, "stream.align is missing"),
    ({"layout": "split"}, "layout is no key of a board; there are id, description, cpu"),
    ({"sources": "main.c"}, "sources is 'main.c' and should be a list"),
    ({"kv_len_default": "many"}, "kv_len_default is 'many' and should be a"),
    ({"runners": {"process": {"time": "sun"}}}, "runners.process.time is 'sun' and should be"),
    ({"runner": "magic"}, "runner 'magic' has no command; runners without one are process"),
    ({"toolchain": {"cflag": []}}, "toolchain.cflag is no key of a board; there are cc,"),
    ({"reserve": {"stak": 1}}, "reserve.stak is no key of a board; there are 'stack'"),
    ({"kind": "bare"}, "no entry of memories holds 'code'"),
    ({"sram_bytes": None}, "sram_bytes"),
)


@pytest.mark.parametrize(("changes", "said"), WRONG_BOARDS)
def test_a_wrong_board_names_its_key(
    changes: dict[str, Any], said: str, base: Path, refuse: Refuse
) -> None:
    """File, key and what is allowed, in one sentence."""
    add_board(base, "odd", **changes)
    sentence = refuse(Exit.INPUT, *generate("--board", "odd"))
    assert "firmware/port/odd/board.yaml: " in sentence and said in sentence


def test_a_wrong_file_does_not_hide_the_others(
    base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    add_board(base, "odd", kidn="process")
    assert command("boards") == 0
    said = capfd.readouterr()
    assert "mps2-an386" in said.out and "odd/board.yaml: kidn" in said.err
    add_recipe(base, base / "small.bin", "wrong", colour="red")
    assert command("models") == 0
    said = capfd.readouterr()
    assert NAME in said.out and "models/wrong.yaml" in said.err


def test_damaged_board(base: Path, refuse: Refuse) -> None:
    add_board(base, "odd", sram_bytes="plenty")
    assert "board.yaml" in refuse(Exit.INPUT, *generate("--board", "odd"))
    for text in ("{", "[1]", "id: odd\n", ""):
        (base / "firmware" / "port" / "odd" / "board.yaml").write_text(text)
        assert "board.yaml" in refuse(Exit.INPUT, *generate("--board", "odd"))


# Names and options ----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("generate", "--model", "gpt5"), "no model 'gpt5'"),
        (("generate", "--model", "../small"), "no model"),
        (("validate", "--model", "gpt5"), "gpt5"),
        (("generate", "--model", NAME, "--board", "toaster"), "no board 'toaster'"),
        (("generate", "--model", NAME, "--method", "magic"), "method 'magic' is unknown"),
        (("generate", "--model", NAME, "--sparsity", "100"), "sparsity 100 is out of range"),
        (("generate", "--model", NAME, "--sparsity", "nan"), "sparsity nan is out of range"),
        (("generate", "--model", NAME, "--sparsity", "half"), "--sparsity"),
        (("generate", "--model", NAME, "--kv-len", "0"), "--kv-len"),
        (("generate", "--model", NAME, "--colour", "red"), "--colour"),
        (("perplexity", "--model", NAME), "no tokenizer"),
        (("perplexity", "--model", NAME, "--methods", "h,magic"), "method 'magic'"),
        (("perplexity", "--model", NAME, "--sparsities", "30;50"), "30;50"),
        (("chat", "--model", NAME), "not flashed"),
        (("calibrate", "--model", NAME), "no tokenizer"),
        (("build", "--model", NAME), f"run sparseflash generate --model {NAME}"),
        (("flash", "--model", NAME), f"run sparseflash generate --model {NAME}"),
        (("size", "--model", NAME), "take a microcontroller"),
        (("stack", "--model", NAME), "take a microcontroller"),
        (("validate", "--model", NAME), "not flashed"),
        (("validate", "--model", NAME, "--positions", "0"), "--positions"),
        (("nonsense",), "nonsense"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], word: str, base: Path, refuse: Refuse) -> None:
    assert word in refuse(Exit.USAGE, *arguments)


# What was promised and what is done -----------------------------------------


def test_dry_run_prints_what_would_be_flashed(
    base: Path, refuse: Refuse, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before generate it refuses, as flash does; then it names the image of the plan."""
    dry = ("flash", "--model", NAME, "--board", "linux-sbc", "--runner", "ssh", "--host", "a@b")
    assert f"run sparseflash generate --model {NAME}" in refuse(Exit.USAGE, *dry, "--dry-run")
    for head, image in (("exact", "model.sfm"), ("16", "model.screened.sfm")):
        assert command(*generate("--board", "linux-sbc", "--head", head)) == 0
        capfd.readouterr()
        assert command(*dry, "--dry-run") == 0
        said = capfd.readouterr().out
        assert f"/{image} a@b:sparseflash/" in said and f"with {image}" in said


def test_a_plan_that_was_not_flashed(flashed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("validate", "--model", NAME, "--positions", "2") == 0
    assert "older plan" not in capfd.readouterr().err
    assert command(*generate("--kv-len", "40")) == 0
    for verb in (("validate", "--positions", "2"), ("bench", "--tokens", "2")):
        capfd.readouterr()
        assert command(verb[0], "--model", NAME, *verb[1:]) == 0
        said = capfd.readouterr().err
        assert "warning: host runs an older plan of small than the last generate wrote" in said


def test_options_that_would_do_nothing_are_refused(base: Path, refuse: Refuse) -> None:
    assert "maps its flash, so there is nothing that --ram could" in refuse(
        Exit.USAGE, *generate("--ram", "70M")
    )
    assert "is more than board host-flash has" in refuse(
        Exit.USAGE, *generate("--board", "host-flash", "--ram", "9G")
    )
    assert "give --kv-len 256 or less" in refuse(Exit.USAGE, *generate("--kv-len", "100000"))
    for verb in ("generate", "plan"):
        words = (verb, "--model", NAME, "--method", "dense", "--kv-len", "257")
        assert "--kv-len 257 is more than small was made for" in refuse(Exit.USAGE, *words)


@pytest.mark.parametrize("positions", [1, 2, 9, 20])
def test_bench_of_a_short_cache(
    positions: int, flashed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(*generate("--kv-len", str(positions))) == 0
    assert command("flash", "--model", NAME) == 0
    capfd.readouterr()
    assert command("bench", "--model", NAME, "--json") == 0
    said = capfd.readouterr()
    prefill, decode = json.loads(said.out)
    assert prefill["n_prompt"] + decode["n_gen"] <= positions
    assert f"the KV cache holds {positions} positions" in said.err


def test_compilers_are_quiet(flashed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Their commands are for --verbose, and for a failure."""
    assert command("build", "--model", NAME) == 0
    said = capfd.readouterr()
    assert said.err == "" and said.out.startswith("firmware ") and said.out.count("\n") == 1
    assert command("build", "--model", NAME, "--verbose") == 0
    said = capfd.readouterr()
    assert "cc -std=c11" in said.err and said.out.startswith("firmware ")


def test_a_fault_of_the_tool_is_one_sentence(
    base: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[str]:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("sparseflash.plan.boards.board_ids", broken)
    said = refuse(Exit.FAULT, "boards")
    assert "a fault of sparseflash" in said and "ZeroDivisionError (by nothing) in test_" in said


def test_chat_without_words(flashed: Path, refuse: Refuse) -> None:
    assert "no tokenizer, so it cannot chat" in refuse(Exit.USAGE, "chat", "--model", NAME)
    for word in ("--full", "neither slide nor stop"):
        assert word in refuse(Exit.USAGE, "chat", "--model", NAME, "--full", "over")


# Tools and places -----------------------------------------------------------


def test_no_compiler(base: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(*generate()) == 0
    monkeypatch.setenv("PATH", "/nowhere")
    assert "cc is not installed" in refuse(Exit.TOOL, "build", "--model", NAME)


def test_compiler_that_fails(base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(*generate()) == 0
    source = Places(NAME).target / "gen" / "sf_model.c"
    source.write_text("int broken = ;\n")
    assert command("build", "--model", NAME) == Exit.TOOL
    said = capfd.readouterr().err
    assert said.startswith("error: cc failed") and "Traceback" not in said
    assert "cc -std=c11" in said and "int broken" in said
    assert not list(base.rglob("*.part")) and not Places(NAME).firmware.exists()


def test_folder_that_cannot_be_made(base: Path, refuse: Refuse) -> None:
    shutil.rmtree(base / "build")
    (base / "build").write_text("a file where the folder should be")
    assert "build" in refuse(Exit.INPUT, *generate())


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result"
    target.write_bytes(b"old")

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as f:
            f.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(target, b"new and longer")
    assert [p.name for p in tmp_path.iterdir()] == ["result"]
    assert target.read_bytes() == b"old"


def test_as_a_process(base: Path) -> None:
    """The installed entry point, without a terminal."""
    run = [sys.executable, "-m", "sparseflash.cli", "generate", "--model", "gpt5"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(run, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == Exit.USAGE
    assert done.stdout == ""
    assert done.stderr.startswith("error: no model 'gpt5'") and done.stderr.count("\n") == 1


def test_codes_are_documented() -> None:
    page = Path(cli.__file__).parents[3] / "docs" / "EXIT_CODES.md"
    rows = dict(re.findall(r"^\| (\d+) \| `(\w+)`", page.read_text(), re.M))
    assert rows == {str(int(e)): e.name for e in Exit}


def test_a_device_that_is_not_there(refuse: Refuse) -> None:
    for words in (("sparsity",), ("train-predictor", "--out", "p.npz")):
        assert "'privateuseone' is not there" in refuse(
            Exit.USAGE, *words, "--device", "privateuseone"
        )


def test_sizes() -> None:
    """RAM as people write it, decimal as all printed sizes are."""
    for text, size in (("70000000", 70_000_000), ("512K", 512_000), ("1.5m", 1_500_000)):
        assert parse_size("--ram", text) == size


@pytest.mark.parametrize("text", ["70MB", "-5", "0", "many", ""])
def test_a_size_that_is_none(text: str, refuse: Refuse) -> None:
    assert f"--ram {text!r} is not a size" in refuse(Exit.USAGE, *generate(f"--ram={text}"))
