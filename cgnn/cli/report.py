"""What a person reads about a model and its scores: a folder of results, a description."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element

from cgnn.config import ModelConfig
from cgnn.data.records import SetAside
from cgnn.data.tables import TableWriter, write_set_aside
from cgnn.errors import MissingPackageError
from cgnn.files import write_json
from cgnn.model import CrystalGNN
from cgnn.predict import Evaluation, Predictor
from cgnn.targets import Target
from cgnn.train.metrics import COLUMNS, Baseline, learned_unit, table
from cgnn.train.trust.calibration import LEVEL
from cgnn.train.trust.confidence import Confidence


def write_evaluation(result: Evaluation, predictor: Predictor, folder: str | Path) -> None:
    """Write ``metrics.json``, ``predictions.csv``, ``set_aside.csv``, and plots of parity and reliability by target.

    Without matplotlib the plots are left out with a warning.
    """
    folder = Path(folder)
    write_json(folder / "metrics.json", result.metrics)
    truth = {f"{name}_true": values for name, values in result.truth.items()}
    units = {**predictor.units, **{f"{t.name}_true": t.unit for t in predictor.info.config.targets}}
    with TableWriter(folder / "predictions.csv", units) as rows:
        rows.add({**result.predictions.table(), **truth})
    write_set_aside(folder / "set_aside.csv", result.predictions.set_aside)
    try:
        _plot_parity(result, predictor, folder)
        _plot_reliability(result, predictor, folder)
    except MissingPackageError as error:
        warnings.warn(f"no plots: {error}", stacklevel=2)


def _plot_parity(result: Evaluation, predictor: Predictor, folder: Path) -> None:
    from cgnn import plots

    for target in predictor.info.config.targets:
        if target.task != "regression" or target.level != "crystal":
            continue
        baseline = Baseline.from_dict(predictor.info.baselines[target.name])
        figure = plots.parity(result.truth[target.name], result.predictions[target.name], target, baseline=baseline)
        plots.save(figure, folder / f"parity_{target.name}.png")


def _plot_reliability(result: Evaluation, predictor: Predictor, folder: Path) -> None:
    from cgnn import plots

    confidence, flat = predictor.confidence, result.predictions.flat()
    for target in confidence.targets:
        truth = np.concatenate(result.truth[target.name]) if target.level == "atom" else result.truth[target.name]
        if not np.isfinite(truth).any():
            continue
        learned, calibration = flat[target.name], confidence.calibrations[target.name]
        sigma = confidence.sigma(target.name, learned)
        figure = plots.reliability(truth, learned["value"], sigma, target, calibration)
        plots.save(figure, folder / f"reliability_{target.name}.png")


def architecture(predictor: Predictor) -> str:
    """Return the size of a network, or of its trees; of members of several forms that of each form."""
    return " or ".join(dict.fromkeys(map(_size, predictor.members)))


def _size(network: CrystalGNN) -> str:
    model = network.config
    names = model.hints.names if model.hints else []
    if model.is_fitted_at_once:
        seen = [", ".join(model.descriptors)] if model.descriptors else []
        seen += [f"the features of a network of width {model.width}, depth {model.depth}"] if model.depth else []
        seen += [f"those of the network of {', '.join(names)} inside it"] if names else []
        return f"{_fitted(model)} over {' and '.join(seen)}"
    weights = sum(parameter.numel() for parameter in network.parameters())
    hints = f"; inside it, unchanged, the network that it started from gives hints: {', '.join(names)}"
    return f"width {model.width}, depth {model.depth}, {weights:,} weights{hints if names else ''}"


def _fitted(model: ModelConfig) -> str:
    if model.head == "trees":
        return f"{model.trees} trees of up to {model.leaves} leaves"
    return f"kernel ridge regression (length {model.length:g}, ridge {model.ridge:g})"


def describe(predictor: Predictor) -> str:
    """Return what a model predicts, how it was made, and its scores, as text."""
    info = predictor.info
    count = len(predictor.members)
    graph = info.config.graph
    lines = [
        "targets      " + ", ".join(_target(t) for t in info.config.targets),
        f"network      {architecture(predictor)}",
        *([f"members      {count}, by {info.summary.get('by', '?')}; a prediction is their mean"] if count > 1 else []),
        f"graphs       {graph.neighbors}, k {graph.k}, cutoff {graph.cutoff:g} Å",
        f"trained on   {info.summary.get('train', '?')} crystals, validated on {info.summary.get('val', 0)}",
        "data         " + ", ".join(str(value) for key, value in info.source.items() if key != "init_from"),
        *([f"started from {info.source['init_from']}"] if "init_from" in info.source else []),
        "elements     " + " ".join(Element.from_Z(z).symbol for z in info.elements),
        *(f"{'calibrated' if n == 0 else '':12} {text}" for n, text in enumerate(_calibrated(predictor.confidence))),
        f"best epoch   {_epochs(info.summary)} of {info.config.epochs}",
        "made with    " + ", ".join(f"{name} {version}" for name, version in info.versions.items()),
    ]
    scores = _validation(info.summary, info.config.targets)
    return "\n".join(lines) + (f"\n\nvalidation\n{_aligned(scores)}" if scores else "")


def cv_text(result: Mapping[str, Mapping[str, Mapping[str, Any]]], targets: Sequence[Target]) -> str:
    """Return the scores of a cross-validation, mean and standard deviation over the folds, as aligned text.

    Args:
        result: Target -> score -> ``mean``, ``std`` and values of the ``folds``.
        targets: What was predicted.
    """
    means, spreads = (
        table(
            {name: {key: float(value[which]) for key, value in scores.items()} for name, scores in result.items()},
            targets,
        )
        for which in ("mean", "std")
    )
    rows = [
        (name, score, mean, f"± {spread[2]}", baseline, unit)
        for (name, score, mean, baseline, unit), spread in zip(means, spreads, strict=True)
    ]
    return _aligned([("target", "score", "mean", "std", "baseline", "unit"), *rows])


def read_set_aside(path: str | Path) -> list[SetAside]:
    """Read what `write_set_aside` wrote."""
    with open(path, encoding="utf-8", newline="") as handle:
        return [SetAside(**row) for row in csv.DictReader(handle)]


def _epochs(summary: Mapping[str, Any]) -> str:
    """Return the best epoch, or that of each member."""
    return ", ".join(map(str, summary["epochs"])) if "epochs" in summary else str(summary.get("epoch", "?"))


def _calibrated(confidence: Confidence) -> list[str]:
    """Return how errors are known, a line each: for every calibrated target, and for the distance from training."""
    lines = []
    for target in confidence.targets:
        calibration = confidence.calibrations[target.name]
        weighed = {"members": calibration.between, "learned spread": calibration.within}
        names = [name for name, coefficient in weighed.items() if coefficient > 0]
        constant = f"± {calibration.constant:.3g} {learned_unit(target)}".rstrip()
        width = f"by {' and '.join(names)}" if names else constant
        lines.append(
            f"{target.name}: {LEVEL:.0%} interval on {calibration.count} labels of the validation part, {width}"
        )
    if confidence.novelty:
        lines.append(f"distance from training by {len(confidence.novelty.points)} points; above 1 is far")
    return lines or ["no: there were too few labels in a validation part"]


def _target(target: Target) -> str:
    scale = f", learned as {target.transform}" if target.transform != "none" else ""
    return f"{target.name} ({target.unit or target.task}{scale})"


def _validation(summary: Mapping[str, Any], targets: Sequence[Target]) -> list[tuple[str, ...]]:
    """Return the scores of the best epoch as rows below a header; none without a validation part."""
    found = {target.name: _below(summary, f"val_{target.name}_", targets) for target in targets}
    rows = [(name, score, value, unit) for name, score, value, _, unit in table(found, targets)]
    header = tuple(column for column in COLUMNS if column != "baseline")
    return [header, *rows] if rows else []


def _below(summary: Mapping[str, Any], prefix: str, targets: Sequence[Target]) -> dict[str, float]:
    """Return the entries of one target, whose name may begin like another's."""
    longer = [f"val_{t.name}_" for t in targets if len(t.name) + len("val__") > len(prefix)]
    keys = [key for key in summary if key.startswith(prefix) and not any(key.startswith(other) for other in longer)]
    return {key.removeprefix(prefix): float(summary[key]) for key in keys}


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
