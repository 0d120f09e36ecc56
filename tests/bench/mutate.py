"""Mutation testing: one small fault at a time, and whether the tests that own the file see it.

    python tests/bench/mutate.py [group ...] [--sample 40] [--seed 1] [--only FILE]

A mutant is a flipped comparison, a swapped operator, a constant one more or less, a dropped
statement or an `if` that is never taken. Of all mutants of a group a sample is drawn. Each is tried
in a copy of the tree, where objects are kept by what the preprocessor makes of a source. A failed
test or a time limit kills it; one that the compiler refuses, warnings aside, does not count.
Those of ``equivalent_mutants.txt`` change nothing that can be observed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import itertools
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.txt")
EXACT = (
    "tests/image/test_exact.py -k 'q4-llama or q8-gemma3 or r8-layernorm or q4-gpt2'",
    "tests/image/test_exact.py -k 'signs_choose or proxies_choose and 2--O0'",
)
FIRMWARE, TOOL = "firmware/", "host_tools/sparseflash/"
GROUPS: dict[str, tuple[list[str], list[str]]] = {
    "kernels": (
        [f"{FIRMWARE}kernels/plain/{name}" for name in ("*.c", "att*.h", "quantize_body.h")],
        ["tests/emulator/test_kernels.py -k gcc-x86", "tests/image/test_s4.py", *EXACT],
    ),
    "runtime": (
        [f"{FIRMWARE}runtime/{name}.c" for name in ("check", "crc32", "state", "threads")],
        [
            "tests/device/test_link.py::test_c_and_python_agree",
            "tests/device/test_state.py",
            "tests/faults/test_image.py -k 'map and not flipped'",
            "tests/device/test_threads.py -k q4",
        ],
    ),
    "sampler": (
        [f"{FIRMWARE}runtime/sample.c"],
        ["tests/device/test_sampler.py -k 'specification or greedy'"],
    ),
    "link": ([f"{FIRMWARE}link/*.c"], ["tests/device/test_link_device.py"]),
    "calibrate": ([f"{TOOL}sparsity/calibrate.py"], ["tests/sparsity/test_calibrate.py"]),
    "host side of the link": ([f"{TOOL}device/link/*.py"], ["tests/device/test_link.py"]),
}
"""Files of a group, and the tests that own them, the fastest first."""

Change = tuple[int, int, str]
"""From, to, and what stands there instead."""
SWAPS = {
    **{"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&"},
    **{"+": "-", "-": "+", "*": "/", "/": "*", "<<": ">>", ">>": "<<", "&": "|", "|": "&"},
    **{"^": "|", "+=": "-=", "-=": "+=", "++": "--", "--": "++"},
}
SHIM = """#!/bin/bash
# Compiles each source to an object that is kept by its preprocessed text, then links.
while (($#)); do case $1 in
    *.c) sources+=("$1") ;; -o) out=$2; shift ;; -c) only=1 ;;
    -l* | *.o) linked+=("$1") ;; *) flags+=("$1") ;;
esac; shift; done
for source in "${{sources[@]}}"; do
    text=$({cc} "${{flags[@]}}" -E -P "$source") || exit 1
    object={bin}/$(sha256sum <<<"{cc} ${{flags[*]}} $text" | cut -c1-40).o
    if [ ! -e $object ]; then
        {cc} "${{flags[@]}}" -w -c "$source" -o $object.$$ || {{ touch {bin}/refused; exit 1; }}
        mv $object.$$ $object
    fi
    made+=($object)
done
[ "$only" ] && exec cp "${{made[0]}}" "$out"
exec {cc} "${{flags[@]}}" "${{made[@]}}" "${{linked[@]}}" -o "$out"
"""


def c_changes(text: str) -> Iterator[Change]:
    """Mutants of C."""
    hidden = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|^[ \t]*#(?:\\\n|[^\n])*'
    code = re.sub(hidden, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.S | re.M)
    # Operators with a space on both sides are binary, as the formatter has them.
    for m in re.finditer(r"(?<= )([-+*/<>&|^=!]{1,2})(?= )", code):
        if m[1] in SWAPS:
            yield m.start(), m.end(), SWAPS[m[1]]
    for m in re.finditer(r"(?<=\w|\])(\+\+|--)", code):
        yield m.start(), m.end(), SWAPS[m[1]]
    for m in re.finditer(r"(?<![\w.])(0x[0-9A-Fa-f]+|\d+)(?=u?\b)(?![\w]*\.)(?!\.)(?!x)", code):
        for by in (1, -1):
            if int(m[1], 0) + by >= 0:
                yield m.start(), m.end(), str(int(m[1], 0) + by)
    for m in re.finditer(r"^ +([^\n{};]*;)$", code, re.M):
        if not re.match(r"(const|static|u?int\d+_t|float|size_t|bool|return)\b", m[1]):
            yield m.start(1), m.end(1), ";"
    for m in re.finditer(r"\bif \(", code):
        end, depth = m.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            end += 1
        yield m.end(), end - 1, f"0 && ({text[m.end() : end - 1]})"
    for m in re.finditer(r"\breturn ([^;]+);", code):
        if m[1] in {"true", "false"}:
            yield m.start(1), m.end(1), {"true": "false", "false": "true"}[m[1]]


PY_SWAPS = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq},
    **{ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot},
    **{ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv},
    **{ast.FloorDiv: ast.Mult, ast.Div: ast.Mult, ast.Mod: ast.Mult, ast.And: ast.Or},
    **{ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift},
}


def python_changes(text: str) -> Iterator[Change]:
    """Mutants of Python, whose text is ASCII."""
    starts = [0, *itertools.accumulate(len(line) for line in text.splitlines(keepends=True))]
    hidden: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        notes = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for root in [node] if isinstance(node, ast.JoinedStr) else filter(None, notes):
            hidden |= {id(n) for n in ast.walk(root)}
        place, new = node, copy.deepcopy(node)
        if isinstance(new, ast.Compare) and type(new.ops[0]) in PY_SWAPS:
            new.ops[0] = PY_SWAPS[type(new.ops[0])]()
        elif isinstance(new, ast.BinOp | ast.BoolOp) and type(new.op) in PY_SWAPS:
            new.op = PY_SWAPS[type(new.op)]()  # type: ignore[assignment]
        elif isinstance(new, ast.Constant) and type(new.value) in (int, bool):
            new.value = not new.value if type(new.value) is bool else new.value + 1
        elif isinstance(node, ast.Raise | ast.AugAssign) or (
            isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
        ):
            new = ast.Pass()
        elif isinstance(node, ast.If):
            place, new = node.test, ast.Constant(False)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            new = node.operand
        else:
            continue
        if id(node) not in hidden:
            a, b = starts[place.lineno - 1], starts[place.end_lineno - 1]
            code = ast.unparse(new)
            code = code if isinstance(new, ast.stmt) else f"({code})"
            yield a + place.col_offset, b + place.end_col_offset, code


def passes(tree: Path, tests: list[str], limit: int) -> bool | None:
    """Whether the tests pass in the tree; None where the compiler refuses the mutant.

    ``limit``: seconds of the processor for one process; the machine may have other work.
    """
    refused = tree.parent / "bin" / "refused"
    refused.unlink(missing_ok=True)
    end = time.monotonic() + 20 * limit
    for test in tests:
        child = os.fork()
        if child == 0:
            run_tests(tree, shlex.split(test), limit)
        status = -1
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.01)
        else:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        if status != 0:
            return None if refused.exists() else False
    return True


def settle(tree: Path) -> None:
    """This process works in the tree, and says nothing."""
    os.chdir(tree)
    sys.dont_write_bytecode = True
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ |= {"PYTHONPATH": str(tree / "host_tools"), "TMPDIR": str(tree.parent)}
    if str(tree.parent) not in os.environ["PATH"]:
        os.environ["PATH"] = f"{tree.parent / 'bin'}:{os.environ['PATH']}"
        sys.path.insert(0, str(tree / "host_tools"))
    tempfile.tempdir = None


def run_tests(tree: Path, test: list[str], limit: int) -> None:
    """pytest in this process, a child with the large packages loaded."""
    import pytest

    os.setsid()
    settle(tree)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *test])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", default=[], help=f"of {', '.join(GROUPS)}; all")
    parser.add_argument("--sample", type=int, default=40, help="mutants of a group")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="mutants whose place begins so")
    asked = parser.parse_args()
    import torch  # noqa: F401  in every child

    with tempfile.TemporaryDirectory(prefix="mutate") as folder:
        tree, bin_ = Path(folder) / "tree", Path(folder) / "bin"
        ignore = shutil.ignore_patterns("build", ".venv", ".git", ".cache", "__pycache__", "models")
        shutil.copytree(ROOT, tree, ignore=ignore, symlinks=True)
        for name in ("models", ".cache"):
            if (ROOT / name).exists():
                (tree / name).symlink_to(ROOT / name)
        bin_.mkdir()
        os.environ.setdefault("SPARSEFLASH_DATA", str(ROOT.parent / "shared" / "data"))
        for name in ("cc", "gcc"):
            (bin_ / name).write_text(SHIM.format(cc=shutil.which(name), bin=bin_))
            (bin_ / name).chmod(0o755)
        for group in asked.groups or GROUPS:
            child = os.fork()
            if child == 0:
                measure(group, tree, asked)
                os._exit(0)
            os.waitpid(child, 0)


def measure(group: str, tree: Path, asked: argparse.Namespace) -> None:
    """Tries a sample of a group's mutants, and prints those that live and a row of the table."""
    patterns, tests = GROUPS[group]
    if not patterns[0].endswith(".py"):  # the tool does not change: every child has it loaded
        import pytest

        settle(tree)
        pytest.main(["-qq", "--collect-only", *shlex.split(" ".join(tests))])
    mutants = []
    for path in sorted(p for pattern in patterns for p in ROOT.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        for change in sorted(set((python_changes if path.suffix == ".py" else c_changes)(text))):
            mutants.append((path.relative_to(ROOT), text, change))
    random.Random(asked.seed).shuffle(mutants)
    assert passes(tree, tests, 600), f"{group}: the tests fail without a mutant"
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    limit = int(3 + 3 * usage.ru_utime)
    print(f"{group}: {len(mutants)} mutants, {limit} s for each at most", flush=True)
    known = set(re.findall(r"^    (.*)$", EQUIVALENT.read_text(), re.M))
    killed = equivalent = tried = 0
    for path, text, (a, b, new) in mutants:
        if tried == asked.sample:
            break
        changed = text[:a] + new + text[b:]
        line = text.count("\n", 0, a)
        what = f"{text.splitlines()[line].strip()}  ->  {changed.splitlines()[line].strip()}"
        if not f"{path}:{line + 1}".startswith(asked.only):
            continue
        if f"{path}: {what}" in known:
            tried, equivalent = tried + 1, equivalent + 1
            continue
        (tree / path).write_text(changed, encoding="utf-8")
        lives = passes(tree, tests, limit)
        (tree / path).write_text(text, encoding="utf-8")
        if lives is None:
            continue
        tried, killed = tried + 1, killed + (not lives)
        if lives:
            print(f"    {path}:{line + 1}: {what}", flush=True)
    share = 100 * killed / max(1, tried - equivalent)
    print(f"| {group} | {tried} | {killed} | {equivalent} | {share:.0f} % |", flush=True)


if __name__ == "__main__":
    main()
