"""A study of depth: the same crystals, networks of several depths, with and without remedies."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import orjson
import torch

from cgnn import config as configs
from cgnn import strict
from cgnn.config import Config, DepthConfig, build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.engines.choice import processors
from cgnn.data.prepare import Watch
from cgnn.errors import CheckpointError, ConfigError, NumericsError, choose
from cgnn.files import write_json
from cgnn.model import CrystalGNN
from cgnn.model.remedies import REMEDIES
from cgnn.train.checkpoint import load_model
from cgnn.train.depth.table import Row, rows_of, write_table
from cgnn.train.depth.watch import measurable, watching
from cgnn.train.ensembles.member import Member
from cgnn.train.ensembles.on_cluster import on_ray
from cgnn.train.ensembles.side_by_side import Group, Parts, Report, in_processes, one_by_one
from cgnn.train.metrics import evaluate
from cgnn.train.run import begin, check_folder, predict_part, train

FITS, FIT_FILE, TABLE = "fits", "depth.json", "depth.csv"
TRAIN_SCORED = 2000
"""So many training crystals at most tell the training error."""


@dataclass(frozen=True)
class Study:
    """A study, or as much of it as is done.

    Args:
        folder: Where it lies.
        config: Its settings.
        rows: The table, a row per depth, remedy, seed and layer (0: the embedding).
        failed: Name of a fit that has no rows, because its numbers became infinite -> what was said of it.
    """

    folder: Path
    config: Config
    rows: list[Row]
    failed: dict[str, str]


class Fit(Member):
    """One network of a study.

    Args:
        number: Its number, from 0.
        config: Its settings.
        remedy: Name of its remedy.
    """

    def __init__(self, number: int, config: Config, remedy: str) -> None:
        super().__init__(number, config.train.seed)
        self.config, self.remedy = config, remedy

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.remedy}-depth-{self.config.model.depth}-seed-{self.config.train.seed}"


SIDE_BY_SIDE: dict[str, Callable[[Group], None]] = {"serial": one_by_one, "processes": in_processes, "ray": on_ray}
"""How the fits of a study share a machine or, with ``ray``, a cluster; all leave the same table."""


def depth_study(
    config: Config,
    folder: str | Path,
    resume: bool = False,
    workers: int = 0,
    report: Callable[[str], Report] | None = None,
    watch: Watch | None = None,
    side_by_side: str = "auto",
) -> Study:
    """Fit networks of all depths, remedies and seeds of ``depth``, and leave ``depth.csv``.

    Each fit is a run in a folder below ``fits``; a fit that was interrupted goes on where it stood. The table is
    written anew after each fit.

    Args:
        config: All settings.
        folder: New or empty, unless resumed.
        resume: Go on where an earlier call stopped.
        workers: Fits side by side, each in a process with one thread; 0 means one for each processor.
        report: Gives, for the name of a fit, what is called with each epoch's row.
        watch: Wraps the stream of crystals while graphs are built.
        side_by_side: Entry of `SIDE_BY_SIDE`, or ``auto``: processes, and on a GPU one after another.

    Raises:
        ConfigError: The folder holds something already, or the settings do not fit.
        CheckpointError: The folder holds a study with other settings.
        Stopped: A signal arrived; the states are saved.
    """
    folder = Path(folder)
    choose({"auto": None, **SIDE_BY_SIDE}, side_by_side, "way to fit side by side")
    fits = planned(config)
    check_folder(folder, resume)
    _check_same(config, folder)
    crystals = begin(config, folder, True, watch)
    missing = [name for name in ("val", "test") if not len(crystals.parts[name])]
    if missing:
        raise ConfigError(
            f"data.split.{missing[0]}: a study of depth needs crystals to choose epochs by and to test on"
        )
    if not len(measurable(crystals.dataset, crystals.parts["test"], 1)):
        raise ConfigError("data: no crystal of the test part has two inequivalent sites, nothing can be measured")
    left = tuple(fit for fit in fits if not (folder / FITS / fit.name / FIT_FILE).exists())
    names = [fit.name for fit in fits]

    def note(number: int) -> bool:
        written(config, folder)
        return False

    group = Group(config, crystals.dataset, crystals.parts, folder / FITS, left, workers or processors(), work=_fit)
    group = replace(group, enough=note)
    if report is not None:
        group = replace(group, report=lambda number: report(names[number]))
    if side_by_side == "auto":
        is_on_cpu = config.train.device == "cpu" or not torch.cuda.is_available()
        side_by_side = "processes" if is_on_cpu and group.workers > 1 and len(left) > 1 else "serial"
    SIDE_BY_SIDE[side_by_side](group)
    return written(config, folder)


def finished(config: Config, folder: str | Path) -> Study:
    """Return what is done of a study, in the order of its fits; its rows may be none.

    Args:
        config: All settings.
        folder: Where it lies.
    """
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for fit in planned(config):
        place = Path(folder) / FITS / fit.name
        if not (place / FIT_FILE).exists():
            continue
        found = orjson.loads((place / FIT_FILE).read_bytes())
        if "failed" in found:
            failed[fit.name] = found["failed"]
        else:
            rows += rows_of(place, fit.config, fit.remedy, found)
    return Study(Path(folder), config, rows, failed)


def written(config: Config, folder: Path) -> Study:
    """Return what is done of a study, after writing its table anew."""
    study = finished(config, folder)
    if study.rows:
        write_table(folder / TABLE, study.rows)
    return study


def _check_same(config: Config, folder: Path) -> None:
    """Check that a study that is there has the same settings; depths, remedies and seeds may be added."""
    if not (folder / "config.yaml").is_file():
        return
    changed = strict.differences(configs.load(folder / "config.yaml"), config)
    lines = [f"{key} was {old!r}, is {new!r}" for key, (old, new) in changed.items() if key not in _GROWING]
    if lines:
        raise CheckpointError(f"{folder}: can't resume with other settings: {'; '.join(lines)}")


_GROWING = {"depth.depths", "depth.remedies", "depth.seeds"}


def planned(config: Config) -> tuple[Fit, ...]:
    """Return the fits of a study: all depths and remedies with the first seed, shallow ones first, then the next seed.

    Raises:
        ConfigError: No such remedy, or settings that a study can't have.
    """
    study = config.depth or DepthConfig()
    for remedy in study.remedies:
        choose(REMEDIES, remedy, "remedy")
    if config.model.remedy != "none":
        raise ConfigError("model.remedy: a study of depth sets it itself; name it under depth.remedies")
    fits: list[Fit] = []
    widths: dict[tuple[int, str], int] = {}
    for seed, depth, remedy in product(study.seeds, study.depths, study.remedies):
        values = config.model_dump(mode="json") | {"depth": None}
        values["model"] |= _layers(remedy) | {"depth": depth}
        values["train"] |= {"seed": seed, "threads": config.train.threads or 1}
        if study.fixed == "parameters":
            if (depth, remedy) not in widths:
                widths[depth, remedy] = width_for(build(values), parameters(config))
            values["model"]["width"] = widths[depth, remedy]
        fits.append(Fit(len(fits), build(values), remedy))
    return tuple(fits)


def _layers(remedy: str) -> Row:
    """Return the settings of a network with a remedy; ``none`` and ``residual`` are the two ways without any."""
    if remedy in ("none", "residual"):
        return {"residual": remedy == "residual", "remedy": "none"}
    return {"residual": True, "remedy": remedy}


def parameters(config: Config) -> int:
    """Return the number of weights that a network of some settings learns."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CrystalGNN(config.model, config.targets).parameters())


def width_for(config: Config, wanted: int) -> int:
    """Return the width at which a network has the number of weights that is nearest to the wanted one."""

    def count(width: int) -> int:
        return parameters(config.model_copy(update={"model": config.model.model_copy(update={"width": width})}))

    low, high = 1, 2
    while count(high) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < wanted else (low, middle)
    return min((low, high), key=lambda width: abs(count(width) - wanted))


def _fit(
    config: Config, dataset: CrystalDataset, parts: Parts, folder: Path, report: Report | None, member: Member
) -> None:
    """Fit one network of a study in a folder of its own name, or note that its numbers became infinite."""
    assert isinstance(member, Fit)
    place = folder.parent / member.name
    study = config.depth or DepthConfig()
    crystals = measurable(dataset, parts["test"], study.crystals)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say of the data was said once, for all fits
        try:
            run = train(member.config, place, True, report, around=watching(dataset, crystals, place))
        except NumericsError as error:  # deep networks without a remedy may: the others go on
            write_json(place / FIT_FILE, {"failed": str(error)})
            return
    (model,), info = load_model(run.model_file)
    some = parts["train"]
    if len(some) > TRAIN_SCORED:
        some = np.sort(np.random.default_rng(5).choice(some, TRAIN_SCORED, replace=False))
    truth = {target.name: dataset.label(target, some) for target in config.targets}
    scores = evaluate(config.targets, truth, predict_part([model], dataset, some), {})
    write_json(
        place / FIT_FILE,
        {
            "train": scores,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "crystals": len(crystals),
            "best_epoch": info.summary["epoch"],
            "seconds": sum(row["seconds"] for row in run.history),
        },
    )
