"""Smooth or jumping, told from the numbers of a probe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cgnn.data.labels import label_of
from cgnn.data.records import Record
from cgnn.errors import DataError
from cgnn.predict.probing.probe import AMPLITUDES, Response, Values
from cgnn.targets import Target


@dataclass(frozen=True)
class Smoothness:
    """How one target answers to small changes, by one way of finding neighbours.

    Args:
        neighbors: Whose values.
        target: Name of the target.
        unit: Of its learned scale.
        paths: Number of paths.
        jumps: How many of them have a jump.
        largest: The path with the largest jump, or where there is none, with the largest change of all.
        small: Largest change under the smallest amplitude.
        usual: Median change under the largest amplitude.
        error: Mean absolute error on crystals with labels; None where there are none.
    """

    neighbors: str
    target: str
    unit: str
    paths: int
    jumps: int
    largest: Response
    small: float
    usual: float
    error: float | None

    def text(self) -> str:
        """Return it in words."""
        unit = f" {self.unit}" if self.unit else ""
        head = f"{self.target.replace('_', ' ')}, {self.neighbors}: "
        if self.jumps:
            at = self.largest.roughness
            head += (
                f"jumps on {self.jumps} of {self.paths} paths, the largest by {at.jump:.2g}{unit} "
                f"({self.largest.material_id}, {self.largest.perturbation.replace('_', ' ')}, after {at.at:.2g} Å)"
            )
        else:
            head += f"smooth, no jump on {self.paths} paths"
        head += f"; {AMPLITUDES[0]:g} Å changes it by at most {self.small:.1g}{unit}"
        head += f", {AMPLITUDES[-1]:g} Å by {self.usual:.2g} in the median"
        return head if self.error is None else f"{head}; mean absolute error {self.error:.3g}{unit}"


def verdicts(
    responses: Sequence[Response], errors: Mapping[str, Mapping[str, float]] | None = None
) -> list[Smoothness]:
    """Return a verdict for each target and way of finding neighbours.

    Args:
        responses: What a probe found.
        errors: Way of finding neighbours -> target -> mean absolute error.
    """
    groups: dict[tuple[str, str], list[Response]] = {}
    for each in responses:
        groups.setdefault((each.target, each.neighbors), []).append(each)
    return [_verdict(group, (errors or {}).get(name, {}).get(target)) for (target, name), group in groups.items()]


def _verdict(group: Sequence[Response], error: float | None) -> Smoothness:
    first = group[0]
    jumping = [each for each in group if each.is_jump]
    largest = max(jumping, key=lambda each: each.roughness.jump) if jumping else max(group, key=lambda e: e.changes)
    changes = np.array([each.changes for each in group])
    small, usual = float(changes[:, 0].max()), float(np.median(changes[:, -1]))
    return Smoothness(first.neighbors, first.target, first.unit, len(group), len(jumping), largest, small, usual, error)


def errors_of(values: Values, records: Iterable[Record]) -> dict[str, float]:
    """Return the mean absolute error of each regression target of whole crystals, learned scale, where labels are.

    Args:
        values: Whose values.
        records: Crystals, such as the values can be computed of.
    """
    misses: dict[str, list[float]] = {}
    for record in records:
        found = values([record.crystal])
        for target in values.targets:
            label = _label(target, record)
            if np.isfinite(label):
                misses.setdefault(target.name, []).append(abs(float(found[target.name][0, 0]) - label))
    return {name: float(np.mean(each)) for name, each in misses.items()}


def _label(target: Target, record: Record) -> float:
    """Return a label on the learned scale, nan where it is unknown, of no use, or not one number."""
    if target.task != "regression" or target.level != "crystal":
        return math.nan
    try:
        return float(target.to_learned(label_of(target, record.values, len(record.crystal)))[0])
    except DataError:
        return math.nan
