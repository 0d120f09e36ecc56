"""The generated set is one thing: it appears whole, and its files know each other."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from conftest import random_model
from sparseflash.base.files import whole_folder
from sparseflash.codegen import generate as writer
from sparseflash.codegen.build import includes
from sparseflash.codegen.generate import generate
from sparseflash.image.formats import THRESHOLDS, Formats
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.kept import plan_digest, read_plan
from sparseflash.plan.plan import make_plan


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    path = tmp_path_factory.mktemp("image") / "model.sfm"
    pack(random_model(), path, Formats("q8", "q8", "q8"))
    return Image(path)


def write(image: Image, folder: Path, kv_len: int, board: Board) -> None:
    none = np.zeros((image.spec.n_layers, len(THRESHOLDS)), np.float32)
    generate(make_plan(image, board, none, kv_len), folder, board, "words")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def killed_at(count: int, image: Image, folder: Path, board: Board) -> int:
    """Writes another plan in a process that is killed before its ``count``-th file; the signal."""
    child = os.fork()
    if child == 0:
        left = [count]
        for name in ("write_text", "write_json"):
            real = getattr(writer, name)

            def mortal(*args: object, real: object = real) -> None:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                real(*args)  # type: ignore[operator]

            setattr(writer, name, mortal)
        write(image, folder, 48, board)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_between_its_files(image: Image, tmp_path: Path) -> None:
    """kill -9 before each of the files: the old set stays whole, and the next run cleans up."""
    board, folder = load_board("mps2-an386"), tmp_path / "gen"
    write(image, folder, 32, board)
    old = contents(folder)
    assert {"sf_model.h", "sf_model.c", "sf_board.h", "board.ld", "plan.json"} < set(old)
    for count in range(len(old)):
        assert killed_at(count, image, folder, board) == -signal.SIGKILL
        assert contents(folder) == old
    assert killed_at(len(old), image, folder, board) == 0, "nothing killed the last one"
    assert contents(folder) != old
    assert [p.name for p in tmp_path.iterdir()] == ["gen"]


def test_no_set_yet(image: Image, tmp_path: Path) -> None:
    """A first run that is killed leaves nothing that looks like a set."""
    board = load_board("host")
    assert killed_at(1, image, tmp_path / "gen", board) == -signal.SIGKILL
    assert not (tmp_path / "gen").exists()
    write(image, tmp_path / "gen", 32, board)
    assert [p.name for p in tmp_path.iterdir()] == ["gen"]


def test_a_failed_write_leaves_the_old_set(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "set") as new:
        (new / "a").write_text("1")
    with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "set") as new:
        (new / "a").write_text("2")
        raise OSError("disk full")
    assert (tmp_path / "set" / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def compiled(gen: Path, plan: Path) -> str:
    """What the compiler says of sf_model.c when the set of ``plan`` is asked for."""
    asked = plan_digest(read_plan(plan)).hex()[:16]
    command = ["cc", "-std=c11", "-fsyntax-only", f"-DSF_PLAN_ASKED=0x{asked}ull", f"-I{gen}"]
    command += [*includes("plain"), str(gen / "sf_model.c")]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_compiler_compares_the_digests(image: Image, tmp_path: Path) -> None:
    board = load_board("host")
    one, two = tmp_path / "one", tmp_path / "two"
    write(image, one, 32, board)
    write(image, two, 48, board)
    assert compiled(one, one / "plan.json") == ""
    assert "sf_model.h is of another plan than plan.json" in compiled(one, two / "plan.json")
    (one / "sf_model.h").write_bytes((two / "sf_model.h").read_bytes())
    assert "sf_model.h is of another plan" in compiled(one, two / "plan.json")
