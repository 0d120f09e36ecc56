"""The stages, one artefact each; the command line and the tests call these.

``places`` says where each artefact lies.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseflash import __version__
from sparseflash.base.errors import InputError, TooSmallError, UnsupportedError, UsageError
from sparseflash.base.files import alone, root
from sparseflash.codegen.build import build_library
from sparseflash.codegen.generate import generate
from sparseflash.codegen.package import Example, package_name, write_package
from sparseflash.image.factors import Factors
from sparseflash.image.formats import BY_ROWS, INPUTS, THRESHOLDS, shape_of
from sparseflash.image.pack import pack
from sparseflash.image.screen import head_rows
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model import recipes
from sparseflash.model.checkpoint import hub_path
from sparseflash.model.known import files_digest, known_model
from sparseflash.model.load import load_model
from sparseflash.model.load.delta import apply_delta
from sparseflash.model.recipes import Recipe, delta_path, fetch, fetch_tokenizer
from sparseflash.model.spec import Model, ModelSpec
from sparseflash.pipeline.places import Places, curve_path
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.fit import Fit, fit_of, step_worth, token_figures
from sparseflash.plan.kept import plan_digest
from sparseflash.plan.placement import use_of
from sparseflash.plan.plan import check_ram, make_plan, working_memory
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
    needs_for,
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
    """Downloads if needed; the model takes the recipe's name.

    Files that were read before are checked, and read again when their weights are asked for.
    """
    path, words, delta = fetch(recipe), fetch_tokenizer(recipe), recipe.delta
    changes = None if delta is None else delta_path(delta)
    budget = 0 if delta is None else delta.budget

    def read() -> Model:
        model = load_model(path, words)
        return model if changes is None else apply_delta(model, changes, budget)

    found = hub_path(str(path)) if recipe.source.kind == "hub" else path
    found = found.parent if found.suffix == ".safetensors" else found
    digest = f"{files_digest(found, words, changes)} {budget}"
    model = known_model(Places(recipe.name).known, digest, read)
    model.name = recipe.name
    return model


def pack_model(
    model: Model,
    recipe: Recipe,
    order: str = "file",
    settings: Sequence[Setting] = (),
    screened: bool = False,
    asvd: float = 0.0,
) -> Image:
    """model.sfm, or a twin of it, written when the source, the formats or the needs changed.

    asvd: percent of the projections' bytes that whole matrices and factors take; 0: no factors.
    """
    path = Places(recipe.name).image_of(screened, asvd)
    formats = replace(formats_for(recipe, order), screened=screened)
    needs = needs_for(recipe, settings)
    if model.spec.experts:
        needs = needs.for_experts()
    if model.spec.own_thresholds:
        needs = needs.with_gate_by_columns(model.spec.n_layers)
    if asvd:
        needs = replace(needs, factors=factors_for(model, recipe, asvd))
    for m in (s.predicting for s in settings):
        if m and m.rank and needs.predictor is None:
            needs = replace(needs, predictor=study_of(model, recipe, asvd).predictor(m))
    if path.is_file():
        try:
            image = Image(path)
            same = image.formats == formats and image.needs == needs.plain()
            if same and image.source == model.source and image.spec == model.spec:
                return image
        except InputError:
            pass
    permutation = neuron_order(model, recipe) if order != "file" else None
    pack(model, path, formats, needs, permutation)
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


PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
PLANNED = ("auto", "planned")
"""Methods that look at the board: auto by kept prices, planned by measuring all anew."""


def check_asked(
    method: str,
    percent: float | None,
    speculate: str = "",
    asvd: float = 0.0,
    board: Board | None = None,
    ram: int | None = None,
) -> None:
    """Refuses, before anything is loaded, what no device runs."""
    if board is not None:
        check_ram(board, ram)
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


def dense_setting(model: Model) -> Setting:
    """The setting that drops nothing."""
    return Setting("dense", 0.0, {}, np.zeros((model.spec.n_layers, len(THRESHOLDS)), np.float32))


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

    speculate: a method whose prediction says what to read early.
    asvd: as pack_model's; calibration then runs with the factors in place.
    """
    check_method(method, percent)
    m, n = registry.method(method), model.spec.n_layers
    m.check(model.spec, model.name)
    if speculate:
        if not registry.method(speculate).predicts or m.predicts or not {*NEURONS} & {*m.sites}:
            raise UsageError(
                f"--speculate {speculate} for method {method}: give it a prox, svd or lowrank "
                "method, and a method that drops neurons by their true values, as cats and h do"
            )
        found = setting_for(model, recipe, method, percent, asvd=asvd, progress=progress)
        at = THRESHOLDS.index("predictor")
        early = setting_for(
            model, recipe, speculate, percent, asvd=asvd, progress=progress
        ).thresholds
        found.thresholds[:, at] = early[:, at]
        return replace(found, speculate=speculate)
    out = np.zeros((n, len(THRESHOLDS)), np.float32)
    if not percent or not (m.sites or m.predicts):
        return Setting(method, 0.0, {}, out)
    if asvd and {*m.sites} & {*INPUTS}:
        raise UnsupportedError(BY_ROWS)
    plain = m.budget == "uniform" and m.score == "magnitude"
    if plain and not m.predicts and not {*m.sites} & {*INPUTS}:
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
    if model.spec.experts or not model.spec.gated:
        what = "experts" if model.spec.experts else "no gate"
        raise UsageError(f"--asvd is for gated FFNs and {model.name} has {what}; leave it out")
    return asvd(study_of(model, recipe), percent / 100)


def in_factors(model: Model, recipe: Recipe, percent: float) -> tuple[Model, Factors | None]:
    """The model with ASVD's factors multiplied out, and the factors; 0: as it is."""
    if not percent:
        return model, None
    factors = factors_for(model, recipe, percent)
    return factors.multiplied_out(model, formats_for(recipe)), factors


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
    model, factors = in_factors(model, recipe, asvd)
    progress("calibrating")
    return Study(
        model,
        formats_for(recipe),
        ids,
        ids[:0],
        study_folder(recipe, asvd),
        calibrated(model, recipe),
        progress=progress,
        factors=factors,
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
    model, factors = in_factors(open_model(recipe), recipe, asvd)
    calibration = calibrated(model, recipe)
    ids, _ = calibration_tokens(model, recipe)
    tested = evaluation_windows(model, recipe, text)
    check_unseen(calibration, tested, evaluation_text(recipe, text))
    tested = spread(tested, windows) if windows > 0 else tested
    return Study(
        model,
        formats_for(recipe),
        ids,
        tested,
        study_folder(recipe, asvd),
        calibration,
        TorchModel(model, device=device),
        progress,
        factors,
        recipe.predictors,
    )


def positions_of(spec: ModelSpec, recipe: Recipe, board: Board, kv_len: int | None) -> int:
    """Positions of the KV cache: as asked for, or what suits model and board.

    Raises:
        UsageError: more than the model was made for.
    """
    if kv_len is not None and kv_len > spec.context:
        raise UsageError(
            f"--kv-len {kv_len} is more than {recipe.name} was made for; "
            f"give --kv-len {spec.context} or less"
        )
    return kv_len or min(recipe.kv_len, board.kv_len_default, spec.context)


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
    kept = (Places(recipe.name).prices, root() / "models" / f"{recipe.name}.prices.npz")
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
    image = pack_model(model, recipe, screened=head_rows > 0)
    positions = positions_of(model.spec, recipe, board, kv_len)
    return make_plan(image, board, none, positions, ram=ram, head_rows=head_rows)


def rows_of_head(option: str, recipe: Recipe, board: Board | None = None) -> int:
    """Rows of the screened head that ``--head`` asks for, 0 for the exact head.

    ``auto``: the recipe's where the board has its weights at hand. Where they stream, the planner
    may draft tokens, which needs the exact head.

    Raises:
        UsageError: no such head.
    """
    if option != "auto":
        return head_rows(option)
    return 0 if board is None or streams(board) else head_rows(recipe.head)


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
    from sparseflash.sparsity.predict.priced import priced
    from sparseflash.sparsity.prices import Prices

    marginal = registry.method("marginal")
    check_method(marginal.name, percent)
    marginal.check(model.spec, model.name)
    check_streams(board)
    board = with_curve(board)
    dense = dense_plan(model, recipe, board, kv_len, ram, head_rows)
    if not dense["placement"]["total"]["streamed"] or not percent:
        none = np.zeros((model.spec.n_layers, len(THRESHOLDS)), np.float32)
        return Setting("dense", 0.0, {}, none, expected={"ratio": 1.0})
    study = study_of(model, recipe, progress=progress)
    prices = Prices(*model_of(study, marginal), thresholds={})
    named = [m for m in map(registry.method, recipe.predictors) if not study.ahead(m)]
    prices.predictions = [priced(study, m) for m in named]
    progress("choosing what stays in RAM")
    found = propose(model.spec, study.formats, board, dense, percent, prices)
    rules = study.rules(marginal, found.levels)
    if found.predictor is not None:
        predictions = study.rules(found.predictor, found.levels)
        for i, level in enumerate(found.levels["proxy"]):
            rules[i].proxy = predictions[i].proxy if level > 0 else None
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


def plan_of(
    image: Image,
    board: Board,
    setting: Setting,
    positions: int,
    ram: int | None = None,
    head_rows: int = 0,
    draft: int | None = None,
) -> dict[str, Any]:
    """The plan of a setting on a board."""
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
        draft,
    )
    plan["placement"] |= setting.expected
    return plan


def plan_and_generate(
    image: Image,
    board: Board,
    setting: Setting,
    recipe: Recipe,
    kv_len: int | None = None,
    ram: int | None = None,
    head_rows: int = 0,
    model: Model | None = None,
    draft: int | None = None,
) -> dict[str, Any]:
    """The C of a board, plan.json and, of ``model``, the tokenizer, as one folder."""
    places = Places(recipe.name, board.id)
    positions = positions_of(image.spec, recipe, board, kv_len)
    board = with_curve(board)
    plan = plan_of(image, board, setting, positions, ram, head_rows, draft)
    words = model.tokenizer.kept() if model is not None and model.tokenizer is not None else ""
    with alone(places.target):
        generate(plan, places.generated, board, words)
    return plan


def package_of(
    model: Model,
    recipe: Recipe,
    board: Board,
    image: Image,
    plan: dict[str, Any],
    ecosystem: str,
) -> Path:
    """The generated C as a component, with the recipe's prompt in its example."""
    words = model.tokenizer
    asked = [{"role": "user", "content": recipe.prompt}]
    tokens = [int(t) for t in words.chat(asked)] if words is not None else [1]
    example = Example(recipe.prompt if words is not None else "", tokens)
    folder = Places(recipe.name, board.id).target / "packages" / ecosystem
    target = folder / package_name(plan["name"])
    return write_package(plan, board, ecosystem, Path(image.path), target, example)


def planned_fit(
    model: Model,
    recipe: Recipe,
    board: Board,
    setting: Setting,
    kv_len: int | None = None,
    ram: int | None = None,
    head_rows: int = 0,
) -> Fit:
    """How the model would lie on a board under a setting, whether it fits or not."""
    image = pack_model(model, recipe, settings=[setting], screened=head_rows > 0)
    board = with_curve(board)
    positions = positions_of(model.spec, recipe, board, kv_len)

    def plan_on(other: Board, memory: int | None) -> dict[str, Any]:
        return plan_of(image, other, setting, positions, memory, head_rows)

    try:
        plan = plan_on(board, ram)
    except (TooSmallError, UnsupportedError) as e:

        def needs(count: int) -> dict[str, int]:
            return working_memory(image, board, count, head_rows)

        return fit_of(image, board, positions, needs(positions), str(e), needs)
    return fit_of_plan(image, board, plan, plan_on, ram)


def fit_of_plan(
    image: Image,
    board: Board,
    plan: dict[str, Any],
    again: Callable[[Board, int | None], dict[str, Any]],
    ram: int | None = None,
) -> Fit:
    """The fit report of a plan. again: the same on another board within other RAM."""
    fit = fit_of(image, board, plan["kv_len"], plan["memory"])
    fit.token = token_figures(plan, board, last_bench(plan), plan_digest(plan).hex())
    fit.step = step_worth(image, board, plan, again, ram)
    return fit


def last_bench(plan: dict[str, Any]) -> dict[str, Any] | None:
    """The last bench.json of the plan's model and board; None when there is none."""
    path = Places(plan["name"], plan["board"]).target / "bench.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def facts_of(model: Model, recipe: Recipe) -> dict[str, Any]:
    """What a model is, as plain data."""
    s, words = model.spec, model.tokenizer
    names = PROJECTIONS if s.gated else [n for n in PROJECTIONS if n != "gate"]
    weights = s.n_layers * sum(math.prod(shape_of(s, n)) for n in names)
    weights += s.vocab * s.dim * (1 if s.tied_head else 2)
    made = sorted(p.parent.parent.parent.name for p in Places(recipe.name).plans())
    return {
        "model": recipe.name,
        "title": recipe.title,
        "licence": recipe.licence,
        "family": s.family,
        "weights": weights,
        "layers": s.n_layers,
        "dim": s.dim,
        "ffn_dim": s.ffn_dim,
        "heads": s.n_heads,
        "kv_heads": s.n_kv_heads,
        "vocabulary": s.vocab,
        "context": s.context,
        "activation": s.activation.value,
        "formats": recipe.formats,
        "tokenizer": words is not None,
        "chat_template": bool(s.chat_template),
        "source": recipe.source.kind,
        "sha256": model.source.get("sha256", ""),
        "generated_for": made,
    }


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

    recipe = recipes.load_recipe(model)
    computed = rows_of_head(head, recipe)
    for method, percent in wanted:
        check_method(method, percent)
    loaded = open_model(recipe)
    ids = evaluation_windows(loaded, recipe, text, tokens, window)
    name = evaluation_text(recipe, text)
    check_unseen(calibrated(loaded, recipe), ids, name)
    asked = [setting_for(loaded, recipe, m, s, asvd=asvd) for m, s in wanted]
    image = pack_model(loaded, recipe, settings=asked, screened=computed > 0, asvd=asvd)
    host_engine(image, recipe, ids.shape[1], computed)
    progress(0)  # the time left is that of the windows
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
    m = setting.predicting
    predictor = recipe.predictors.get(m.name) if m and m.rank else None
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
    with alone(folder):
        generate(plan, folder / "gen")
        return Engine(build_library(folder / "gen", folder / "libsparseflash.so"), image)
