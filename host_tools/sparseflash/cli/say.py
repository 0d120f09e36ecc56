"""How a plan is printed: bars of memory, figures of a token, where weights lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparseflash.cli import console

if TYPE_CHECKING:
    from sparseflash.plan.fit import Fit


def fit(fit: Fit) -> None:
    """The report as bars and tables within 80 columns."""
    rows = [
        (name, f"{size:,}", console.share(size, fit.sram_bytes)) for name, size in fit.sram.items()
    ]
    rows.append(("all", f"{fit.sram_used:,}", console.share(fit.sram_used, fit.sram_bytes)))
    rows.append(("of the board", f"{fit.sram_bytes:,}", ""))
    console.table(
        ("SRAM", "bytes", ""), rows, f"{fit.model} on {fit.board}, {fit.kv_len} positions"
    )
    rows = [
        (name, f"{size:,}", console.share(size, fit.flash_bytes))
        for name, size in fit.flash.items()
    ]
    rows.append(("all", f"{fit.flash_used:,}", console.share(fit.flash_used, fit.flash_bytes)))
    rows.append(("of the board", f"{fit.flash_bytes:,}", ""))
    console.table(("flash", "bytes", ""), rows)
    if fit.token:
        token = [(f.name, _amount(f.value, f.unit), f.source) for f in fit.token]
        console.table(("a token", "expected", "by"), token)
    if not any(f.unit == "ms" for f in fit.token) and not fit.refused:
        console.say("what a token takes in time is not known before bench has measured this plan")
    if fit.step:
        console.say(f"one more 64 KB of SRAM would buy {fit.step}")
    for way in fit.advice:
        console.say(f"to make it fit: {way}")
    if fit.refused:
        console.say("sparseflash plan --boards shows the boards on which it fits as it is")


def _amount(value: float, unit: str) -> str:
    text = f"{value:,.0f}" if unit != "ms" else f"{value:,.3g}"
    return f"{text} {unit}".strip()


def placement(plan: dict[str, Any]) -> None:
    """Where the weights lie, for a board that streams them."""
    found = plan.get("placement")
    if not found:
        return
    rows = [
        (name, f"{k['pinned']:,}", f"{k['streamed']:,}", f"{k['read']:,.0f}")
        for name, k in [*found["kinds"].items(), ("total", found["total"])]
    ]
    console.table(("weights", "resident", "streamed", "read a token"), rows, "placement, bytes")
    if "ratio" in found or "ratio_predicted" in found:
        expected(found)


def expected(placement: dict[str, Any]) -> None:
    """What the planner chose, and what it loses."""
    from sparseflash.base.sizes import with_error

    if "ratio_predicted" not in placement:
        console.say("nothing is dropped, so perplexity is that of dense")
        return
    names = {"qkv": "q, k, v", "o": "o", "gate": "gate", "up": "up", "down": "down"}
    whole = ", ".join(f"{n} of {placement[f'whole_{k}']:g}" for k, n in names.items())
    picked = placement.get("predicted")
    predicted = "" if picked is None else f"; a predictor picks in {picked:g}"
    console.say(f"of {placement['layers']:g} layers these stay whole: {whole}{predicted}")
    if "ratio" not in placement:
        console.say(
            f"perplexity is expected at {placement['ratio_predicted']:.3f} of dense, by prices "
            "measured on calibration text; --method planned measures it on other text"
        )
        return
    ratio = with_error(placement["ratio"], placement["ratio_error"], 4)
    console.say(
        f"perplexity {ratio} of dense on text that calibration did not see; the model of the loss "
        "predicted "
        f"{placement['ratio_predicted']:.4f}, and with one more megabyte of RAM at the same bytes "
        f"{placement['ratio_predicted_with_a_megabyte']:.4f}"
    )
