"""A run: from a data file to a folder with a model, its split, history and scores."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from cgnn import config as configs
from cgnn import strict
from cgnn.config import Config
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import Watch, prepare
from cgnn.data.records import SetAside
from cgnn.data.split import Split, split
from cgnn.data.split import report as split_report
from cgnn.data.tables import TableWriter, write_set_aside
from cgnn.errors import CheckpointError, ConfigError, DataError
from cgnn.files import write_json, write_text
from cgnn.model import CrystalGNN
from cgnn.model.members import Combined
from cgnn.train.checkpoint import MODEL_FILE, STATE_FILE, ModelInfo, save_model
from cgnn.train.engine import is_first_process
from cgnn.train.loop import Fitted, Indices, fit
from cgnn.train.method import Method
from cgnn.train.metrics import Baseline, evaluate
from cgnn.train.trust.assess import assessed, combined_part
from cgnn.train.trust.confidence import PART, Confidence
from cgnn.train.ways.noisy import noisy
from cgnn.train.ways.transfer import REPORT_FILE, Transfer, with_hints

Report = Callable[[dict[str, float]], None]
PARTS = ("train", "val", "test")
ENSEMBLE_FILE = "ensemble.json"
"""Stands in the folder of an ensemble and says how it is made."""
BEFORE_FIT = {
    ENSEMBLE_FILE,
    REPORT_FILE,
    "config.yaml",
    "split.json",
    "split_report.json",
    "set_aside.csv",
    "log.txt",
}
"""What stands in a run folder before the first epoch has ended."""


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run, as it lies in its folder.

    Args:
        folder: Where it lies.
        config: Its settings.
        split: The ids of each part.
        history: A row per epoch.
        metrics: Part -> target -> scores, physical units; empty until the run has finished.
        set_aside: Crystals that were not used (only known to the process that trained).
    """

    folder: Path
    config: Config
    split: Split
    history: list[dict[str, float]]
    metrics: dict[str, dict[str, dict[str, float]]]
    set_aside: tuple[SetAside, ...] = ()

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Read a run folder.

        Raises:
            CheckpointError: The folder holds no run.
        """
        folder = Path(folder)
        if not (folder / "config.yaml").is_file():
            raise CheckpointError(f"{folder}: no run: there is no config.yaml (expected a folder that train wrote)")
        return cls(
            folder=folder,
            config=configs.load(folder / "config.yaml"),
            split=Split.load(folder / "split.json"),
            history=_read_history(folder / "history.jsonl"),
            metrics=_read_metrics(folder / "metrics.json"),
        )

    @property
    def model_file(self) -> Path:
        """The model of the best epoch."""
        return self.folder / "best" / MODEL_FILE


def train(
    config: Config,
    folder: str | Path,
    resume: bool = False,
    report: Report | None = None,
    watch: Watch | None = None,
    tell: Callable[[str], None] | None = None,
    around: Callable[[Method], Method] | None = None,
) -> Run:
    """Read crystals, divide them, fit a network, score it, and leave everything in a folder.

    Args:
        config: All settings.
        folder: New or empty, unless a run is resumed.
        resume: Go on with the run in the folder; a finished one is left as it is.
        report: Called with each epoch's row of the history.
        watch: Wraps the stream of crystals while graphs are built, to show progress.
        tell: Called with lines for people, such as what a transfer has loaded.
        around: Puts something around the way of learning, such as what measures it.

    Raises:
        ConfigError: The folder holds something already, or the settings do not fit.
        DataError: The data can't be used.
    """
    folder = Path(folder)
    first = is_first_process()
    is_begun = resume and has_state(folder)
    if first:
        check_folder(folder, resume)
        if (folder / ENSEMBLE_FILE).exists():
            raise ConfigError(f"{folder}: holds an ensemble; go on with it by cgnn.train.train_ensemble")
        if resume and not is_begun:
            warnings.warn(f"{folder}: holds no training state yet; training starts from the beginning", stacklevel=2)
    config = with_hints(config, folder if is_begun else None)
    method = method_of(config, folder, resume, tell)
    method = around(method) if around else method
    crystals = begin(config, folder, first and not is_begun, watch)
    fitted = fit(config, crystals.dataset, crystals.parts, folder, resume, report, method)
    metrics = _end(fitted, crystals, folder) if first else {}
    return Run(folder, config, crystals.split, fitted.history, metrics, tuple(crystals.dataset.set_aside))


@dataclass(frozen=True)
class Divided:
    """Crystals with labels, and their parts.

    Args:
        dataset: The crystals.
        split: The ids of each part.
        parts: Indices into the data set by part.
    """

    dataset: CrystalDataset
    split: Split
    parts: dict[str, Indices]


def begin(config: Config, folder: Path, writes: bool, watch: Watch | None = None) -> Divided:
    """Read crystals and divide them; write what stands in a run folder before the first epoch.

    Args:
        config: All settings.
        folder: Run folder.
        writes: Whether the files are written: a run that can't be resumed with these settings keeps its own.
        watch: Wraps the stream of crystals while graphs are built.

    Raises:
        ConfigError: There is no data file.
        DataError: The data can't be used.
    """
    if config.pu is not None:
        raise ConfigError("pu: these settings are for positive and unlabelled crystals; use cgnn pu fit")
    if not config.data.path:
        raise ConfigError("data.path: not set; give the file, for example -o data.path=export.json.gz")
    dataset = CrystalDataset(prepare(config.data, config.graph, watch), config.targets)
    for message in dataset.labels.warnings:
        warnings.warn(message, stacklevel=3)
    summaries = dataset.summaries(config.data.split)
    parts = split(config.data.split, summaries)
    if writes:
        write_text(folder / "config.yaml", strict.dump(config))
        parts.save(folder / "split.json")
        write_json(folder / "split_report.json", split_report(parts, summaries))
        write_set_aside(folder / "set_aside.csv", dataset.set_aside)
    return Divided(dataset, parts, {part: dataset.indices(getattr(parts, part)) for part in PARTS})


def method_of(config: Config, *place: Any, **named: Any) -> Method:
    """Return the way of learning that the settings ask for; the other arguments are those of `Transfer`."""
    return noisy(config, Transfer(config, *place, **named) if config.transfer is not None else Method())


def _end(fitted: Fitted, crystals: Divided, folder: Path) -> dict[str, Any]:
    """Put what the model knows of its own errors into its file, and score it."""
    info = fitted.info
    if not (info.calibration or info.reference):  # a finished run is left as it is
        info = assessed([fitted.model], info, crystals.dataset, crystals.parts)
        save_model(folder / "best" / MODEL_FILE, [fitted.model], info)
    return score([fitted.model], info, crystals.dataset, crystals.parts, folder)


def check_folder(folder: Path, resume: bool) -> None:
    """Check that a new run does not overwrite anything.

    Raises:
        ConfigError: The folder holds something already.
    """
    if resume:
        return
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; a run is a folder, choose another --output")
    # what a run that ended before its first epoch leaves, by a misspelt setting for example, may be replaced
    if folder.exists() and {entry.name for entry in folder.iterdir()} - BEFORE_FIT:
        raise ConfigError(
            f"{folder}: is not empty and a run is never overwritten; choose another --output, "
            "remove the folder, or go on with the run in it by --resume"
        )


def has_state(folder: str | Path) -> bool:
    """Tell whether a folder holds a training state to go on with."""
    return (Path(folder) / "last" / STATE_FILE).is_file()


def score(
    members: Sequence[CrystalGNN],
    info: ModelInfo,
    dataset: CrystalDataset,
    indices: Mapping[str, Indices],
    folder: Path,
) -> dict[str, Any]:
    """Score validation and test part; write ``metrics.json`` and ``predictions.csv`` into a run folder.

    Where the model is calibrated, the test part's scores tell how true its stated errors are.

    The table of an ensemble also holds ``<target>_spread``: the standard deviation of the members' values on the
    learned scale.
    """
    targets = info.config.targets
    baselines = {name: Baseline.from_dict(value) for name, value in info.baselines.items()}
    metrics: dict[str, Any] = {}
    confidence = info.confidence()
    with TableWriter(folder / "predictions.csv", {t.name: t.unit for t in targets} | confidence.units()) as table:
        for part in ("val", "test"):
            if not len(indices[part]):
                continue
            found = combined_part(members, dataset, indices[part])
            decoded = {name: values.numpy() for name, values in found.decoded.items()}
            truth = {target.name: dataset.label(target, indices[part]) for target in targets}
            metrics[part] = evaluate(targets, truth, decoded, baselines)
            if part != PART:  # of the part that it was calibrated on, the coverage is what it must be
                for t in confidence.targets:
                    metrics[part][t.name] |= confidence.scores(t.name, truth[t.name], found.learned[t.name].arrays())
            table.add(_columns(members, dataset, indices[part], part, found, confidence))
    write_json(folder / "metrics.json", metrics)
    return metrics


def predict_part(members: Sequence[CrystalGNN], dataset: CrystalDataset, indices: Indices) -> dict[str, NDArray[Any]]:
    """Return decoded predictions of some crystals of a data set by target name."""
    return {name: values.numpy() for name, values in combined_part(members, dataset, indices).decoded.items()}


def _columns(
    members: Sequence[CrystalGNN],
    dataset: CrystalDataset,
    indices: Indices,
    part: str,
    found: Combined,
    confidence: Confidence,
) -> dict[str, Any]:
    """Return a table of a part: id, part, and per target prediction, stated error, label and the members' spread."""
    columns: dict[str, Any] = {
        "material_id": [dataset.ids[index] for index in indices],
        "part": [part] * len(indices),
    }
    cuts = np.cumsum(dataset.sizes()[0][indices])[:-1]
    for target in dataset.targets:
        values = members[0].head(target.name).columns(found.decoded[target.name].numpy())
        if target.name in found.learned:
            values |= confidence.columns(target, found.learned[target.name].arrays())
        values[f"{target.name}_true"] = dataset.label(target, indices)
        if len(members) > 1 and target.name in found.learned:
            values[f"{target.name}_spread"] = found.learned[target.name].variance_between.sqrt().numpy()
        if target.level == "atom":
            values = {name: np.split(column, cuts) for name, column in values.items()}  # type: ignore[misc]
        columns |= values
    return columns


def _read_history(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def _read_metrics(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: could not be read: {error}") from None
