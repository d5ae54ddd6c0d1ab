"""Ratios of two ways of doing the same work, measured in one run, turn by turn."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """The baseline's time over ours.

    Args:
        work: What is done.
        against: What the baseline is.
        unit: Of the two times, such as "ms per crystal".
        baseline: The baseline's best time.
        ours: Our best time.
        ratio: Of the two.
        low: Smallest ratio of a single round.
        high: Largest ratio of a single round.
        rounds: How many.
        floor: What must be reached, None where nothing was set.
        note: What else to know.
    """

    work: str
    against: str
    unit: str
    baseline: float
    ours: float
    ratio: float
    low: float
    high: float
    rounds: int
    floor: float | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"kind": "ratio", **asdict(self)}


def seconds(work: Callable[[], Any]) -> float:
    """Return the wall time of one call; what earlier work left behind is collected before."""
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(baseline: Callable[[], float], ours: Callable[[], float], rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of both, measured ABAB..., so that what else the machine does meets both alike."""
    pairs = [(baseline(), ours()) for _ in range(rounds)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def compare(
    work: str,
    against: str,
    unit: str,
    times: tuple[list[float], list[float]],
    per: tuple[float, float],
    floor: float | None = None,
    note: str = "",
) -> Ratio:
    """Return the ratio of the best times.

    Args:
        work: As in `Ratio`, and so are the others.
        against: What the baseline is.
        unit: Of the times shown.
        times: Seconds of the rounds of baseline and ours.
        per: What to multiply the seconds of each by to get the unit.
        floor: What must be reached.
        note: What else to know.
    """
    baseline, ours = ([second * factor for second in side] for side, factor in zip(times, per, strict=True))
    singles = [b / o for b, o in zip(baseline, ours, strict=True)]
    best = min(baseline), min(ours)
    return Ratio(
        work, against, unit, *best, best[0] / best[1], min(singles), max(singles), len(singles), floor, note
    )  # fmt: skip


def slope(sizes: list[float], times: list[float]) -> float:
    """Return the exponent p of time ~ size^p by least squares on logarithms."""
    fit = statistics.linear_regression([math.log(size) for size in sizes], [math.log(value) for value in times])
    return fit.slope
