"""The stages, one artefact each; the command line and the tests call these.

``places`` says where each artefact lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseflash import __version__
from sparseflash.base.errors import InputError, MismatchError, UnsupportedError, UsageError
from sparseflash.base.files import root, write_csv, write_json
from sparseflash.codegen import footprint
from sparseflash.codegen.build import build_firmware, build_library
from sparseflash.codegen.generate import generate
from sparseflash.device.bench import bench
from sparseflash.device.flash_curve import measure as flash_curve
from sparseflash.device.runners import Files, flash_files
from sparseflash.device.session import Session
from sparseflash.image.factors import Factors
from sparseflash.image.formats import BY_ROWS, INPUTS, THRESHOLDS, Formats
from sparseflash.image.screen import head_rows
from sparseflash.image.sfm import Image, pack
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model import recipes
from sparseflash.model.load import load_model
from sparseflash.model.load.delta import apply_delta
from sparseflash.model.recipes import Recipe, delta_path, fetch, fetch_tokenizer
from sparseflash.model.spec import Model, Words
from sparseflash.pipeline.places import Places, curve_path
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.kept import read_plan
from sparseflash.plan.placement import use_of
from sparseflash.plan.plan import make_plan
from sparseflash.plan.planner import check_streams, choose, propose, streams
from sparseflash.sparsity import registry
from sparseflash.sparsity.calibrate import Calibration, calibrate
from sparseflash.sparsity.neuron_order import load_order, measure_order, save_order
from sparseflash.sparsity.setting import (
    NEURONS,
    PERCENT,
    Setting,
    check_method,
    formats_for,
    thresholds_of,
)
from sparseflash.sparsity.texts import (
    calibration_settings,
    calibration_tokens,
    check_unseen,
    evaluation_text,
    evaluation_windows,
    held_out_windows,
)
from sparseflash.sparsity.windows import spread

if TYPE_CHECKING:
    from sparseflash.measure.perplexity import Row
    from sparseflash.sparsity.prices import Prices
    from sparseflash.sparsity.study import Study


def open_model(recipe: Recipe) -> Model:
    """Downloads if needed and loads; the model takes the recipe's name."""
    model = load_model(fetch(recipe), fetch_tokenizer(recipe))
    if recipe.delta is not None:
        model = apply_delta(model, delta_path(recipe.delta), recipe.delta.budget)
    model.name = recipe.name
    return model


def pack_model(
    model: Model,
    recipe: Recipe,
    layout: str = "joint",
    order: str = "file",
    settings: Sequence[Setting] = (),
    screened: bool = False,
    asvd: float = 0.0,
) -> Image:
    """model.sfm, or a twin of it, written when the source or the formats changed.

    asvd: percent of the projections' bytes that whole matrices and factors take; 0: no factors.
    """
    layout = "split" if asvd else layout
    path = Places(recipe.name).image_of(layout, screened, asvd)
    proxy = "q4" if screened else ""
    formats = replace(formats_for(recipe, settings), layout=layout, order=order, head_proxy=proxy)
    if model.spec.own_thresholds:
        formats = formats.with_gate_by_columns(model.spec.n_layers)
    predictor = factors = None
    if asvd:
        factors = factors_for(model, recipe, asvd)
        formats = factors.formats(formats, model.spec.n_layers)
    for m in (s.guess for s in settings):
        if m and m.rank and predictor is None:
            predictor = study_of(model, recipe, asvd).predictor(m)
            formats = replace(formats, ahead=predictor.ahead, predictor=predictor.digest)
    if path.is_file():
        try:
            image = Image(path)
            if image.source == model.source and image.formats == formats:
                return image
        except InputError:
            pass
    permutation = neuron_order(model, recipe) if order != "file" else None
    pack(model, path, formats, permutation, predictor, factors)
    return Image(path)


def neuron_order(model: Model, recipe: Recipe) -> np.ndarray:
    """order.npz of the recipe's calibration text, measured when it is not there for this source."""
    path, sha = Places(recipe.name).folder / "order.npz", model.source["sha256"]
    order = load_order(path, sha)
    if order is None:
        ids, _ = calibration_tokens(model, recipe)
        order = measure_order(model, ids, calibrated(model, recipe))
        save_order(path, order, sha)
    return order


def calibrated(model: Model, recipe: Recipe) -> Calibration:
    """calibration.npz of the recipe's texts, measured when it is not there for this source.

    A model with factors multiplied out has a file of its own beside it.
    """
    path = Places(recipe.name).calibration
    if "factors" in model.source:
        path = path.with_name(f"calibration.{model.source['factors']}.npz")
    if path.is_file():
        try:
            old = Calibration.load(path)
            if old.measured(model):
                return old
        except InputError:
            pass
    settings = calibration_settings(recipe)
    window, seed = int(settings["window"]), int(settings["seed"])
    ids, texts = calibration_tokens(model, recipe)
    result = calibrate(model, ids, window=window, texts=texts, seed=seed)
    result.save(path)
    return result


PLANNED = ("auto", "planned")
"""Methods that look at the board: auto by kept prices, planned by measuring all anew."""


def check_asked(method: str, percent: float | None, speculate: str = "", asvd: float = 0.0) -> None:
    """Refuses, before anything is loaded, what no device runs."""
    named = "marginal" if method in PLANNED else method
    check_method(named, PERCENT if percent is None else percent)
    if method in PLANNED and (speculate or asvd):
        raise UsageError(
            f"method {method} takes neither --speculate nor --asvd; name another, as --method h"
        )


def setting_on(
    model: Model,
    recipe: Recipe,
    board: Board,
    method: str,
    percent: float | None,
    kv_len: int | None = None,
    ram: int | None = None,
    head_rows: int = 0,
    speculate: str = "",
    asvd: float = 0.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Setting:
    """What a method drops on a board; percent None takes the method's own."""
    if method == "auto":
        return auto_for(model, recipe, board, percent, kv_len, ram, head_rows, progress)
    percent = PERCENT if percent is None else percent
    if method == "planned":
        return planned_for(model, recipe, board, percent, kv_len, ram, head_rows, progress)
    return setting_for(model, recipe, method, percent, speculate, asvd, progress)


def setting_for(
    model: Model,
    recipe: Recipe,
    method: str,
    percent: float,
    speculate: str = "",
    asvd: float = 0.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Setting:
    """The method's levels and thresholds at ``percent``, from the recipe's calibration.

    speculate: a method whose guess says what to read early.
    asvd: as pack_model's; calibration then runs with the factors in place.
    """
    check_method(method, percent)
    m, n = registry.method(method), model.spec.n_layers
    if speculate:
        if not registry.method(speculate).guess or m.guess or not {*NEURONS} & {*m.sites}:
            raise UsageError(
                f"--speculate {speculate} for method {method}: give it a prox, svd or lowrank "
                "method, and a method that drops neurons by their true values, as cats and h do"
            )
        found = setting_for(model, recipe, method, percent, asvd=asvd, progress=progress)
        guess = THRESHOLDS.index("guess")
        early = setting_for(
            model, recipe, speculate, percent, asvd=asvd, progress=progress
        ).thresholds
        found.thresholds[:, guess] = early[:, guess]
        return replace(found, speculate=speculate)
    out = np.zeros((n, len(THRESHOLDS)), np.float32)
    if not percent or not (m.sites or m.guess):
        return Setting(method, 0.0, {}, out)
    if asvd and {*m.sites} & {*INPUTS}:
        raise UnsupportedError(BY_ROWS)
    if not m.guess and m.budget == "uniform" and not {*m.sites} & {*INPUTS}:
        calibration = calibrated(in_factors(model, recipe, asvd)[0], recipe)
        levels = {s: np.full(n, percent / 100) for s in m.sites}
        for site in m.sites:
            for i in range(n):
                out[i, THRESHOLDS.index(site)] = calibration.threshold(i, site, percent / 100)
        return Setting(method, percent, levels, out)
    from sparseflash.sparsity.levels import levels_of

    study = study_of(model, recipe, asvd, progress)
    levels = levels_of(study, m, percent / 100)
    return Setting(method, percent, levels, thresholds_of(study.rules(m, levels)))


def factors_for(model: Model, recipe: Recipe, percent: float) -> Factors:
    """ASVD's factors, searched once for a model, its calibration text and a percentage."""
    from sparseflash.sparsity.asvd import asvd

    if not 0 < percent < 100:
        raise UsageError(f"--asvd {percent:g} is out of range; give 0 or up to below 100 percent")
    return asvd(study_of(model, recipe), percent / 100)


def in_factors(model: Model, recipe: Recipe, percent: float) -> tuple[Model, Formats]:
    """The model with ASVD's factors multiplied out, and the formats of its image; 0: as it is."""
    formats = formats_for(recipe)
    if not percent:
        return model, formats
    factors = factors_for(model, recipe, percent)
    formats = factors.formats(formats, model.spec.n_layers)
    return factors.multiplied_out(model, formats), formats


def study_folder(recipe: Recipe, asvd: float = 0.0) -> Path:
    return Places(recipe.name).folder / (f"study.asvd{asvd:g}" if asvd else "study")


def study_of(
    model: Model,
    recipe: Recipe,
    asvd: float = 0.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Study:
    """A study without evaluation text, on the tokens of the calibration."""
    from sparseflash.sparsity.study import Study

    ids, _ = calibration_tokens(model, recipe)
    model, formats = in_factors(model, recipe, asvd)
    progress("calibrating")
    return Study(
        model,
        formats,
        ids,
        ids[:0],
        study_folder(recipe, asvd),
        calibrated(model, recipe),
        progress=progress,
        trained=recipe.predictors,
    )


def open_study(
    model_name: str,
    text: str | None = None,
    windows: int = 0,
    progress: Callable[[str], None] = lambda _: None,
    device: str = "cpu",
    asvd: float = 0.0,
) -> Study:
    """A study of a recipe's model with its calibration and evaluation texts, kept under build/.

    asvd: percent of the projections' bytes that ASVD's factors leave; 0 has none.
    """
    from sparseflash.model.torch_model import TorchModel
    from sparseflash.sparsity.study import Study

    recipe = recipes.load_recipe(model_name)
    model, formats = in_factors(open_model(recipe), recipe, asvd)
    calibration = calibrated(model, recipe)
    ids, _ = calibration_tokens(model, recipe)
    tested = evaluation_windows(model, recipe, text)
    check_unseen(calibration, tested, evaluation_text(recipe, text))
    tested = spread(tested, windows) if windows > 0 else tested
    return Study(
        model,
        formats,
        ids,
        tested,
        study_folder(recipe, asvd),
        calibration,
        TorchModel(model, device=device),
        progress,
        recipe.predictors,
    )


def with_curve(board: Board) -> Board:
    """The board with the gap that its measured read cost pays for, when it was measured."""
    if "stream" not in board.raw or not curve_path(board).is_file():
        return board
    curve = json.loads(curve_path(board).read_text())
    stream = board.raw["stream"] | {"gap": int(curve["gap"]), "curve": curve}
    return replace(board, raw=board.raw | {"stream": stream})


def prices_digest(model: Model, recipe: Recipe) -> str:
    """Of the source and of the calibration that prices belong to."""
    settings = calibration_settings(recipe)
    texts = {n: recipes.text_sha256(n) for n in settings["texts"] if n != "random"}
    what = [model.source.get("sha256", ""), settings, texts]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def prices_of(model: Model, recipe: Recipe) -> Prices | None:
    """Prices that were measured here, or are kept with the recipe; None where there are none."""
    from sparseflash.sparsity.prices import Prices

    digest = prices_digest(model, recipe)
    kept = (Places(recipe.name).prices, recipes.root() / "models" / f"{recipe.name}.prices.npz")
    for path in kept:
        if path.is_file() and (found := Prices.load(path, digest)) is not None:
            return found
    return None


def measure_prices(
    model: Model, recipe: Recipe, progress: Callable[[str], None] = lambda _: None
) -> Path:
    """prices.npz: what drops cost at every site and level, and the thresholds of the levels."""
    from sparseflash.sparsity.budgets.marginal import model_of
    from sparseflash.sparsity.prices import GRID, Prices
    from sparseflash.sparsity.sites import key

    study, marginal = study_of(model, recipe, progress=progress), registry.method("marginal")
    found = Prices(*model_of(study, marginal), thresholds={})
    for site in marginal.sites:
        name = key(site, marginal.score)
        rows = [
            [study.scores.threshold(i, name, t) for t in GRID] for i in range(len(model.layers))
        ]
        found.thresholds[site] = np.array(rows, np.float32)
    path = Places(recipe.name).prices
    found.save(path, prices_digest(model, recipe))
    return path


def dense_plan(
    model: Model,
    recipe: Recipe,
    board: Board,
    kv_len: int | None = None,
    ram: int | None = None,
    head_rows: int = 0,
) -> dict[str, Any]:
    """The plan of a board that streams when nothing is dropped."""
    none = np.zeros((model.spec.n_layers, len(THRESHOLDS)), np.float32)
    image = pack_model(model, recipe, "split", screened=head_rows > 0)
    positions = kv_len or min(recipe.kv_len, board.kv_len_default)
    return make_plan(image, board, none, positions, ram=ram, head_rows=head_rows)


def auto_for(
    model: Model,
    recipe: Recipe,
    board: Board,
    percent: float | None = None,
    kv_len: int | None = None,
    ram: int | None = None,
    head_rows: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Setting:
    """What ``planner.choose`` takes for the board and the RAM by the prices that are there.

    percent: fewer streamed bytes; None leaves it to the planner.

    Raises:
        UsageError: no plan streams so little.
        TooSmallError: the RAM holds no plan.
    """
    board, dense, prices = with_curve(board), {}, None
    if streams(board):
        progress("planning without drops")
        dense = dense_plan(model, recipe, board, kv_len, ram, head_rows)
        prices = prices_of(model, recipe)
    progress("choosing what stays in RAM and what streams")
    formats = formats_for(recipe)
    found, reason = choose(model.spec, formats, board, dense, percent, prices)
    thresholds = np.zeros((model.spec.n_layers, len(THRESHOLDS)), np.float32)
    if found is None:
        return Setting("dense", 0.0, {}, thresholds, reason=reason)
    assert prices is not None
    for site, levels in found.levels.items():
        thresholds[:, THRESHOLDS.index(site)] = prices.threshold(site, levels)
    saved = 100 * (1 - found.read / dense["placement"]["total"]["read"])
    return Setting(
        "marginal",
        round(saved, 1),
        found.levels,
        thresholds,
        use=found.use,
        expected=found.expected,
        reason=reason,
    )


def planned_for(
    model: Model,
    recipe: Recipe,
    board: Board,
    percent: float,
    kv_len: int | None = None,
    ram: int | None = None,
    head_rows: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Setting:
    """What the planner proposes for the board and the RAM, measured on text beside calibration's.

    head_rows: of a screened head.

    Raises:
        UsageError: the board does not stream, or no plan streams so little.
        TooSmallError: the RAM holds no plan.
    """
    from sparseflash.sparsity.budgets.marginal import model_of
    from sparseflash.sparsity.evaluate import ratio_of
    from sparseflash.sparsity.predict.guessed import guessed
    from sparseflash.sparsity.prices import Prices

    marginal = registry.method("marginal")
    check_method(marginal.name, percent)
    check_streams(board)
    board = with_curve(board)
    dense = dense_plan(model, recipe, board, kv_len, ram, head_rows)
    if not dense["placement"]["total"]["streamed"] or not percent:
        none = np.zeros((model.spec.n_layers, len(THRESHOLDS)), np.float32)
        return Setting("dense", 0.0, {}, none, expected={"ratio": 1.0})
    study = study_of(model, recipe, progress=progress)
    prices = Prices(*model_of(study, marginal), thresholds={})
    named = [m for m in map(registry.method, recipe.predictors) if not study.ahead(m)]
    prices.guesses = [guessed(study, m) for m in named]
    progress("choosing what stays in RAM")
    found = propose(model.spec, study.formats, board, dense, percent, prices)
    rules = study.rules(marginal, found.levels)
    if found.predictor is not None:
        guesses = study.rules(found.predictor, found.levels)
        for i, level in enumerate(found.levels["proxy"]):
            rules[i].proxy = guesses[i].proxy if level > 0 else None
    progress("measuring the plan")
    ratio, error = ratio_of(study.runner, rules, held_out_windows(model, recipe))
    return Setting(
        marginal.name,
        percent,
        found.levels,
        thresholds_of(rules),
        use=found.use,
        expected={"ratio": ratio, "ratio_error": error} | found.expected,
        predictor=found.predictor.name if found.predictor else "",
    )


def plan_and_generate(
    image: Image,
    board: Board,
    setting: Setting,
    recipe: Recipe,
    kv_len: int | None = None,
    ram: int | None = None,
    head_rows: int = 0,
) -> dict[str, Any]:
    """plan.json and the C of a board."""
    places = Places(recipe.name, board.id)
    positions = kv_len or min(recipe.kv_len, board.kv_len_default)
    board = with_curve(board)
    plan = make_plan(
        image,
        board,
        setting.thresholds,
        positions,
        setting.method,
        setting.percent,
        ram,
        head_rows,
        setting.speculate,
        setting.use or use_of(setting.levels),
    )
    plan["placement"] |= setting.expected
    generate(plan, places.target / "gen", board)
    write_json(places.plan, plan)
    return plan


def check_image(places: Places) -> None:
    """Whether model.sfm is sound and the one that the plan was made for."""
    image, plan = Image(places.planned_image()), read_plan(places.plan)
    if image.sha256.hex() != plan["model_sha"]:
        raise MismatchError(
            f"{places.plan} was made for another image than {image.path}; run make generate again"
        )


def build_board(board: Board, model: str, show: bool = True) -> Path:
    """The firmware of a board, from what ``generate`` wrote."""
    places = Places(model, board.id)
    if not places.plan.is_file():
        raise UsageError(f"nothing is generated for {model} on {board.id}; run make generate first")
    return build_firmware(board, places.target / "gen", places.firmware, show)


def flash_board(
    board: Board,
    model: str,
    runner: str | None = None,
    asked: dict[str, str] | None = None,
    dry: bool = False,
) -> list[list[str]]:
    """Puts image and firmware on the board and verifies them; returns the commands of it."""
    places = Places(model, board.id)
    if not dry:
        check_image(places)
    image = places.image if dry else places.planned_image()
    files = Files(places.firmware, image, places.plan)
    return flash_files(board, files, places.flashed, runner, asked, dry)


def session(model: str, board_id: str, port: str | None = None) -> Session:
    """The device of a board under what was flashed on it: its process, or the one on ``port``."""
    return Session(load_board(board_id), Places(model, board_id).flashed, model, port)


def open_tokenizer(model: str) -> tuple[Words, tuple[int, ...]]:
    """The tokenizer of a recipe's model, and the ids that end an answer."""
    loaded = open_model(recipes.load_recipe(model))
    if loaded.tokenizer is None:
        raise UsageError(f"{model} has no tokenizer, so it cannot chat; give another MODEL")
    return loaded.tokenizer, loaded.spec.eos_ids


def validation_ids(model: str, positions: int) -> np.ndarray:
    """Tokens of a fixed text, and random ones when the model has no tokenizer."""
    loaded = open_model(recipes.load_recipe(model))
    if loaded.tokenizer is None:
        return np.random.default_rng(1).integers(0, loaded.spec.vocab, positions)
    words = "Once upon a time, a small board read only the weights it needed. " * 40
    return np.array(loaded.tokenizer.encode(words)[:positions])


def bench_board(
    model: str, board_id: str, port: str | None, tokens: int, repetitions: int
) -> dict[str, Any]:
    """bench.json and .csv: what the device does in a second, and what it reads."""
    with session(model, board_id, port) as opened:
        ids = [int(i) for i in validation_ids(model, 16)]
        time_model = "clock" if port else str(opened.board.settings().get("time", "clock"))
        result = bench(opened.device, ids, tokens, repetitions, time_model)
        plan = opened.plan
    result |= {"version": __version__, "method": plan["method"], "sparsity": plan["sparsity"]}
    result |= {"head_rows": plan.get("head_rows", 0)}
    result |= {"model_sha": plan["model_sha"], "seed": "greedy"}
    folder = Places(model, board_id).target
    write_json(folder / "bench.json", result)
    write_csv(folder / "bench.csv", [result])
    return result


def measure_curve(board: Board, model: str) -> tuple[Path, dict[str, Any]]:
    """flash_curve.json: what a read of the board's flash costs by its size."""
    if "stream" not in board.raw or board.kind != "process":
        raise UsageError(f"board {board.id} does not stream from a disk; host-flash does")
    image = Places(model, board.id).image
    if not image.is_file():
        raise UsageError(f"{image} is missing; run make generate BOARD={board.id} first")
    curve = flash_curve(image, int(board.raw["stream"]["ring_buffers"]))
    write_json(curve_path(board), curve)
    return curve_path(board), curve


def program_sizes(board: Board, model: str) -> dict[str, dict[str, int]]:
    """Bytes by section of each part of the built program, and of all."""
    build_board(board, model, show=False)
    rows = footprint.sizes(board, Places(model, board.id).firmware)
    total = {s: sum(r.get(s, 0) for r in rows.values()) for s in footprint.SECTIONS}
    return {**rows, "total": total}


def program_stack(board: Board, model: str) -> footprint.Stack:
    """The deepest stack of the built program."""
    build_board(board, model, show=False)
    return footprint.stack(board, Places(model, board.id).firmware)


def perplexity_of(
    model: str,
    wanted: Sequence[tuple[str, float]],
    text: str | None = None,
    tokens: int = 0,
    window: int = 0,
    head: str = "exact",
    asvd: float = 0.0,
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[Path, list[Row], dict[str, Any]]:
    """perplexity.json, .csv and .png of dense and of methods at percents: folder, rows and about.

    tokens, window: 0 takes the recipe's. progress: is told the share that is done.
    """
    from sparseflash.measure.perplexity import measure, write_report

    recipe, rows_of_head = recipes.load_recipe(model), head_rows(head)
    for method, percent in wanted:
        check_method(method, percent)
    loaded = open_model(recipe)
    ids = evaluation_windows(loaded, recipe, text, tokens, window)
    name = evaluation_text(recipe, text)
    check_unseen(calibrated(loaded, recipe), ids, name)
    asked = [setting_for(loaded, recipe, m, s, asvd=asvd) for m, s in wanted]
    image = pack_model(loaded, recipe, settings=asked, screened=rows_of_head > 0, asvd=asvd)
    host_engine(image, recipe, ids.shape[1], rows_of_head)
    variants: list[tuple[str, float, np.ndarray]] = [("dense", 0.0, dense_thresholds(image))]
    variants += [(s.method, s.percent, s.thresholds) for s in asked]
    folder, done = Places(model).folder, 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done / (len(ids) * (1 + len(variants))))

    rows = measure(loaded, image, folder / "libsparseflash.so", ids, variants, step)
    about = {
        "model": model,
        "text": name,
        "tokens": int(ids.size),
        "window": int(ids.shape[1]),
        "head": head,
        "asvd": asvd,
        "version": __version__,
        "model_sha": image.sha256.hex(),
    }
    write_report(rows, folder, about)
    return folder, rows, about


def export_gguf(model: str, out: Path, method: str, percent: float, order: bool) -> None:
    """A copy of the model's GGUF with thresholds, and if asked the neuron order and a predictor.

    Raises:
        UsageError: the model does not come from a GGUF file.
    """
    from sparseflash.model.load.gguf_out import SparseKeys, write_sparse_gguf

    recipe = recipes.load_recipe(model)
    source = recipes.fetch(recipe)
    if source.suffix != ".gguf":
        raise UsageError(f"{model} comes from {source.name}, not from a GGUF file")
    loaded = open_model(recipe)
    setting = setting_for(loaded, recipe, method, percent)
    guess = setting.guess
    predictor = recipe.predictors.get(guess.name) if guess and guess.rank else None
    keys = SparseKeys(
        method,
        setting.percent,
        THRESHOLDS,
        np.asarray(setting.thresholds, np.float32),
        neuron_order(loaded, recipe).astype(np.int32) if order else None,
        (root() / predictor.path).read_bytes() if predictor else b"",
    )
    write_sparse_gguf(source, out, keys)


def host_engine(
    image: Image, recipe: Recipe, kv_len: int | None = None, head_rows: int = 0
) -> Engine:
    """The generated C of the board ``host`` as a shared library in this process."""
    folder = Places(recipe.name).folder
    positions, dense = kv_len or recipe.kv_len, dense_thresholds(image)
    plan = make_plan(image, load_board("host"), dense, positions, head_rows=head_rows)
    generate(plan, folder / "gen")
    return Engine(build_library(folder / "gen", folder / "libsparseflash.so"), image)
