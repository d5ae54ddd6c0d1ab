"""Learning curve: error on a fixed part against the number of training crystals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from cgnn.config import Config, build
from cgnn.data.dataset import CrystalDataset
from cgnn.train.loop import Indices, fit
from cgnn.train.method import Method
from cgnn.train.metrics import Baseline, evaluate
from cgnn.train.run import method_of, predict_part
from cgnn.train.ways.transfer import with_hints

Row = dict[str, float | int | str]


@dataclass(frozen=True)
class Arm:
    """One of several ways to learn from the same crystals.

    Args:
        changes: Overrides of settings, such as ``transfer.init_from=RUN``.
        method: Gives the way of learning for settings, the folder of a fit and whether it is resumed; by default
            what the settings ask for.
    """

    changes: tuple[str, ...] = ()
    method: Callable[[Config, Path, bool], Method] = method_of


PLAIN: Mapping[str, Arm] = MappingProxyType({"": Arm()})


def learning_curve(
    config: Config,
    dataset: CrystalDataset,
    parts: Mapping[str, Indices],
    sizes: Sequence[int],
    folder: str | Path,
    seeds: Sequence[int] = (0,),
    report: Callable[[Row], None] | None = None,
    methods: Mapping[str, Arm] = PLAIN,
    epochs: Callable[[int], int] | None = None,
) -> list[Row]:
    """Fit on growing parts of the training crystals and score each on the test part.

    By default every size is fitted with as many steps as the whole set would take, so that small ones are not
    merely trained less; a smaller part is contained in every larger one of the same seed. All methods see the same
    crystals.

    Args:
        config: Settings of the fits.
        dataset: Crystals with labels.
        parts: Indices under ``train``, ``val`` and ``test``.
        sizes: Numbers of training crystals.
        folder: Each fit leaves its files in a folder of its own below it; finished ones are resumed.
        seeds: Seeds of the choice of crystals and of the fit.
        report: Called with each row.
        methods: Ways of learning by name.
        epochs: Size -> epochs.

    Returns:
        A row per size, seed, method, target and score: ``size, seed, method, target, score, value, baseline``.
    """
    rows: list[Row] = []
    for seed in seeds:
        order = np.random.default_rng([seed, 1]).permutation(parts["train"])
        for size in sizes:
            subset = {"train": np.sort(order[:size]), "val": parts["val"], "test": parts["test"]}
            passes = epochs(size) if epochs else max(round(config.train.epochs * len(order) / size), 1)
            for name, arm in methods.items():
                settings = build(
                    config.model_dump(mode="json"),
                    [*arm.changes, f"train.seed={seed}", f"train.epochs={passes}"],
                )
                place = Path(folder) / name / f"size-{size}-seed-{seed}"
                for row in _fit_one(settings, dataset, subset, place, arm):
                    rows.append({"size": size, "seed": seed, "method": name, **row})
                    if report:
                        report(rows[-1])
    return rows


def _fit_one(config: Config, dataset: CrystalDataset, parts: dict[str, Indices], folder: Path, arm: Arm) -> list[Row]:
    config = with_hints(config)
    model = fit(config, dataset, parts, folder, resume=True, method=arm.method(config, folder, True)).model
    truth = {target.name: dataset.label(target, parts["test"]) for target in config.targets}
    baselines = {target.name: Baseline.fit(target, dataset.label(target, parts["train"])) for target in config.targets}
    scores = evaluate(config.targets, truth, predict_part([model], dataset, parts["test"]), baselines)
    return [
        {"target": name, "score": key, "value": value, "baseline": entries[f"baseline_{key}"]}
        for name, entries in scores.items()
        for key, value in entries.items()
        if f"baseline_{key}" in entries
    ]
