"""A run: from a data file to a folder with a model, its split, history and scores."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from cgnn import config as configs
from cgnn.config import Config
from cgnn.data.dataset import CrystalDataset, by_edges
from cgnn.data.prepare import Watch, prepare
from cgnn.data.records import SetAside
from cgnn.data.split import Split, split
from cgnn.data.split import report as split_report
from cgnn.data.tables import TableWriter, write_set_aside
from cgnn.errors import CheckpointError, ConfigError, DataError
from cgnn.files import write_json, write_text
from cgnn.model import CrystalGNN
from cgnn.model.members import Combined, combined
from cgnn.model.network import raw_outputs
from cgnn.train.assess import assessed
from cgnn.train.checkpoint import MODEL_FILE, STATE_FILE, ModelInfo, save_model
from cgnn.train.confidence import PART, Confidence
from cgnn.train.engine import is_first_process
from cgnn.train.loop import Fitted, Indices, fit
from cgnn.train.metrics import Baseline, evaluate

Report = Callable[[dict[str, float]], None]
PARTS = ("train", "val", "test")
BEFORE_FIT = {"config.yaml", "split.json", "split_report.json", "set_aside.csv", "log.txt"}
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
) -> Run:
    """Read crystals, divide them, fit a network, score it, and leave everything in a folder.

    Args:
        config: All settings.
        folder: New or empty, unless a run is resumed.
        resume: Go on with the run in the folder; a finished one is left as it is.
        report: Called with each epoch's row of the history.
        watch: Wraps the stream of crystals while graphs are built, to show progress.

    Raises:
        ConfigError: The folder holds something already, or the settings do not fit.
        DataError: The data can't be used.
    """
    folder = Path(folder)
    first = is_first_process()
    is_begun = resume and has_state(folder)
    if first:
        _check_folder(folder, resume)
        if resume and not is_begun:
            warnings.warn(f"{folder}: holds no training state yet; training starts from the beginning", stacklevel=2)
    if not config.data.path:
        raise ConfigError("data.path: not set; give the file, for example -o data.path=export.json.gz")
    dataset = CrystalDataset(prepare(config.data, config.graph, watch), config.targets)
    for message in dataset.labels.warnings:
        warnings.warn(message, stacklevel=2)
    summaries = dataset.summaries()
    parts = split(config.data.split, summaries)
    if first and not is_begun:  # a run that can't be resumed with these settings keeps its own
        write_text(folder / "config.yaml", configs.dump(config))
        parts.save(folder / "split.json")
        write_json(folder / "split_report.json", split_report(parts, summaries))
        write_set_aside(folder / "set_aside.csv", dataset.set_aside)
    indices = {part: dataset.indices(getattr(parts, part)) for part in PARTS}
    fitted = fit(config, dataset, indices, folder, resume, report)
    if first:
        fitted = replace(fitted, info=_assessed(fitted, dataset, indices, folder))
    metrics = _score(fitted, dataset, indices, folder) if first else {}
    return Run(folder, config, parts, fitted.history, metrics, tuple(dataset.set_aside))


def _check_folder(folder: Path, resume: bool) -> None:
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


def _assessed(fitted: Fitted, dataset: CrystalDataset, indices: Mapping[str, Indices], folder: Path) -> ModelInfo:
    """Put what the model knows of its own errors into its file."""
    if fitted.info.calibration or fitted.info.reference:
        return fitted.info  # of a finished run, which is left as it is
    info = assessed([fitted.model], fitted.info, dataset, indices)
    save_model(folder / "best" / MODEL_FILE, [fitted.model], info)
    return info


def _score(fitted: Fitted, dataset: CrystalDataset, indices: Mapping[str, Indices], folder: Path) -> dict[str, Any]:
    """Score validation and test part with the best model; write metrics and predictions."""
    targets = fitted.info.config.targets
    baselines = {name: Baseline.from_dict(value) for name, value in fitted.info.baselines.items()}
    metrics: dict[str, Any] = {}
    confidence = fitted.info.confidence()
    with TableWriter(folder / "predictions.csv", {t.name: t.unit for t in targets} | confidence.units()) as table:
        for part in ("val", "test"):
            if not len(indices[part]):
                continue
            found = combined_part([fitted.model], dataset, indices[part])
            decoded = {name: values.numpy() for name, values in found.decoded.items()}
            truth = {target.name: dataset.label(target, indices[part]) for target in targets}
            metrics[part] = evaluate(targets, truth, decoded, baselines)
            learned = {name: each.arrays() for name, each in found.learned.items()}
            if part != PART:  # of the part that it was calibrated on, the coverage is what it must be
                for t in confidence.targets:
                    metrics[part][t.name] |= confidence.scores(t.name, truth[t.name], learned[t.name])
            table.add(_columns(fitted.model, dataset, indices[part], part, decoded, confidence, learned))
    write_json(folder / "metrics.json", metrics)
    return metrics


def predict_part(members: Sequence[CrystalGNN], dataset: CrystalDataset, indices: Indices) -> dict[str, NDArray[Any]]:
    """Return decoded predictions of some crystals of a data set by target name."""
    return {name: values.numpy() for name, values in combined_part(members, dataset, indices).decoded.items()}


def combined_part(members: Sequence[CrystalGNN], dataset: CrystalDataset, indices: Indices) -> Combined:
    """Return what members say together of some crystals of a data set."""
    parts = by_edges(dataset, indices)
    return combined(members, [raw_outputs(member, (dataset.batch(part) for part in parts)) for member in members])


def _columns(
    model: CrystalGNN,
    dataset: CrystalDataset,
    indices: Indices,
    part: str,
    decoded: dict[str, NDArray[Any]],
    confidence: Confidence,
    learned: dict[str, Any],
) -> dict[str, Any]:
    """Return a table of a part: id, part, and per target prediction and label."""
    columns: dict[str, Any] = {
        "material_id": [dataset.ids[index] for index in indices],
        "part": [part] * len(indices),
    }
    cuts = np.cumsum(dataset.sizes()[0][indices])[:-1]
    for target in model.targets:
        values = model.head(target.name).columns(decoded[target.name])
        values |= confidence.columns(target, learned.get(target.name, {}))
        values[f"{target.name}_true"] = dataset.label(target, indices)
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
