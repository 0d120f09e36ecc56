"""The command line: one verb a stage."""

from __future__ import annotations

import os
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sparseflash.base.errors import Exit, SparseflashError, UsageError
from sparseflash.base.sizes import parse_size

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__
)
console = Console()

BoardOption = Annotated[str, typer.Option("--board", help="a folder of firmware/port")]
ModelOption = Annotated[str, typer.Option("--model", help="a recipe of models/")]
PortOption = Annotated[str | None, typer.Option("--port", help="serial port or pyserial URL")]
MethodOption = Annotated[str, typer.Option("--method", help="docs/METHODS.md")]
SparsityOption = Annotated[float, typer.Option("--sparsity", help="percent below the threshold")]
KvOption = Annotated[int | None, typer.Option("--kv-len", min=1, help="positions of KV cache")]
AsvdOption = Annotated[
    float, typer.Option("--asvd", help="percent of the projections' bytes left by factors; 0: all")
]
HeadOption = Annotated[str, typer.Option("--head", help="exact, screened or rows to screen for")]
Count = Annotated[int, typer.Option(min=1)]
CountOrDefault = Annotated[int, typer.Option(min=0, help="0: the recipe's")]


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:g}/{task.total:g}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _say(text: str) -> None:
    console.print(text, highlight=False)


@app.command()
def fetch(model: ModelOption = "smollm2-135m", texts: bool = False) -> None:
    """Downloads a model, and with --texts the declared texts."""
    from sparseflash.model import recipes

    _say(f"model {recipes.fetch(recipes.load_recipe(model))}")
    if texts:
        for name, source in recipes.text_sources().items():
            if (
                source.source.kind == "file"
                and not recipes.root().joinpath(source.source.path).exists()
            ):
                _say(f"text {name}: not here, tests that need it are skipped")
                continue
            _say(f"text {recipes.text_path(name)}")


@app.command()
def calibrate(model: ModelOption = "smollm2-135m") -> None:
    """Measures the magnitudes at every site: calibration.npz and .json."""
    from sparseflash.model import recipes
    from sparseflash.pipeline import places
    from sparseflash.pipeline import stages as pipeline

    recipe = recipes.load_recipe(model)
    pipeline.calibrated(pipeline.open_model(recipe), recipe)
    _say(f"calibration {places.Places(model).calibration}")


def _say_placement(plan: dict[str, Any]) -> None:
    """Where the weights lie, for a board that streams them, and what reading them costs."""
    from sparseflash.device.bench import computing_seconds
    from sparseflash.pipeline import places

    placement = plan.get("placement")
    if not placement:
        return
    table = Table("weights", "pinned", "streamed", "read a token", title="placement, bytes")
    for name, k in [*placement["kinds"].items(), ("total", placement["total"])]:
        table.add_row(name, f"{k['pinned']:,}", f"{k['streamed']:,}", f"{k['read']:,.0f}")
    console.print(table)
    if "ratio" in placement:
        _say_expected(placement)
    if "read_seconds" in placement:
        _say(
            f"reading takes {1e3 * placement['read_seconds']:.1f} ms a token by the measured "
            f"curve; one more megabyte of RAM saves "
            f"{1e3 * placement['seconds_saved_by_a_megabyte']:.2f} ms"
        )
        computing = computing_seconds(
            places.Places(plan["name"], plan["board"]).target / "bench.json"
        )
        if computing is None:
            _say("make bench measures what computing takes beside it, and so the stalls")
        else:
            stall = max(0.0, placement["read_seconds"] - computing)
            _say(
                f"the last bench computed for {1e3 * computing:.1f} ms a token beside its waits: "
                f"expect stalls of {1e3 * stall:.1f} ms at the least"
            )
    else:
        _say("make flash-curve measures what the reads cost on this board")


def _say_expected(placement: dict[str, Any]) -> None:
    """What the planner chose, and what it loses."""
    if "ratio_predicted" not in placement:
        _say("nothing is dropped, so perplexity is that of dense")
        return
    names = {"qkv": "q, k, v", "o": "o", "gate": "gate", "up": "up", "down": "down"}
    whole = ", ".join(f"{n} of {placement[f'whole_{k}']:g}" for k, n in names.items())
    guessed = f"; a predictor picks in {placement['guessed']:g}" if "guessed" in placement else ""
    _say(f"of {placement['layers']:g} layers these stay whole: {whole}{guessed}")
    _say(
        f"perplexity {placement['ratio']:.4f} ± {placement['ratio_error']:.4f} of dense on text "
        "that calibration did not see; the model of the loss predicted "
        f"{placement['ratio_predicted']:.4f}, and with one more megabyte of RAM at the same bytes "
        f"{placement['ratio_predicted_with_a_megabyte']:.4f}"
    )


@app.command("flash-curve")
def flash_curve(model: ModelOption = "smollm2-135m", board: BoardOption = "host-flash") -> None:
    """Measures what a read of the flash costs by its size; plans use it from then on."""
    from sparseflash.base.files import write_json
    from sparseflash.device.flash_curve import measure
    from sparseflash.pipeline import places
    from sparseflash.plan.boards import load_board

    target = load_board(board)
    if "stream" not in target.raw or target.kind != "process":
        raise UsageError(f"board {board} does not stream from a disk; host-flash does")
    image = places.Places(model, board).image
    if not image.is_file():
        raise UsageError(f"{image} is missing; run make generate BOARD={board} first")
    curve = measure(image, int(target.raw["stream"]["ring_buffers"]))
    write_json(places.curve_path(target), curve)
    table = Table("bytes", "microseconds a read", "MB/s", title=f"{board}, depth {curve['depth']}")
    for size, seconds in zip(curve["bytes"], curve["seconds"], strict=True):
        table.add_row(f"{size:,}", f"{1e6 * seconds:.1f}", f"{size / seconds / 1e6:,.0f}")
    console.print(table)
    _say(f"rows closer than {curve['gap']:,} bytes share a read; {places.curve_path(target)}")


@app.command()
def generate(
    model: ModelOption = "smollm2-135m",
    board: BoardOption = "host",
    method: MethodOption = "h",
    sparsity: SparsityOption = 30,
    kv_len: KvOption = None,
    ram: Annotated[
        int | None,
        typer.Option(
            "--ram",
            parser=partial(parse_size, "--ram"),
            metavar="SIZE",
            help="to stay within: 512K, 70M",
        ),
    ] = None,
    order: Annotated[str, typer.Option(help="neurons in flash: file or coactivation")] = "file",
    head: HeadOption = "exact",
    asvd: AsvdOption = 0,
    speculate: Annotated[
        str, typer.Option("--speculate", help="method whose guess only reads early")
    ] = "",
) -> None:
    """Packs the model, plans it for the board and writes its C."""
    from sparseflash.image.formats import ORDERS
    from sparseflash.image.screen import head_rows
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages as pipeline
    from sparseflash.plan.boards import load_board
    from sparseflash.sparsity.setting import check_method

    recipe, target = recipes.load_recipe(model), load_board(board)
    if method != "planned":
        check_method(method, sparsity)
    elif speculate or asvd:
        raise UsageError("method planned takes neither --speculate nor --asvd")
    rows = head_rows(head)
    if order not in ORDERS:
        raise UsageError(f"order {order!r} is unknown; there are {', '.join(ORDERS)}")
    loaded = pipeline.open_model(recipe)
    layout = target.raw.get("layout", "joint")
    if method == "planned":
        setting = pipeline.planned_for(loaded, recipe, target, sparsity, kv_len, ram, rows)
    else:
        setting = pipeline.setting_for(loaded, recipe, method, sparsity, speculate, asvd)
    image = pipeline.pack_model(loaded, recipe, layout, order, [setting], rows > 0, asvd)
    plan = pipeline.plan_and_generate(image, target, setting, recipe, kv_len, ram, rows)
    table = Table("SRAM", "bytes", title=f"{model} on {board}")
    for name, size in plan["memory"].items():
        table.add_row(name, f"{size:,}")
    for name, size in target.reserve.items():
        table.add_row(name, f"{size:,}")
    table.add_row("of the board", f"{target.sram_bytes:,}")
    console.print(table)
    _say_placement(plan)
    what = f"method {method} {setting.percent:g} %"
    _say(f"flash {image.size:,} of {target.flash_bytes:,} bytes; {what}")


@app.command()
def build(model: ModelOption = "smollm2-135m", board: BoardOption = "host") -> None:
    """Compiles what generate wrote."""
    from sparseflash.pipeline import stages as pipeline
    from sparseflash.plan.boards import load_board

    _say(f"firmware {pipeline.build_board(load_board(board), model)}")


@app.command()
def size(model: ModelOption = "smollm2-135m", board: BoardOption = "host") -> None:
    """Bytes of the built program by part and section."""
    from sparseflash.codegen import footprint
    from sparseflash.pipeline import places
    from sparseflash.pipeline import stages as pipeline
    from sparseflash.plan.boards import load_board

    target = load_board(board)
    pipeline.build_board(target, model, show=False)
    rows = footprint.sizes(target, places.Places(model, board).firmware)
    table = Table("part", *footprint.SECTIONS, title=f"{model} on {board}, bytes")
    rows["total"] = {s: sum(r.get(s, 0) for r in rows.values()) for s in footprint.SECTIONS}
    for part, row in rows.items():
        table.add_row(part, *(f"{row.get(s, 0):,}" for s in footprint.SECTIONS))
    console.print(table)


@app.command()
def stack(model: ModelOption = "smollm2-135m", board: BoardOption = "host") -> None:
    """The deepest stack of the built program, against the board's limit."""
    from sparseflash.codegen import footprint
    from sparseflash.pipeline import places
    from sparseflash.pipeline import stages as pipeline
    from sparseflash.plan.boards import load_board

    target = load_board(board)
    pipeline.build_board(target, model, show=False)
    found = footprint.stack(target, places.Places(model, board).firmware)
    _say(" -> ".join(f.rpartition(":")[2] for f in found.path))
    _say(f"{found.bytes:,} bytes of {found.limit:,}, {found.interrupt:,} of them for an interrupt")


@app.command()
def flash(
    model: ModelOption = "smollm2-135m",
    board: BoardOption = "host",
    runner: Annotated[str | None, typer.Option(help="one of the board's, not its first")] = None,
    port: PortOption = None,
    host: Annotated[str, typer.Option(help="user@machine of runner ssh")] = "",
    drive: Annotated[str, typer.Option(help="folder of the drive of runner uf2")] = "",
    dry_run: bool = False,
) -> None:
    """Builds, and puts image and firmware on the board; --dry-run only prints the commands."""
    from sparseflash.pipeline import places
    from sparseflash.pipeline import stages as pipeline
    from sparseflash.plan.boards import load_board

    target = load_board(board)
    asked = {"port": port or "", "host": host, "drive": drive}
    target.settings(runner)
    if not dry_run:
        pipeline.build_board(target, model)
    commands = pipeline.flash_board(target, model, runner, asked, dry_run)
    if dry_run:
        for command in commands:
            print(shlex.join(command))
    place = places.Places(model, board).flashed
    _say(f"{'would flash' if dry_run else 'flashed'} {place if not commands else board}")


def _validation_ids(session: Any, model: str, positions: int) -> np.ndarray:
    """Tokens of a fixed text, and random ones when the model has no tokenizer."""
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages as pipeline

    loaded = pipeline.open_model(recipes.load_recipe(model))
    if loaded.tokenizer is None:
        rng = np.random.default_rng(1)
        return rng.integers(0, loaded.spec.vocab, positions)
    words = "Once upon a time, a small board read only the weights it needed. " * 40
    return np.array(loaded.tokenizer.encode(words)[:positions])


@app.command()
def validate(
    model: ModelOption = "smollm2-135m",
    board: BoardOption = "host",
    port: PortOption = None,
    positions: Count = 64,
) -> None:
    """Compares logits and every layer of the device with the reference, bit by bit.

    At most as many positions as its KV cache holds.
    """
    from sparseflash.device.validate import validate as run_validation
    from sparseflash.pipeline import stages as pipeline

    with pipeline.session(model, board, port) as session, _bar() as bar:
        ids = _validation_ids(session, model, min(positions, session.plan["kv_len"]))
        task = bar.add_task("validating", total=len(ids))
        found = run_validation(
            session.device,
            session.image,
            ids,
            session.thresholds,
            lambda done: bar.update(task, completed=done),
            session.plan.get("head_rows", 0),
        )
    if found is not None:
        raise SparseflashError(f"the device differs from the reference at {found}")
    n = session.image.spec.n_layers
    _say(f"validated {len(ids)} positions: logits and 7 sites of {n} layers are bit-equal")


@app.command()
def bench(
    model: ModelOption = "smollm2-135m",
    board: BoardOption = "host",
    port: PortOption = None,
    tokens: Count = 64,
    repetitions: Count = 3,
) -> None:
    """Tokens a second, bytes a token, time by stage: table, JSON and CSV."""
    from sparseflash import __version__
    from sparseflash.base.files import write_json, write_text
    from sparseflash.device.bench import bench as run
    from sparseflash.pipeline import places
    from sparseflash.pipeline import stages as pipeline

    with pipeline.session(model, board, port) as session:
        with console.status("benchmarking"):
            ids = [int(i) for i in _validation_ids(session, model, 16)]
            time_model = "clock" if port else str(session.board.settings().get("time", "clock"))
            result = run(session.device, ids, tokens, repetitions, time_model)
        plan = session.plan
    result |= {"version": __version__, "method": plan["method"], "sparsity": plan["sparsity"]}
    result |= {"head_rows": plan.get("head_rows", 0)}
    result |= {"model_sha": plan["model_sha"], "seed": "greedy"}
    folder = places.Places(model, board).target
    write_json(folder / "bench.json", result)
    write_text(
        folder / "bench.csv",
        ",".join(result) + "\n" + ",".join(str(v) for v in result.values()) + "\n",
    )
    table = Table("figure", "value", title=f"{model} on {board}")
    for name, value in result.items():
        if value is None:
            continue
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else str(value))
    console.print(table)


@app.command()
def chat(
    message: Annotated[str, typer.Argument()] = "",
    model: ModelOption = "smollm2-135m",
    board: BoardOption = "host",
    port: PortOption = None,
    most: Count = 120,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.9,
    seed: Annotated[int, typer.Option(min=0)] = 1,
) -> None:
    """Talks to the device; with a message, one question and its answer."""
    from sparseflash.device.chat import Chat
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages as pipeline

    loaded = pipeline.open_model(recipes.load_recipe(model))
    if loaded.tokenizer is None:
        raise UsageError(f"{model} has no tokenizer, so it cannot chat; give another MODEL")
    with pipeline.session(model, board, port) as session:
        talk = Chat(session.device, loaded.tokenizer, loaded.spec.eos_ids)
        while True:
            text = message or console.input("[bold]> [/bold]")
            if not text:
                return
            for piece in talk.ask(text, most, temperature, top_p, seed):
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
            print(flush=True)
            if message:
                return


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(s) for s in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r} is not numbers with commas; write 30,50") from None


@app.command()
def perplexity(
    model: ModelOption = "smollm2-135m",
    text: Annotated[str | None, typer.Option("--text", help="a declared text or a file")] = None,
    tokens: CountOrDefault = 0,
    window: CountOrDefault = 0,
    sparsities: str = "50",
    methods: str = "h,cats,paper-gate-up",
    head: HeadOption = "exact",
    asvd: AsvdOption = 0,
) -> None:
    """Perplexity, KL, same top token and bytes of dense and sparse variants, and a plot."""
    from sparseflash import __version__
    from sparseflash.image.screen import head_rows
    from sparseflash.measure.engine import dense_thresholds
    from sparseflash.measure.perplexity import measure, write_report
    from sparseflash.model import recipes
    from sparseflash.pipeline import places
    from sparseflash.pipeline import stages as pipeline
    from sparseflash.sparsity.calibrate import assert_disjoint
    from sparseflash.sparsity.setting import check_method

    recipe = recipes.load_recipe(model)
    rows_of_head = head_rows(head)
    wanted = [(m, s) for m in methods.split(",") for s in _numbers("--sparsities", sparsities)]
    for method, percent in wanted:
        check_method(method, percent)
    loaded = pipeline.open_model(recipe)
    if loaded.tokenizer is None:
        raise UsageError(f"{model} has no tokenizer, so it has no perplexity of a text")
    asked = [pipeline.setting_for(loaded, recipe, m, s, asvd=asvd) for m, s in wanted]
    screened = rows_of_head > 0
    image = pipeline.pack_model(loaded, recipe, settings=asked, screened=screened, asvd=asvd)
    calibration = pipeline.calibrated(loaded, recipe)
    name = text or str(recipe.evaluation.get("text", ""))
    if not name:
        raise UsageError(f"the recipe of {model} names no text for evaluation; give --text")
    tokens = tokens or int(recipe.evaluation.get("tokens", 40960))
    window = window or int(recipe.evaluation.get("window", 1024))
    if not 2 <= window <= loaded.spec.context:
        raise UsageError(f"--window {window} is not in 2 to the model's {loaded.spec.context}")
    ids = np.array(loaded.tokenizer.encode(recipes.text(name)[: 12 * tokens]))[:tokens]
    if len(ids) < window:
        raise UsageError(f"text {name} has {len(ids)} tokens, fewer than a window of {window}")
    ids = ids[: len(ids) // window * window].reshape(-1, window)
    assert_disjoint(calibration, ids, recipes.file_sha256(recipes.text_path(name)))
    pipeline.host_engine(image, recipe, window, rows_of_head)
    variants: list[tuple[str, float, np.ndarray]] = [("dense", 0.0, dense_thresholds(image))]
    variants += [(s.method, s.percent, s.thresholds) for s in asked]
    folder = places.Places(model).folder
    with _bar() as bar:
        task = bar.add_task("windows", total=len(ids) * (1 + len(variants)))
        rows = measure(
            loaded, image, folder / "libsparseflash.so", ids, variants, lambda: bar.advance(task)
        )
    about = {
        "model": model,
        "text": name,
        "tokens": int(ids.size),
        "window": window,
        "head": head,
        "asvd": asvd,
        "version": __version__,
        "model_sha": image.sha256.hex(),
    }
    write_report(rows, folder, about)
    table = Table("variant", "perplexity", "ratio to fp32", "KL", "same top", "MB a token")
    for r in rows:
        table.add_row(
            r.name,
            f"{r.perplexity:.3f} ± {r.error:.3f}",
            f"{r.ratio:.4f} ± {r.ratio_error:.4f}",
            f"{r.kl:.4f}",
            f"{100 * r.same_top:.1f} %",
            f"{r.bytes / 1e6:.2f}" if r.bytes else "-",
        )
    console.print(table)
    _say(f"{folder / 'perplexity.png'}, .csv, .json: {name}, {ids.size} tokens of {window}")


@app.command()
def sparsity(
    model: ModelOption = "smollm2-135m",
    text: Annotated[str | None, typer.Option("--text", help="a declared text or a file")] = None,
    windows: Annotated[int, typer.Option("--windows", help="spread evenly; 0 takes all")] = 0,
    methods: Annotated[str, typer.Option("--methods", help="names, or all")] = "all",
    percents: Annotated[str, typer.Option("--percents", help="empty takes each method's own")] = "",
    ppl: Annotated[float, typer.Option("--ppl", help="also within p % of dense; 0: no")] = 1.0,
    kept: Annotated[str, typer.Option("--asvd", help="in factors too: percents of bytes")] = "",
    predict: Annotated[bool, typer.Option(help="how well active neurons are told")] = True,
    device: Annotated[str, typer.Option(help="torch's name of it: cpu, cuda")] = "cpu",
) -> None:
    """Every sparsity method on one page: perplexity, bytes a token, plots."""
    from sparseflash.model import recipes
    from sparseflash.pipeline import places
    from sparseflash.pipeline import stages as pipeline
    from sparseflash.sparsity.page import bench

    folder = places.Places(model).folder
    with Console(stderr=True).status("reading the model") as status:
        text_of = bench.run(
            partial(pipeline.open_study, model, text, windows, status.update, device),
            folder,
            recipes.load_recipe(model),
            text,
            [] if methods == "all" else methods.split(","),
            _numbers("--percents", percents) if percents else [],
            ppl,
            _numbers("--asvd", kept) if kept else [],
            predict,
            device,
        )
    print(text_of)
    _say(f"{folder / 'sparsity.md'}, .csv, .json, .png and three more plots")


@app.command("train-predictor")
def train_predictor(
    out: Annotated[Path, typer.Option("--out", help="the .npz to write")],
    model: ModelOption = "smollm2-135m",
    rank: Annotated[int, typer.Option(min=32, help="a multiple of 32")] = 128,
    ahead: Annotated[bool, typer.Option(help="guess from the input of attention")] = False,
    steps: Count = 1200,
    write: Annotated[int, typer.Option(min=0, help="tokens that the model writes")] = 1_048_576,
    device: Annotated[str, typer.Option(help="torch's name of it")] = "cuda",
    seed: int = 1,
) -> None:
    """Trains a low-rank predictor of the FFN's neurons; wants a GPU."""
    from sparseflash.model import recipes
    from sparseflash.model.torch_model import check_device
    from sparseflash.pipeline import stages as pipeline
    from sparseflash.sparsity.predict import train
    from sparseflash.sparsity.texts import calibration_settings

    check_device(device)
    recipe = recipes.load_recipe(model)
    source = pipeline.open_model(recipe)
    asked = calibration_settings(recipe)
    windows, texts = train.whole_texts(source, asked["texts"], int(asked["window"]))
    settings = train.Settings(rank, ahead, steps, seed=seed)
    train.train_predictor(source, windows, texts, settings, write, device, out, _say)
    _say(f"{out} and {out.with_suffix('.json').name}")


@app.command()
def boards() -> None:
    """Lists the boards."""
    from sparseflash.plan.boards import board_ids, load_board

    table = Table("board", "SRAM", "flash", "what it is")
    for name in board_ids():
        b = load_board(name)
        table.add_row(b.id, f"{b.sram_bytes:,}", f"{b.flash_bytes:,}", b.description)
    console.print(table)


@app.command()
def models() -> None:
    """Lists the models."""
    from sparseflash.model.recipes import load_recipe, recipe_names

    table = Table("model", "what it is", "licence")
    for name in recipe_names():
        r = load_recipe(name)
        table.add_row(r.name, r.title, r.licence)
    console.print(table)


@app.command()
def demo(
    model: ModelOption = "smollm2-135m",
    board: BoardOption = "host",
    method: MethodOption = "h",
    sparsity: SparsityOption = 30,
    head: HeadOption = "exact",
) -> None:
    """The main job: pack, generate, build, flash, validate, bench, chat."""
    start = time.monotonic()
    for title, step in (
        ("fetch", lambda: fetch(model)),
        ("calibrate", lambda: calibrate(model)),
        ("generate", lambda: generate(model, board, method, sparsity, head=head)),
        ("flash", lambda: flash(model, board)),
        ("validate", lambda: validate(model, board, None, 64)),
        ("bench", lambda: bench(model, board, None, 64, 3)),
    ):
        console.rule(f"{title} ({time.monotonic() - start:.0f} s)")
        step()
    question = "What is the capital of France?"
    console.rule(f"chat ({time.monotonic() - start:.0f} s)")
    _say(f"> {question}")
    chat(question, model, board, None, 60, 0.0, 0.9, 1)
    console.rule(f"done ({time.monotonic() - start:.0f} s)")


def _stop(sentence: str, code: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True, emoji=False).print(
        f"error: {sentence}", style="red", highlight=False, markup=False
    )
    sys.exit(code)


def main() -> None:
    """Entry point: errors become one sentence and their exit code (docs/EXIT_CODES.md)."""
    try:
        app(standalone_mode=False)
    except SparseflashError as e:
        _stop(str(e), int(e.code))
    except (KeyboardInterrupt, EOFError, typer.Abort):
        sys.exit(130)
    except typer.Exit as e:
        sys.exit(e.exit_code)
    except BrokenPipeError:
        # Who read our output left; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(int(Exit.FAILED))
    except OSError as e:
        where = e.filename or "a file"
        _stop(
            f"{where}: {e.strerror or e}; check the path, its permissions and the disk", Exit.INPUT
        )
    except Exception as e:
        if hasattr(e, "format_message"):  # wrong options
            _stop(e.format_message(), Exit.USAGE)
        raise
