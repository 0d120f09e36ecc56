"""What the campaigns counted: `make faults` writes it into docs/RELIABILITY.md."""

from __future__ import annotations

import os
import re
from collections import Counter

import pytest

from sparseflash.base.files import root

ALL = os.environ.get("SPARSEFLASH_FAULTS") == "all"
BEGIN, END = "<!-- make faults writes these rows -->\n", "<!-- up to here -->\n"
_counts: Counter[str] = Counter()


@pytest.fixture
def count() -> Counter[str]:
    """Adds to a row of the table: ``count["what"] += n``."""
    return _counts


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Rows of campaigns that ran whole and passed replace those of their names."""
    page = root() / "docs" / "RELIABILITY.md"
    if not ALL or exitstatus != 0 or not _counts:
        return
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = dict(re.findall(r"^\| (.+) \| ([\d,]+) \|$", table, re.M))
    rows |= {name: f"{n:,}" for name, n in _counts.items()}
    lines = [f"| {name} | {rows[name]} |\n" for name in sorted(rows)]
    head = "\n| campaign | runs |\n|---|---|\n"
    page.write_text("".join([before, BEGIN, head, *lines, END, after]), encoding="utf-8")
