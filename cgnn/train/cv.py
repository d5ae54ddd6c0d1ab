"""Cross-validation: one run per fold, mean and spread over the folds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cgnn.config import Config, build
from cgnn.errors import CheckpointError
from cgnn.files import write_json
from cgnn.train.run import Report, Run, train


def cross_validate(
    config: Config,
    folder: str | Path,
    folds: int = 5,
    resume: bool = False,
    report: Callable[[int], Report] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Train and test on each of k folds.

    Leaves a run in ``fold-0``, ``fold-1``, ... and ``cv.json`` with, for each target and score, the value of
    every fold, their mean and their standard deviation (n - 1).

    Args:
        config: Settings; the split becomes ``kfold`` with the same seed and validation share.
        folder: New or empty, unless resumed: then finished folds are kept.
        folds: Number of folds k.
        resume: Go on where an earlier call stopped.
        report: Gives, for a fold, what is called with each epoch's row.
    """
    folder = Path(folder)
    runs = [_fold(config, folder, folds, fold, resume, report) for fold in range(folds)]
    result = _summary(runs)
    write_json(folder / "cv.json", result)
    return result


def _fold(
    config: Config,
    folder: Path,
    folds: int,
    fold: int,
    resume: bool,
    report: Callable[[int], Report] | None,
) -> Run:
    values = config.model_dump(mode="json")
    values["data"]["split"] |= {"method": "kfold", "folds": folds, "fold": fold, "test": 0.0}
    settings = build(values)
    place = folder / f"fold-{fold}"
    if resume and (place / "metrics.json").exists():
        run = Run.load(place)
        if run.config != settings:
            raise CheckpointError(f"{place}: was made with other settings; choose another --output")
        return run
    return train(settings, place, resume and place.exists(), report(fold) if report else None)


def _summary(runs: list[Run]) -> dict[str, dict[str, dict[str, Any]]]:
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for name, scores in runs[0].metrics["test"].items():
        summary[name] = {}
        for key in scores:
            values = [run.metrics["test"][name][key] for run in runs if key in run.metrics["test"][name]]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            summary[name][key] = {"mean": float(np.mean(values)), "std": spread, "folds": values}
    return summary
