"""The table of families in docs/MODELS.md has a row for each model that the tests run."""

from __future__ import annotations

import re

from test_board_families import RUNS
from test_load import CONFIGS

from sparseflash.base.files import root


def test_each_row_is_a_test() -> None:
    text = (root() / "docs" / "MODELS.md").read_text(encoding="utf-8")
    table = text[text.index("| family | test model |") :].split("\n\n")[0]
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[1].strip("`") for row in rows] and {row[1].strip("`") for row in rows} == {*CONFIGS}
    for _, name, difference, ids, bits, board, *_ in rows:
        assert float(difference) <= 1e-4
        assert (ids, bits) == ("yes", "yes")
        assert board.strip("`") == RUNS.get(name.strip("`"), "host"), name
    assert all(re.search(rf"`{name}`", table) for name in RUNS)
