"""One page about a model on a board, from what lies in ``build/``; it measures nothing itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparseflash import __version__
from sparseflash.base.errors import UsageError
from sparseflash.base.files import write_text
from sparseflash.codegen.generate import environment
from sparseflash.measure import figures
from sparseflash.model.recipes import load_recipe
from sparseflash.pipeline.places import Places
from sparseflash.plan.boards import load_board
from sparseflash.plan.kept import plan_digest, read_plan

UNITS = {
    "tokens_per_second": "tokens a second, by the device's clock",
    "deviation": "deviation of it",
    "link_tokens_per_second": "tokens a second over the link",
    "instructions_per_token": "instructions a token",
    "cycles_per_token": "cycles a token",
    "bytes_per_token": "weight bytes a token",
    "ffn_bytes_per_token": "of them FFN",
    "flash_bytes_per_token": "bytes read from flash a token",
    "reads_per_token": "reads a token",
    "neurons_per_token": "active neurons a token",
}


@dataclass
class Section:
    """A part of the page: figures, tables of (name, value) and sentences; or what makes it."""

    title: str
    about: str = ""
    figure: str = ""
    rows: list[tuple[str, str]] = field(default_factory=list)
    head: tuple[str, ...] = ()
    table: list[tuple[str, ...]] = field(default_factory=list)
    missing: str = ""
    old: str = ""


def _read(path: Path) -> Any:
    """JSON of a file, None when it is not there or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _stale(found: dict[str, Any], plan: dict[str, Any], digest: str, again: str) -> str:
    """A sentence when a figure is of another image or plan than the page's."""
    kept = {"model_sha": plan["model_sha"], "plan": digest}
    names = {"model_sha": "image", "plan": "plan"}
    differs = [names[k] for k, v in kept.items() if v and k in found and found[k] != v]
    return f"Of an older {' and '.join(differs)}; {again} measures anew." if differs else ""


def _perplexity(places: Places, plan: dict[str, Any]) -> Section:
    out = Section("Perplexity against bytes")
    again = f"sparseflash perplexity --model {places.model}"
    points: list[dict[str, Any]] = []
    found = _read(places.folder / "perplexity.json")
    if found:
        about = found["about"]
        out.about = (
            f"{places.model} on {about['text']}, {about['tokens']:,} tokens in windows of "
            f"{about['window']}. Bars are one standard error. "
        )
        out.old = _stale(about, plan, "", again) if "model_sha" in about else ""
        shown = [r for r in found["rows"] if r.get("bytes")]
        points += [dict(r, group=r["method"]) for r in shown]
        out.head = ("variant", "perplexity", "of fp32", "KL", "same top", "MB a token")
        out.table = [
            (
                str(r["name"]),
                f"{r['perplexity']:.3f} ± {r['error']:.3f}",
                f"{r['ratio']:.4f}",
                f"{r['kl']:.4f}",
                f"{100 * r['same_top']:.1f} %",
                f"{r['bytes'] / 1e6:.2f}" if r.get("bytes") else "",
            )
            for r in found["rows"]
        ]
    page = _read(places.folder / "sparsity.json")
    if page:
        about = page["about"]
        out.about += f"Methods of the float model: {about.get('text', '')}, "
        out.about += f"{about.get('tokens', 0):,} tokens; sparsity.md has their table."
        points += [
            {"name": r["method"], "group": r["method"], "bytes": r["bytes"]}
            | {"perplexity": r["perplexity"], "error": r["perplexity_error"]}
            for r in page["rows"]
        ]
    if not points:
        out.missing = again
        return out
    out.figure = figures.perplexity_by_bytes(points)
    return out


def _sparsity(plan: dict[str, Any], validation: dict[str, Any] | None, again: str) -> Section:
    out = Section("Sparsity by layer")
    out.about = "What the plan expects a token to read of each kind of weights. "
    n = plan["model"]["n_layers"]
    lines: dict[str, list[float]] = {}
    for kind in plan["kinds"]:
        held = {p["layer"]: p for p in plan["parts"] if p["kind"] == kind and p["rows"]}
        if held:
            lines[kind] = [float(held[i]["use"]) if i in held else 0.0 for i in range(n)]
    active = (validation or {}).get("active_by_layer")
    if active:
        lines["active neurons, measured"] = [float(a) for a in active]
        out.about += "Active neurons are counted on the tokens of the validation."
    else:
        out.about += f"Active neurons a layer are counted by {again}."
    out.figure = figures.shares_by_layer(lines, "share that is read")
    return out


def _memory(plan: dict[str, Any], board: Any) -> Section:
    out = Section("Memory map")
    lines = {k: v for k, v in plan["memory"].items() if k != "total"}
    lines |= {f"reserved: {k}": v for k, v in board.reserve.items()}
    rows = sorted(lines.items(), key=lambda kv: -kv[1])
    used = sum(lines.values())
    out.figure = figures.bars(rows, board.sram_bytes, "memory map of SRAM")
    out.rows = [
        ("SRAM", f"{used:,} of {board.sram_bytes:,} bytes ({100 * used / board.sram_bytes:.1f} %)"),
        (
            "flash",
            f"{plan['image']['bytes']:,} of {board.flash_bytes:,} bytes "
            f"({100 * plan['image']['bytes'] / board.flash_bytes:.1f} %)",
        ),
        ("KV cache", f"{plan['kv_len']} positions"),
    ]
    for m in board.memories:
        holds = ", ".join(m.holds)
        out.rows.append((m.name, f"{m.length:,} bytes from {m.origin:#010x}: {holds}"))
    return out


def _timeline(places: Places, bench: dict[str, Any] | None) -> Section:
    out = Section("Timeline of a token")
    trace = _read(places.target / "timeline.json")
    events = figures.last_token(trace) if trace else []
    bench_command = f"sparseflash bench --model {places.model} --board {places.board}"
    if events:
        out.about = "The last token that was traced: computing, waiting for flash, reading."
        out.figure = figures.timeline(events)
        return out
    if not bench or bench.get("share_ffn") is None:
        out.missing = bench_command
        return out
    parts = {k: float(bench[f"share_{k}"]) for k in ("attention", "ffn", "head")}
    parts["rest"] = max(0.0, 1 - sum(parts.values()))
    waiting = float(bench.get("share_waiting") or 0.0)
    out.about = f"Shares of the bench's tokens, by {bench['time']}."
    if places.board == "host-flash":
        trace_to = places.target / "timeline.json"
        out.about += f" SPARSEFLASH_TIMELINE={trace_to} {bench_command} records each read."
    out.figure = figures.stages(parts, waiting)
    return out


def _bench(places: Places, bench: dict[str, Any] | None, stale: str) -> Section:
    out = Section("Bench", old=stale)
    if not bench:
        out.missing = f"sparseflash bench --model {places.model} --board {places.board}"
        return out
    out.about = (
        f"{bench['tokens']} tokens after a prompt of {bench['prompt_tokens']}, greedy, "
        f"{bench['repetitions']} repetitions. Time is {bench['time']}."
    )
    out.rows = [(t, _number(bench[k])) for k, t in UNITS.items() if bench.get(k) is not None]
    out.rows.append(("digest of the tokens", str(bench["digest"])))
    return out


def _validation(places: Places, found: dict[str, Any] | None, stale: str) -> Section:
    out = Section("Validation", old=stale)
    if not found:
        out.missing = f"sparseflash validate --model {places.model} --board {places.board}"
        return out
    layers = f"{found['positions']} positions, logits and 7 sites of {found['layers']} layers"
    said = "bit-equal to the integer reference" if found["equal"] else found["difference"]
    out.rows = [("compared", layers), ("result", str(said))]
    return out


def sections(model: str, board_name: str) -> tuple[list[tuple[str, str]], list[Section]]:
    """Provenance and the parts of the page.

    Raises:
        UsageError: nothing is generated for the model and board.
    """
    places, board, recipe = Places(model, board_name), load_board(board_name), load_recipe(model)
    if not places.plan.is_file():
        raise UsageError(
            f"nothing is generated for {model} on {board_name}; first run sparseflash generate "
            f"--model {model} --board {board_name}"
        )
    plan = read_plan(places.plan)
    digest = plan_digest(plan).hex()
    bench, validation = _read(places.target / "bench.json"), _read(places.target / "validate.json")
    ask = f"--model {model} --board {board_name}"
    stale = [
        _stale(found, plan, digest, f"sparseflash {verb} {ask}") if found else ""
        for verb, found in (("bench", bench), ("validate", validation))
    ]
    percent = f" {plan['sparsity']:g} %" if plan["sparsity"] else ""
    command = f"sparseflash generate {ask} --method {plan['method']}"
    command += f" --sparsity {plan['sparsity']:g}" if plan["sparsity"] else ""
    command += f" --kv-len {plan['kv_len']}"
    if plan["memory"].get("pinned weights"):  # the plan keeps what --ram came to, not what it was
        command += f", and --ram as it was given; it came to {plan['memory']['total']:,} bytes"
    provenance = [
        ("model", f"{recipe.title} ({model})"),
        ("licence", recipe.licence),
        ("source", f"{recipe.source.sha256[:16]}… ({recipe.source.kind})"),
        ("image", f"{plan['model_sha'][:16]}…, {plan['image']['bytes']:,} bytes"),
        ("board", f"{board_name}: {board.description}"),
        ("CPU and kernels", f"{board.cpu}, tier {board.tier}"),
        ("plan", f"{digest[:16]}…, method {plan['method']}{percent}"),
        ("made by", f"sparseflash {__version__}: {command}"),
    ]
    again = f"sparseflash validate {ask}"
    return provenance, [
        _perplexity(places, plan),
        _sparsity(plan, validation, again),
        _memory(plan, board),
        _timeline(places, bench),
        _bench(places, bench, stale[0]),
        _validation(places, validation, stale[1]),
    ]


def write_report(model: str, board: str, target: Path | None = None) -> tuple[Path, list[str]]:
    """The page, by default report.html beside the plan; and commands that make what it lacks."""
    provenance, parts = sections(model, board)
    values = {"model": model, "board": board, "provenance": provenance, "sections": parts}
    text = environment().get_template("report/report.html.j2").render(values)
    path = target or Places(model, board).target / "report.html"
    write_text(path, text)
    return path, [s.missing for s in parts if s.missing]
