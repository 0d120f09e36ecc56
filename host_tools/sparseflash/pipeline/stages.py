"""The stages, one artefact each, under ``build/``; the command line and the tests call these.

build/models/<model>/    model.sfm, calibration.npz and .json, libsparseflash.so, perplexity.*
build/<board>/<model>/   plan.json, gen/, firmware, flashed/, bench.*
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseflash.base.errors import InputError, MismatchError, UnsupportedError, UsageError
from sparseflash.base.files import work, write_json
from sparseflash.codegen.build import build_firmware, build_library
from sparseflash.codegen.generate import generate
from sparseflash.device.emulator import EmulatorProcess
from sparseflash.device.host_board import HostProcess
from sparseflash.device.link.client import Device
from sparseflash.device.runners import Files, flash_files, reply_seconds, start_board
from sparseflash.image.factors import BY_ROWS, Factors
from sparseflash.image.reference import INPUTS, SITES, THRESHOLDS, Reference
from sparseflash.image.sfm import Formats, Image, pack
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.model.load import load_model
from sparseflash.model.recipes import Recipe, fetch, fetch_tokenizer
from sparseflash.model.spec import Model
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.placement import Use, use_of
from sparseflash.plan.plan import make_plan, plan_digest
from sparseflash.sparsity import registry
from sparseflash.sparsity.calibrate import (
    DEFAULT_TEXTS,
    DEFAULT_TOKENS,
    DEFAULT_WINDOW,
    Calibration,
    calibrate,
    calibration_windows,
)
from sparseflash.sparsity.neuron_order import load_order, measure_order, save_order

if TYPE_CHECKING:
    from sparseflash.sparsity.masks import LayerRules
    from sparseflash.sparsity.study import Study

DEVICE_METHODS = tuple(m.name for m in registry.METHODS.values() if m.device)
"""Methods that thresholds of a layer express."""
NEURONS = ("gate", "act", "up", "h")
"""Sites of true values that drop neurons."""


@dataclass(frozen=True)
class Places:
    """Paths of one model, and of it on one board."""

    model: str
    board: str = "host"

    @property
    def folder(self) -> Path:
        return work() / "build" / "models" / self.model

    @property
    def image(self) -> Path:
        """The image in the layout that the board asks for."""
        return self.image_of(load_board(self.board).raw.get("layout", "joint"))

    def image_of(self, layout: str, screened: bool = False, asvd: float = 0.0) -> Path:
        """model.sfm, and its twins of another layout, with a head proxy or in factors."""
        names = ["model", *([layout] * (layout != "joint")), *(["screened"] * screened)]
        return self.folder / ".".join([*names, *([f"asvd{asvd:g}"] * (asvd > 0)), "sfm"])

    def planned_image(self) -> Path:
        """The image that the plan was made for."""
        return self.folder / str(read_plan(self.plan)["image"]["file"])

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration.npz"

    @property
    def target(self) -> Path:
        return work() / "build" / self.board / self.model

    @property
    def plan(self) -> Path:
        return self.target / "plan.json"

    @property
    def firmware(self) -> Path:
        return self.target / "firmware"

    @property
    def flashed(self) -> Path:
        return self.target / "flashed"


def open_model(recipe: Recipe) -> Model:
    """Downloads if needed and loads; the model takes the recipe's name."""
    model = load_model(fetch(recipe), fetch_tokenizer(recipe))
    model.name = recipe.name
    return model


def formats_for(recipe: Recipe, settings: Sequence[Setting] = ()) -> Formats:
    """The grids of the recipe's weights, stored as the methods need them.

    Raises:
        UsageError: one image cannot serve all of them.
    """
    f = recipe.formats
    needs = {(s.guess, s.columns, s.guessed) for s in settings} - {(None, (), ())}
    if len({(m and (m.proxy or m.name), *rest) for m, *rest in needs}) > 1:
        raise UsageError(
            "one image has proxies of one width, one predictor or one set of matrices by columns; "
            "ask for one prox, one predictor, one teal or marginal at one sparsity at a time"
        )
    m, columns, guessed = needs.pop() if needs else (None, (), ())
    guess, rank, signs = (m.proxy, m.rank, m.signs) if m else (0, 0, False)
    # Its rows take fewer instructions than its columns where no neuron is dropped.
    rows = f["ffn"] == "r8" and settings and not any(s.drops_neurons for s in settings)
    return Formats(
        f["attn"],
        f["ffn"],
        f["embed"],
        guess=guess,
        signs=signs,
        rank=rank,
        guessed=guessed,
        down="rows" if rows else "columns",
        columns=columns,
    )


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


def calibration_settings(recipe: Recipe) -> dict[str, Any]:
    """texts, tokens, window and seed: the recipe's, and defaults for the rest."""
    return {
        "texts": DEFAULT_TEXTS,
        "tokens": DEFAULT_TOKENS,
        "window": DEFAULT_WINDOW,
        "seed": 1,
        **recipe.calibration,
    }


def calibration_tokens(
    model: Model, recipe: Recipe, seed: int = 0, tokens: int = 0
) -> tuple[np.ndarray, dict[str, str]]:
    """Calibration windows (n, tokens) and the SHA-256 of their texts; ``seed`` draws others."""
    settings = calibration_settings(recipe)
    return calibration_windows(
        model,
        list(settings["texts"]),
        tokens or int(settings["tokens"]),
        int(settings["window"]),
        seed or int(settings["seed"]),
    )


def check_method(method: str, percent: float) -> None:
    """Refuses a method that does not exist or that no device runs, and a sparsity out of range."""
    if not registry.method(method).device:
        raise UsageError(
            f"method {method!r} is measured on the host only (make sparsity); a device runs "
            f"{', '.join(DEVICE_METHODS)}"
        )
    if not 0 <= percent < 100:
        raise UsageError(f"sparsity {percent:g} is out of range; give 0 up to below 100 percent")


@dataclass(frozen=True)
class Setting:
    """A method at a sparsity on one model."""

    method: str
    percent: float
    levels: dict[str, np.ndarray]
    """Share dropped by site, and by ``proxy`` or predictor, (layers,) each; empty is dense."""
    thresholds: np.ndarray
    """float32 (layers, 12), in the order of THRESHOLDS."""
    speculate: str = ""
    """Method whose guess only reads early what the mask may ask for."""
    use: Use | None = None
    """Shares of rows that a token reads, where they were measured."""
    expected: dict[str, float] = field(default_factory=dict)
    """Of the planner: ``ratio`` of perplexity to dense and its error, measured; what the model of
    the loss predicted, now and with a megabyte more; numbers of layers by what stays whole."""
    predictor: str = ""
    """Method whose predictor picks the neurons of layers with a level ``proxy``."""

    @property
    def guess(self) -> registry.Method | None:
        """The method whose proxies or predictor the image needs."""
        m = registry.method(self.speculate or self.predictor or self.method)
        return m if self.levels and m.guess else None

    @property
    def guessed(self) -> tuple[bool, ...]:
        """``Formats.guessed``: not all layers use the predictor of a plan."""
        return tuple(bool(v > 0) for v in self.levels["proxy"]) if self.predictor else ()

    @property
    def drops_neurons(self) -> bool:
        return self.guess is not None or bool({*NEURONS} & {*self.levels})

    @property
    def columns(self) -> tuple[str, ...]:
        """What the image stores by columns: ``Formats.columns``."""
        from sparseflash.sparsity.bytes import columns_of

        return columns_of(self.levels)


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
    study = study_of(model, recipe, asvd)
    levels = study.levels(m, percent / 100)
    return Setting(method, percent, levels, thresholds_of(study.rules(m, levels)))


def thresholds_of(layers: Sequence[LayerRules]) -> np.ndarray:
    """What the rules of every layer compare with, float32 (layers, 12)."""
    out = np.zeros((len(layers), len(THRESHOLDS)), np.float32)
    for i, rules in enumerate(layers):
        for site, rule in rules.sites.items():
            out[i, THRESHOLDS.index(site)] = rule.threshold
        if rules.proxy is not None:
            out[i, THRESHOLDS.index("guess")] = rules.proxy.rule.threshold
    return out


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


def curve_path(board: Board) -> Path:
    return work() / "build" / board.id / "flash_curve.json"


def with_curve(board: Board) -> Board:
    """The board with the gap that its measured read cost pays for, when it was measured."""
    if "stream" not in board.raw or not curve_path(board).is_file():
        return board
    curve = json.loads(curve_path(board).read_text())
    stream = board.raw["stream"] | {"gap": int(curve["gap"]), "curve": curve}
    return replace(board, raw=board.raw | {"stream": stream})


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


def read_plan(path: Path) -> dict[str, Any]:
    """A plan.json. Raises InputError when it is damaged."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: no readable plan ({e}); run make generate flash again") from e
    if not isinstance(plan, dict) or not {"model_sha", "thresholds", "memory", "image"} <= set(
        plan
    ):
        raise InputError(f"{path}: not a plan; run make generate flash again")
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


class Session:
    """A device under its plan: starts its process, or opens ``port``. A context manager."""

    def __init__(self, model: str, board_id: str, port: str | None = None) -> None:
        self.board = board = load_board(board_id)
        places = Places(model, board_id)
        plan_path = places.flashed / "plan.json"
        if not plan_path.is_file():
            raise UsageError(
                f"{model} is not flashed on {board_id}; run make generate flash BOARD={board_id} "
                f"MODEL={model}"
            )
        self.plan: dict[str, Any] = read_plan(plan_path)
        self.image = Image(places.flashed / "model.sfm")
        self._process: HostProcess | EmulatorProcess | None = None
        if port is None:
            self._process = start_board(board, places.flashed)
            if self._process is None:
                raise UsageError(f"board {board_id} needs PORT=, the serial port it is on")
            port = self._process.url
        timeout = reply_seconds(board)
        sha, digest = self.image.sha256, plan_digest(self.plan)
        try:
            if isinstance(self._process, EmulatorProcess):
                self.device = Device.connect(self._process.port, port, sha, digest, timeout)
            else:
                self.device = Device.open(port, sha, digest, timeout=timeout)
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.device.close()
        self._stop()

    @property
    def thresholds(self) -> np.ndarray:
        """Those of the mask: a guess that only reads early has none."""
        out = np.array(self.plan["thresholds"], np.float32)
        if self.plan.get("speculate"):
            out[:, THRESHOLDS.index("guess")] = 0
        return out


@dataclass
class Difference:
    """The first place where the device and the reference part."""

    position: int
    layer: int
    site: str
    index: int
    device: float
    reference: float

    def __str__(self) -> str:
        return (
            f"position {self.position}, layer {self.layer}, site {self.site}[{self.index}]: "
            f"device {self.device!r}, reference {self.reference!r}"
        )


def validate(
    device: Device,
    image: Image,
    ids: np.ndarray,
    thresholds: np.ndarray,
    progress: Any = None,
    head_rows: int = 0,
) -> Difference | None:
    """Compares every site of every layer and all logits of ``ids`` bit by bit."""
    want = Reference(image).run(ids, thresholds, head_rows=head_rows)
    hashes = want.hashes()
    device.reset()
    device.trace(True)
    for p, token in enumerate(ids):
        device.step(int(token))
        wrong = np.argwhere(device.read_trace() != hashes[p])
        if len(wrong):
            layer, site = (int(v) for v in wrong[0])
            return _locate(device, want.sites[layer][SITES[site]][p], ids[: p + 1], layer, site)
        logits = device.logits()
        bad = np.flatnonzero(logits.view(np.uint32) != want.logits[p].view(np.uint32))
        if len(bad):
            i = int(bad[0])
            return Difference(
                p, image.spec.n_layers, "logits", i, float(logits[i]), float(want.logits[p][i])
            )
        if progress is not None:
            progress(p + 1)
    device.trace(False)
    return None


def _locate(device: Device, want: np.ndarray, ids: np.ndarray, layer: int, site: int) -> Difference:
    """Runs the sequence again and fetches the values of the site that differs."""
    device.reset()
    device.tap(layer, site)
    device.prefill([int(i) for i in ids])
    got = device.read_tap()
    bad = np.flatnonzero(got.view(np.uint32) != np.ascontiguousarray(want).view(np.uint32))
    i = int(bad[0]) if len(bad) else 0
    return Difference(len(ids) - 1, layer, SITES[site], i, float(got[i]), float(want[i]))


def host_engine(
    image: Image, recipe: Recipe, kv_len: int | None = None, head_rows: int = 0
) -> Engine:
    """The generated C of the board ``host`` as a shared library in this process."""
    folder = Places(recipe.name).folder
    positions, dense = kv_len or recipe.kv_len, dense_thresholds(image)
    plan = make_plan(image, load_board("host"), dense, positions, head_rows=head_rows)
    generate(plan, folder / "gen")
    return Engine(build_library(folder / "gen", folder / "libsparseflash.so"), image)
