"""The rooms of ``sparseflash``: imports go downwards only, in no circle, over few levels."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from sparseflash.base.files import root

ROOMS = ("cli", "pipeline", "device", "codegen", "plan", "measure", "sparsity", "train", "image")
ROOMS += ("model", "base")
LEVELS = 9


@cache
def imports() -> dict[str, set[str]]:
    """Modules that each module imports, inside functions and for types too."""
    tree = root() / "host_tools"
    files = {module(tree, p): p for p in (tree / "sparseflash").rglob("*.py")}
    found = {}
    for name, path in files.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name} imports by a relative name"
                names |= {str(node.module)} | {f"{node.module}.{a.name}" for a in node.names}
        found[name] = {n for n in names if n in files} - {name}
        # A package that a name is taken from is no import of its own.
        found[name] -= {n for n in found[name] if any(m.startswith(f"{n}.") for m in found[name])}
    return found


def module(tree: Path, path: Path) -> str:
    return ".".join(path.relative_to(tree).with_suffix("").parts).removesuffix(".__init__")


def room(name: str) -> int:
    parts = name.split(".")
    return ROOMS.index(parts[1]) if len(parts) > 1 and parts[1] != "__main__" else len(ROOMS)


def test_imports_go_downwards() -> None:
    up = [f"{a} imports {b}" for a, bs in imports().items() for b in bs if room(b) < room(a)]
    assert not up


def test_no_circles_and_few_levels() -> None:
    level: dict[str, int] = {}
    for name in TopologicalSorter(imports()).static_order():  # raises CycleError
        level[name] = 1 + max((level[n] for n in imports()[name]), default=0)
    assert max(level.values()) <= LEVELS, [n for n, v in level.items() if v > LEVELS]
    assert level["sparseflash.cli.run"] > 5, "the imports were not found"
