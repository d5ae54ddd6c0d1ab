"""Learning curve: error on a fixed part against the number of training crystals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cgnn.config import Config, build
from cgnn.data.dataset import CrystalDataset
from cgnn.train.loop import Indices, fit
from cgnn.train.metrics import Baseline, evaluate
from cgnn.train.run import predict_part

Row = dict[str, float | int | str]


def learning_curve(
    config: Config,
    dataset: CrystalDataset,
    parts: Mapping[str, Indices],
    sizes: Sequence[int],
    folder: str | Path,
    seeds: Sequence[int] = (0,),
    report: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Fit on growing parts of the training crystals and score each on the test part.

    Every size is fitted with as many steps as the whole set would take, so that small ones are not merely
    trained less; a smaller part is contained in every larger one of the same seed.

    Args:
        config: Settings of the fits.
        dataset: Crystals with labels.
        parts: Indices under ``train``, ``val`` and ``test``.
        sizes: Numbers of training crystals.
        folder: Each fit leaves its files in a folder of its own below it; finished ones are resumed.
        seeds: Seeds of the choice of crystals and of the fit.
        report: Called with each row.

    Returns:
        A row per size, seed, target and score: ``size, seed, target, score, value, baseline``.
    """
    rows: list[Row] = []
    for seed in seeds:
        order = np.random.default_rng([seed, 1]).permutation(parts["train"])
        for size in sizes:
            subset = {"train": np.sort(order[:size]), "val": parts["val"], "test": parts["test"]}
            settings = _as_many_steps(config, seed, len(order) / size)
            for row in _fit_one(settings, dataset, subset, Path(folder) / f"size-{size}-seed-{seed}"):
                rows.append({"size": size, "seed": seed, **row})
                if report:
                    report(rows[-1])
    return rows


def _as_many_steps(config: Config, seed: int, factor: float) -> Config:
    values = config.model_dump(mode="json")
    values["train"] |= {"seed": seed, "epochs": max(round(config.train.epochs * factor), 1)}
    return build(values)


def _fit_one(config: Config, dataset: CrystalDataset, parts: dict[str, Indices], folder: Path) -> list[Row]:
    model = fit(config, dataset, parts, folder, resume=True).model
    truth = {target.name: dataset.label(target, parts["test"]) for target in config.targets}
    baselines = {target.name: Baseline.fit(target, dataset.label(target, parts["train"])) for target in config.targets}
    scores = evaluate(config.targets, truth, predict_part([model], dataset, parts["test"]), baselines)
    return [
        {"target": name, "score": key, "value": value, "baseline": entries[f"baseline_{key}"]}
        for name, entries in scores.items()
        for key, value in entries.items()
        if f"baseline_{key}" in entries
    ]
