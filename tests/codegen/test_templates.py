"""Templates stay short, and say where they fail."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conftest import random_model
from sparseflash.base.errors import InputError
from sparseflash.base.files import root
from sparseflash.codegen.build import includes
from sparseflash.codegen.generate import render
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import dense_thresholds
from sparseflash.plan.boards import Board
from sparseflash.plan.memory import ARRAYS, bytes_of
from sparseflash.plan.plan import make_plan, memory_sizes

TEMPLATES = sorted((root() / "codegen_templates").glob("*.j2"))
STAGES = [
    "attention",
    "columns",
    "matrix",
    "rows",
    "predictor",
    "prefetch",
    "sf_model",
    "sparse_ffn",
    "tables",
]


@pytest.fixture
def plan(host: Board, tmp_path: Path) -> dict[str, Any]:
    pack(random_model(), tmp_path / "model.sfm")
    image = Image(tmp_path / "model.sfm")
    return make_plan(image, host, dense_thresholds(image), kv_len=32)


def test_templates_are_short() -> None:
    assert {p.name for p in TEMPLATES} >= {f"{s}.c.j2" for s in STAGES}
    for path in TEMPLATES:
        text = path.read_text()
        directives = re.findall(r"^\s*%%.*|\{%.*?%\}|\{\{.*?\}\}", text, re.M)
        conditionals = sum(len(re.findall(r"\b(?:el)?if\b", d)) for d in directives)
        assert len(text.splitlines()) <= 200, path.name
        assert conditionals <= 12, f"{path.name} has {conditionals} conditionals"


@pytest.mark.parametrize(
    ("stage", "line", "message"),
    [
        ("sparse_ffn.c.j2", "{{ plan.nothing }}", "no attribute 'nothing'"),
        ("predictor.c.j2", "{{ 1 // 0 }}", "division"),
        ("attention.c.j2", "%% if", "Expected an expression"),
        ("tables.c.j2", "{{ plan.model.dim | hexx }}", "hexx"),
    ],
)
def test_errors_name_template_and_line(
    stage: str, line: str, message: str, plan: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "templates"
    shutil.copytree(root() / "codegen_templates", folder)
    lines = (folder / stage).read_text().splitlines()
    (folder / stage).write_text("\n".join([*lines[:4], line, *lines[4:]]) + "\n")
    with pytest.raises(InputError, match=rf"codegen_templates/{stage}:5: .*{message}"):
        render(plan, folder=folder)


def test_a_size_is_said_once(plan: dict[str, Any], tmp_path: Path) -> None:
    """The header's sizes, the C arrays and the plan's memory come from one table."""
    together = {"block": plan["block"], "workers": plan["workers"]}
    sizes = memory_sizes(Image(tmp_path / "model.sfm"), 32, **together)
    size = bytes_of(sizes)
    assert plan["arena_bytes"] == sum(size.values()) == plan["memory"]["total"]
    texts = render(plan)
    declared = re.findall(r"^(?:static )?(?:_Alignas\(8\) )?\w+ (\w+)\[", texts["sf_model.c"], re.M)
    assert {a.name for a in ARRAYS if a.name in size} == {n for n in declared if n in size}
    pointers = {"act", "neurons"}  # descriptors, some words a token, whose size the CPU decides
    assert set(declared) <= set(size) | pointers | {"window"}
    for arena, fits in ((plan["arena_bytes"], True), (plan["arena_bytes"] + 4, False)):
        for name, text in render(plan | {"arena_bytes": arena}).items():
            (tmp_path / name).write_text(text)
        command = ["cc", *includes("x86_64"), "-I.", "-fsyntax-only", "sf_model.c"]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ("counts the bytes of the plan" not in said.stderr) == fits
