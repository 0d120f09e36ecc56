"""The report: one file that needs no network, says what it lacks, and marks what is older."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from conftest import make_workspace
from sparseflash.base.errors import UsageError
from sparseflash.base.files import root, write_json
from sparseflash.measure.figures import last_token
from sparseflash.model.recipes import load_recipe
from sparseflash.pipeline import stages
from sparseflash.pipeline.places import Places
from sparseflash.pipeline.report import write_report
from sparseflash.plan.boards import load_board
from sparseflash.plan.kept import plan_digest

BENCH = {
    "tokens": 8,
    "prompt_tokens": 4,
    "repetitions": 3,
    "time": "the device's clock",
    "tokens_per_second": 1234.5,
    "bytes_per_token": 55211.0,
    "share_attention": 0.25,
    "share_ffn": 0.5,
    "share_head": 0.2,
    "share_waiting": 0.1,
    "digest": "0123456789abcdef",
}
ROW = {"error": 0.1, "kl": 0.01, "same_top": 0.9, "neurons": 3.0, "tokens": 100}


class Page(HTMLParser):
    """Ids, what the page would load, and elements left open."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {k: v or "" for k, v in attrs}
        self.ids += [given["id"]] if "id" in given else []
        self.loads += [v for k, v in given.items() if k in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "br", "link"):
            self.open.pop()


def looked_at(path: Path) -> str:
    """The page's text, after checks that every page passes."""
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert page.loads and all(v.startswith("#") and v[1:] in page.ids for v in page.loads)
    assert all(i in page.ids for i in re.findall(r"url\(#([^)]+)\)", text))
    assert "<script" not in text and "@import" not in text
    assert "#010203" not in text and "prefers-color-scheme: dark" in text
    return text


@pytest.fixture
def generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The plan of the conformance model on a board with a memory map."""
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(make_workspace(tmp_path)))
    recipe = load_recipe("conform")
    setting = stages.setting_for(model := stages.open_model(recipe), recipe, "h", 50)
    image = stages.pack_model(model, recipe, settings=[setting])
    return stages.plan_and_generate(image, load_board("mps2-an385"), setting, recipe)


def test_a_narrow_window_wraps_the_names() -> None:
    """A cell that must not wrap runs out of a telephone's screen."""
    style = (root() / "codegen_templates" / "report" / "report.html.j2").read_text()
    narrow = style.partition("@media (max-width: 34rem) {")[2].partition("\n}")[0]
    assert "nowrap" not in narrow and ".names td { display: block;" in narrow


def test_before_anything_is_measured(generated: dict[str, Any]) -> None:
    path, missing = write_report("conform", "mps2-an385")
    text = looked_at(path)
    assert [m.split()[1] for m in missing] == ["perplexity", "bench", "bench", "validate"]
    assert all(m in text for m in missing)
    assert text.count("<svg") == 2, "sparsity by layer and the memory map need the plan alone"
    assert "method h 50 %" in text and "tier plain" in text
    with pytest.raises(UsageError, match="nothing is generated"):
        write_report("conform", "mps2-an386")


def test_with_everything(generated: dict[str, Any], tmp_path: Path) -> None:
    places = Places("conform", "mps2-an385")
    now = {"model_sha": generated["model_sha"], "plan": plan_digest(generated).hex()}
    write_json(places.target / "bench.json", BENCH | now)
    checked = {"positions": 12, "layers": 2, "equal": True, "difference": None}
    active = {"active_by_layer": [0.5, 0.25]}
    write_json(places.target / "validate.json", checked | active | now | {"plan": "another"})
    rows = [
        {"name": "dense", "method": "dense", "perplexity": 9.0, "ratio": 1.0, "bytes": 9e4} | ROW,
        {"name": "h <50> %", "method": "h", "perplexity": 9.5, "ratio": 1.1, "bytes": 6e4} | ROW,
    ]
    about = {"text": "a text", "tokens": 40960, "window": 256, "model_sha": now["model_sha"]}
    write_json(places.folder / "perplexity.json", {"about": about, "rows": rows})
    path, missing = write_report("conform", "mps2-an385", tmp_path / "page.html")
    text = looked_at(path)
    assert missing == [] and text.count("<svg") == 4
    assert "conform on a text, 40,960 tokens in windows of 256" in text
    assert "h &lt;50&gt; %" in text and "<50>" not in text
    assert "1,234.50" in text or "1,234" in text
    assert text.count('class="old"') == 1, "the validation is of another plan"
    assert "sparseflash validate --model conform --board mps2-an385 measures anew" in text
    trace = [
        {"ph": "X", "tid": lane, "name": name, "ts": at, "dur": long}
        for lane, name, at, long in (
            (0, "head", 0, 5),
            (0, "attention", 6, 10),
            (1, "wait", 8, 2),
            (2, "read", 7, 3),
            (0, "head", 16, 4),
            (0, "attention", 21, 1),
        )
    ]
    assert [e["ts"] for e in last_token({"traceEvents": trace})] == [6, 8, 7, 16]
    write_json(places.target / "timeline.json", {"traceEvents": trace})
    assert "The last token that was traced" in looked_at(write_report("conform", "mps2-an385")[0])
