"""Why depth stops paying, told from the numbers of a study.

Three causes make a deeper network worse, and each leaves its own trace: it overfits (the test error rises while the
training error does not), its gradients vanish or explode (the training error rises, and the first layer gets hardly
any, or far too large ones), or the atoms of a crystal become alike (the training error rises, and the measures collapse
in some layer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgnn.model.depth import MEASURES

Row = Mapping[str, Any]
MARGIN = 0.03
"""Share by which an error counts as larger, if it is also beyond twice its standard error."""
COLLAPSE = 0.1
"""A measure has collapsed where some layer of a deep network has less than this share of a shallow one's last."""
VANISHED = 1e-2
"""Gradients have vanished where the first layer of a deep network gets less than this share of a shallow one's."""
DEEP = 8
"""Layers of a deep network at least; others are shallow."""
EXPLODED = 1e2
"""They have exploded where it gets so many times more."""


@dataclass(frozen=True)
class Verdict:
    """What depth did to the error of one target under one remedy.

    Args:
        remedy: Name of the remedy.
        target: Name of the target.
        depths: The depths, rising.
        test: Mean test error at each.
        best: Depth with the smallest.
        rises_from: Smallest depth beyond it with a larger error; None where no error is.
        train_ratio: Training error at the worst depth beyond the best over that at the best.
        gradient_ratio: Gradient of the first layer in the first step, likewise.
        measure_ratios: The smallest value of each measure after any layer there over that after the last layer of
            the best; of the effective rank what is above one. What atoms lose midway they do not regain.
        causes: Some of ``overfitting``, ``over-smoothing``, ``vanishing gradients``, ``exploding gradients``; or that
            it is none of these.
    """

    remedy: str
    target: str
    depths: tuple[int, ...]
    test: tuple[float, ...]
    best: int
    rises_from: int | None
    train_ratio: float
    gradient_ratio: float
    measure_ratios: dict[str, float]
    causes: tuple[str, ...]

    @property
    def collapsed(self) -> tuple[str, ...]:
        """The measures that have collapsed."""
        return tuple(name for name, ratio in self.measure_ratios.items() if ratio < COLLAPSE)

    def text(self) -> str:
        """Return the verdict in words."""
        errors = dict(zip(self.depths, self.test, strict=True))
        head = f"{self.target.replace('_', ' ')}, {self.remedy}: "
        if len(self.depths) == 1:
            return f"{head}one depth only, error {errors[self.best]:.4g}"
        head += f"the error is smallest at {_layers(self.best)} ({errors[self.best]:.4g})"
        if self.rises_from is None:
            share = errors[self.depths[-1]] / errors[self.best] - 1
            more = f" (at {self.depths[-1]} it is {share:.1%} above that)" if self.depths[-1] != self.best else ""
            return f"{head} and does not rise{more}{self._beside()}"
        change = "rises too" if self.train_ratio > 1 + MARGIN else "does not rise"
        parts = [
            f"{head} and rises from {_layers(self.rises_from)}",
            f"the training error {change} (x {self.train_ratio:.2f})",
            f"the first layer's gradient x {self.gradient_ratio:.3g}",
            f"collapsed measures: {', '.join(self.collapsed) or 'none'}",
        ]
        return f"{'; '.join(parts)}: {' and '.join(self.causes)}"

    def _beside(self) -> str:
        return f"; collapsed measures all the same: {', '.join(self.collapsed)}" if self.collapsed else ""


def _layers(depth: int) -> str:
    return "1 layer" if depth == 1 else f"{depth} layers"


def verdicts(rows: Sequence[Row], targets: Sequence[str]) -> list[Verdict]:
    """Return a verdict per remedy and target, in the order of the table.

    Args:
        rows: The table of a study (`cgnn.train.depth.depth_study`).
        targets: Names of the targets.
    """
    remedies = list(dict.fromkeys(row["remedy"] for row in rows))
    return [
        _verdict([row for row in rows if row["remedy"] == remedy], remedy, name)
        for remedy in remedies
        for name in targets
    ]


def errors_by_depth(rows: Sequence[Row], column: str) -> dict[int, NDArray[np.float64]]:
    """Return depth -> the errors of its seeds, of the rows of one remedy."""
    depths = sorted({row["depth"] for row in rows})
    return {d: np.array([row[column] for row in rows if row["depth"] == d and row["layer"] == 0]) for d in depths}


def _verdict(rows: Sequence[Row], remedy: str, target: str) -> Verdict:
    test = errors_by_depth(rows, f"test_{target}")
    means = {depth: float(values.mean()) for depth, values in test.items()}
    best = min(means, key=lambda depth: means[depth])
    larger = [depth for depth in means if depth > best and _is_larger(test[depth], test[best])]
    # the worst depth shows the cause; where nothing rises, the deepest shows what has not mattered
    worst = max(larger, key=lambda depth: means[depth]) if larger else max(means)
    train = errors_by_depth(rows, f"train_{target}")
    train_ratio = _ratio(train[worst].mean(), train[best].mean())
    gradient_ratio = _ratio(_mean(rows, worst, 1, "gradient_start"), _mean(rows, best, 1, "gradient_start"))
    measures = {}
    for name in MEASURES:
        smallest = min(_mean(rows, worst, layer, name) for layer in range(1, worst + 1))
        least = 1.0 if name == "effective_rank" else 0.0
        measures[name] = _ratio(smallest - least, _mean(rows, best, best, name) - least)
    causes = _causes(train_ratio, gradient_ratio, measures) if larger else ()
    depths = tuple(means)
    errors, rises = tuple(means.values()), min(larger, default=None)
    return Verdict(remedy, target, depths, errors, best, rises, train_ratio, gradient_ratio, measures, causes)


def _is_larger(values: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Tell whether errors are larger than others in the mean, by the margin and beyond their spread."""
    noise = np.sqrt(sum(each.var(ddof=1) / len(each) for each in (values, others) if len(each) > 1))
    return bool(values.mean() - others.mean() > max(MARGIN * others.mean(), 2 * noise))


def _causes(train_ratio: float, gradient_ratio: float, measures: Mapping[str, float]) -> tuple[str, ...]:
    """Return what explains an error that has risen; two measures must have collapsed to speak of over-smoothing."""
    if train_ratio <= 1 + MARGIN:
        return ("overfitting",)
    found = []
    if sum(ratio < COLLAPSE for ratio in measures.values()) >= 2:
        found.append("over-smoothing")
    if gradient_ratio < VANISHED:
        found.append("vanishing gradients")
    if gradient_ratio > EXPLODED:
        found.append("exploding gradients")
    return tuple(found) or ("optimisation, not over-smoothing",)


def _mean(rows: Sequence[Row], depth: int, layer: int, name: str) -> float:
    return float(np.mean([row[name] for row in rows if row["depth"] == depth and row["layer"] == layer]))


def _ratio(value: float, other: float) -> float:
    return float(value / other) if other else float("nan")


@dataclass(frozen=True)
class Cure:
    """What the remedies reach at one depth, beside the best of all that are shallow.

    Args:
        target: Name of the target.
        depth: The depth.
        errors: Remedy -> mean test error there.
        shallow: Remedy and depth of the best network of fewer layers, and fewer than `DEEP`.
        shallow_error: Its mean test error.
    """

    target: str
    depth: int
    errors: dict[str, float]
    shallow: tuple[str, int]
    shallow_error: float

    def text(self) -> str:
        """Return the comparison in words."""
        best = min(self.errors, key=lambda name: self.errors[name])
        change = self.errors[best] / self.shallow_error - 1
        name, depth = self.shallow
        return (
            f"{self.target.replace('_', ' ')} at {_layers(self.depth)}: {best} is best ({self.errors[best]:.4g}), "
            f"{change:+.1%} against the best shallow one ({name}, {_layers(depth)}, {self.shallow_error:.4g})"
        )


def cures(rows: Sequence[Row], targets: Sequence[str]) -> list[Cure]:
    """Return what remedies reach at every depth from `DEEP` layers on, and at the largest; none of a single depth.

    Args:
        rows: The table of a study.
        targets: Names of the targets.
    """
    depths = sorted({row["depth"] for row in rows})
    deep = [depth for depth in depths[1:] if depth >= DEEP or depth == depths[-1]]
    return [_cure(rows, name, depth) for name in targets for depth in deep]


def _cure(rows: Sequence[Row], target: str, depth: int) -> Cure:
    remedies = list(dict.fromkeys(row["remedy"] for row in rows))
    means = {
        (remedy, each): float(values.mean())
        for remedy in remedies
        for each, values in errors_by_depth([r for r in rows if r["remedy"] == remedy], f"test_{target}").items()
    }
    there = {remedy: means[remedy, depth] for remedy in remedies if (remedy, depth) in means}
    before = {key: value for key, value in means.items() if key[1] < min(depth, DEEP)}
    best = min(before, key=lambda key: before[key])
    return Cure(target, depth, there, best, before[best])
