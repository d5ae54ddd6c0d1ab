"""What a person reads about a model and its scores: a folder of results, a description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pymatgen.core import Element

from cgnn.data.tables import TableWriter, write_set_aside
from cgnn.errors import MissingPackageError
from cgnn.files import write_json
from cgnn.predict import Evaluation, Predictor
from cgnn.train.metrics import Baseline


def write_evaluation(result: Evaluation, predictor: Predictor, folder: str | Path) -> None:
    """Write ``metrics.json``, ``predictions.csv``, ``set_aside.csv`` and a parity plot per target.

    Without matplotlib the plots are left out with a warning.
    """
    folder = Path(folder)
    write_json(folder / "metrics.json", result.metrics)
    truth = {f"{name}_true": values for name, values in result.truth.items()}
    units = {**predictor.units, **{f"{name}_true": unit for name, unit in predictor.units.items()}}
    with TableWriter(folder / "predictions.csv", units) as table:
        table.add({**result.predictions.table(), **truth})
    write_set_aside(folder / "set_aside.csv", result.predictions.set_aside)
    _plot_parity(result, predictor, folder)


def _plot_parity(result: Evaluation, predictor: Predictor, folder: Path) -> None:
    import warnings

    from cgnn import plots

    for target in predictor.model.targets:
        if target.task != "regression" or target.level != "crystal":
            continue
        baseline = Baseline.from_dict(predictor.info.baselines[target.name])
        try:
            figure = plots.parity(result.truth[target.name], result.predictions[target.name], target, baseline=baseline)
            plots.save(figure, folder / f"parity_{target.name}.png")
        except MissingPackageError as error:
            warnings.warn(f"no parity plots: {error}", stacklevel=2)
            return


def describe(predictor: Predictor) -> str:
    """Return what a model predicts, how it was made, and its scores, as text."""
    info = predictor.info
    weights = sum(p.numel() for p in predictor.model.parameters())
    graph = info.config.graph
    lines = [
        "targets      " + ", ".join(_target(t) for t in info.config.targets),
        f"network      width {info.config.model.width}, depth {info.config.model.depth}, {weights:,} weights",
        f"graphs       {graph.neighbors}, k {graph.k}, cutoff {graph.cutoff:g} Å",
        f"trained on   {info.summary.get('train', '?')} crystals, validated on {info.summary.get('val', 0)}",
        "elements     " + " ".join(Element.from_Z(z).symbol for z in info.elements),
        f"best epoch   {info.summary.get('epoch', '?')} of {info.config.train.epochs}",
        "made with    " + ", ".join(f"{name} {version}" for name, version in info.versions.items()),
    ]
    lines += [f"validation   {key.removeprefix('val_')} = {value:.4g}" for key, value in _scores(info.summary)]
    return "\n".join(lines)


def _target(target: Any) -> str:
    scale = f", learned as {target.transform}" if target.transform != "none" else ""
    return f"{target.name} ({target.unit or target.task}{scale})"


def _scores(summary: dict[str, Any]) -> list[tuple[str, float]]:
    return [(key, value) for key, value in summary.items() if key.startswith("val_")]
