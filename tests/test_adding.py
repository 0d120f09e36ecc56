"""Adding a board, a kernel tier, a grid, a method or a family: what docs/HOWTO.md promises, done in
a copy of the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import random_model
from sparseflash.base.files import root
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack

FOLDERS = ("host_tools", "codegen_templates", "firmware", "models")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout of its own."""
    for name in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__", "*.npz")
        shutil.copytree(root() / name, tmp_path / name, ignore=ignore)
    return tmp_path


def python(copy: Path, code: str) -> str:
    """What a program prints that uses the copy's package."""
    environment = {k: v for k, v in os.environ.items() if k != "SPARSEFLASH_ROOT"}
    environment |= {"PYTHONPATH": str(copy / "host_tools")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


BUILD = """
from pathlib import Path
from sparseflash.codegen.build import build_firmware
from sparseflash.codegen.generate import generate
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import dense_thresholds
from sparseflash.plan.boards import board_ids, load_board
from sparseflash.plan.plan import make_plan
board = load_board("{board}")
assert "{board}" in board_ids()
image = Image(Path("model.sfm"))
generate(make_plan(image, board, dense_thresholds(image), kv_len=32), Path("gen"), board)
print(build_firmware(board, Path("gen"), Path("firmware.elf")))
"""


def test_a_board_is_one_folder(copy: Path) -> None:
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
    port = copy / "firmware" / "port"
    shutil.copytree(port / "mps2-an386", port / "mine")
    yaml = port / "mine" / "board.yaml"
    yaml.write_text(yaml.read_text().replace("id: mps2-an386", "id: mine"))
    pack(random_model(), copy / "model.sfm")
    assert python(copy, BUILD.format(board="mine")) == "firmware.elf"


def test_a_tier_is_one_folder_and_one_line(copy: Path) -> None:
    kernels, port = copy / "firmware" / "kernels", copy / "firmware" / "port"
    (kernels / "mine").mkdir()
    (kernels / "mine" / "tier.h").write_text(
        "#ifndef SF_TIER_H\n#define SF_TIER_H\n#define SF_TILE 16u\n"
        "#define SF_TIER_HAS(X) X(mine, dot_q4)\n#endif\n"
    )
    plain = (kernels / "plain" / "dot_q4.c").read_text()
    (kernels / "mine" / "dot_mine.c").write_text(plain.replace("sf_plain_", "sf_mine_"))
    cpus = port / "cpus.yaml"
    line = "  mine: {tier: mine, cc: cc, cflags: [-O1], ldflags: []}\n"
    cpus.write_text(cpus.read_text().replace("cpus:\n", "cpus:\n" + line, 1))
    shutil.copytree(port / "host", port / "mine")
    yaml = port / "mine" / "board.yaml"
    text = yaml.read_text().replace("id: host", "id: mine").replace("cpu: native", "cpu: mine")
    yaml.write_text(text.replace("../host/", "../mine/"))
    pack(random_model(), copy / "model.sfm")
    assert python(copy, BUILD.format(board="mine")) == "firmware.elf"
    symbols = subprocess.check_output(["nm", "firmware.elf"], cwd=copy, text=True)
    assert "sf_mine_dot_q4" in symbols


GRID = '''
"""A grid that stores whole numbers of sixteenths."""
from dataclasses import dataclass
import numpy as np
from sparseflash.image.grids import Grid, register
from sparseflash.image.grids.q8 import Q8
from sparseflash.model.spec import Q8Blocks, _Grid

@dataclass(frozen=True)
class Blocks16(_Grid):
    d: np.ndarray
    float32 = Q8Blocks.float32

@register
class Q16(Q8):
    name, code = "q16", 9
    rows_of = columns_of = Blocks16

    def by_rows(self, w):
        b = super().by_rows(np.rint(16 * w) / 16)
        return Blocks16(b.q, b.d)

    def unpack_rows(self, rows, cols):
        b = super().unpack_rows(rows, cols)
        return Blocks16(b.q, b.d)

    def unpack_columns(self, columns, tables, outputs):
        b = super().unpack_columns(columns, tables, outputs)
        return Blocks16(b.q, b.d)
'''


def test_a_grid_is_one_file(copy: Path) -> None:
    """The tool finds it, packs with it, reads it back and computes with it."""
    (copy / "host_tools/sparseflash/image/grids/q16.py").write_text(GRID)
    np.save(copy / "w.npy", np.random.default_rng(1).standard_normal((40, 64)).astype(np.float32))
    code = """
import numpy as np
from sparseflash.image.bfp import quantize_bfp
from sparseflash.image.grids import GRIDS, grid, linear, pack_rows, quantize, unpack_rows
from sparseflash.image.weights import GRID_CODES
w = np.load("w.npy")
b = quantize(w, "q16")
back = unpack_rows(pack_rows(b), 64, "q16")
x = np.ones((1, 64), np.float32)
same = np.array_equal(linear(back)(quantize_bfp(x)), linear(b)(quantize_bfp(x)))
print(GRID_CODES["q16"], type(back).__name__, same, np.abs(back.float32() - w).max() < 0.05)
"""
    assert python(copy, code) == "9 Blocks16 True True"


def test_a_method_is_one_entry(copy: Path) -> None:
    registry = copy / "host_tools/sparseflash/sparsity/registry.py"
    entry = '    Method("mine", "act and up", ("act", "up"), device=True),\n'
    registry.write_text(registry.read_text().replace("_LIST = (\n", "_LIST = (\n" + entry, 1))
    code = """
from sparseflash.sparsity.registry import method
from sparseflash.sparsity.setting import check_method
check_method("mine", 30)
print(method("mine").sites)
"""
    assert python(copy, code) == "('act', 'up')"


def test_a_family_is_one_entry(copy: Path) -> None:
    families = copy / "host_tools/sparseflash/model/load/families.py"
    entry = '    "mine": Family(llama_spec, *_MODEL, _LLAMA),\n'
    text, head = families.read_text(), "FAMILIES: dict[str, Family] = {\n"
    families.write_text(text.replace(head, head + entry, 1))
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(copy / "tiny")
    path = copy / "tiny" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "mine"}))
    code = """
from pathlib import Path
from sparseflash.model.load import load_model
print(load_model(Path("tiny")).spec.n_layers)
"""
    assert python(copy, code) == "2"


def test_the_copy_is_the_checkout(copy: Path) -> None:
    """What the tests above change is really what the program reads."""
    assert python(copy, "from sparseflash.base.files import root; print(root())") == str(copy)
    assert Formats().attn == "q4"
