"""The stages, one artefact each; the command line and the tests call these.

``places`` says where each artefact lies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseflash.base.errors import InputError, MismatchError, UnsupportedError, UsageError
from sparseflash.base.files import write_json
from sparseflash.codegen.build import build_firmware, build_library
from sparseflash.codegen.generate import generate
from sparseflash.device.runners import Files, flash_files
from sparseflash.device.session import Session
from sparseflash.image.factors import Factors
from sparseflash.image.formats import BY_ROWS, INPUTS, THRESHOLDS, Formats
from sparseflash.image.sfm import Image, pack
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model import recipes
from sparseflash.model.load import load_model
from sparseflash.model.load.delta import apply_delta
from sparseflash.model.recipes import Recipe, delta_path, fetch, fetch_tokenizer
from sparseflash.model.spec import Model
from sparseflash.pipeline.places import Places, curve_path
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.kept import read_plan
from sparseflash.plan.placement import use_of
from sparseflash.plan.plan import make_plan
from sparseflash.plan.planner import check_streams, propose
from sparseflash.sparsity import registry
from sparseflash.sparsity.calibrate import Calibration, assert_disjoint, calibrate
from sparseflash.sparsity.neuron_order import load_order, measure_order, save_order
from sparseflash.sparsity.setting import (
    NEURONS,
    Setting,
    check_method,
    formats_for,
    thresholds_of,
)
from sparseflash.sparsity.texts import (
    calibration_settings,
    calibration_tokens,
    evaluation_windows,
    held_out_windows,
)

if TYPE_CHECKING:
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


def setting_for(
    model: Model,
    recipe: Recipe,
    method: str,
    percent: float,
    speculate: str = "",
    asvd: float = 0.0,
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
        found = setting_for(model, recipe, method, percent, asvd=asvd)
        guess = THRESHOLDS.index("guess")
        early = setting_for(model, recipe, speculate, percent, asvd=asvd).thresholds
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

    study = study_of(model, recipe, asvd)
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


def study_of(model: Model, recipe: Recipe, asvd: float = 0.0) -> Study:
    """A study without evaluation text, on the tokens of the calibration."""
    from sparseflash.sparsity.study import Study

    ids, _ = calibration_tokens(model, recipe)
    model, formats = in_factors(model, recipe, asvd)
    folder, trained = study_folder(recipe, asvd), recipe.predictors
    return Study(model, formats, ids, ids[:0], folder, calibrated(model, recipe), trained=trained)


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
    tested = evaluation_windows(model, recipe, text, windows)
    name = text or str(recipe.evaluation["text"])
    assert_disjoint(calibration, tested, recipes.file_sha256(recipes.text_path(name)))
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


def planned_for(
    model: Model,
    recipe: Recipe,
    board: Board,
    percent: float,
    kv_len: int | None = None,
    ram: int | None = None,
    head_rows: int = 0,
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
    none = np.zeros((model.spec.n_layers, len(THRESHOLDS)), np.float32)
    image = pack_model(model, recipe, "split", screened=head_rows > 0)
    positions = kv_len or min(recipe.kv_len, board.kv_len_default)
    dense = make_plan(image, board, none, positions, ram=ram, head_rows=head_rows)
    if not dense["placement"]["total"]["streamed"] or not percent:
        return Setting("dense", 0.0, {}, none, expected={"ratio": 1.0})
    study = study_of(model, recipe)
    prices = Prices(*model_of(study, marginal))
    named = [m for m in map(registry.method, recipe.predictors) if not study.ahead(m)]
    prices.guesses = [guessed(study, m) for m in named]
    found = propose(model.spec, study.formats, board, dense, percent, prices)
    rules = study.rules(marginal, found.levels)
    if found.predictor is not None:
        guesses = study.rules(found.predictor, found.levels)
        for i, level in enumerate(found.levels["proxy"]):
            rules[i].proxy = guesses[i].proxy if level > 0 else None
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


def host_engine(
    image: Image, recipe: Recipe, kv_len: int | None = None, head_rows: int = 0
) -> Engine:
    """The generated C of the board ``host`` as a shared library in this process."""
    folder = Places(recipe.name).folder
    positions, dense = kv_len or recipe.kv_len, dense_thresholds(image)
    plan = make_plan(image, load_board("host"), dense, positions, head_rows=head_rows)
    generate(plan, folder / "gen")
    return Engine(build_library(folder / "gen", folder / "libsparseflash.so"), image)
