"""What crystals are ranked by, computed from draws of a property: a number that does not know its error misleads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cgnn.physics.ashby import pareto_front

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Aim:
    """What is asked of a property.

    Args:
        quantile: Share of the draws below the bound.
        threshold: What is to be exceeded, in the property's unit.
    """

    quantile: float = 0.5
    threshold: float = 0.0


@dataclass(frozen=True)
class Ranking:
    """One way to rank.

    Args:
        score: From draws (n, draws), whose large values are good, to what is ranked by (n,).
        meaning: For people.
        quantile: Default of the aim; None where it has none.
        needs_threshold: Whether the aim has a threshold.
        needs_errors: Whether it means nothing without draws.
        is_front: Whether it takes several properties.
    """

    score: Callable[[Array, Aim], Array]
    meaning: str
    quantile: float | None = None
    needs_threshold: bool = False
    needs_errors: bool = False
    is_front: bool = False


def quantile(draws: Array, share: float) -> Array:
    """Return a quantile of each row (n,), linear between the draws that are finite; ``nan`` where most are not."""
    ordered = np.sort(np.where(np.isfinite(draws), draws, np.nan), axis=1)  # nan come last
    count = np.isfinite(ordered).sum(axis=1)
    place = share * np.maximum(count - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low, high = (np.take_along_axis(ordered, index[:, None], axis=1)[:, 0] for index in (below, above))
    return np.where(2 * count >= draws.shape[1], low + (place - below) * (high - low), np.nan)


def _bound(draws: Array, aim: Aim) -> Array:
    return quantile(draws, aim.quantile)


def _median(draws: Array, aim: Aim) -> Array:
    return quantile(draws, 0.5)


def _mean(draws: Array, aim: Aim) -> Array:
    return _average(draws, draws)


def _probability(draws: Array, aim: Aim) -> Array:
    return _average(draws, (draws > aim.threshold).astype(np.float64))


def _improvement(draws: Array, aim: Aim) -> Array:
    return _average(draws, np.maximum(draws - aim.threshold, 0.0))


def _average(draws: Array, values: Array) -> Array:
    """Return the mean of values over the draws that are finite; ``nan`` where most are not."""
    usable = np.isfinite(draws)
    count = usable.sum(axis=1)
    total = np.where(usable, values, 0.0).sum(axis=1)
    return np.where(2 * count >= draws.shape[1], total / np.maximum(count, 1), np.nan)


RANKINGS: dict[str, Ranking] = {
    "value": Ranking(_median, "median"),
    "mean": Ranking(_mean, "mean"),
    "lower_bound": Ranking(_bound, "value that is exceeded with probability 1 - quantile", 0.16, needs_errors=True),
    "probability": Ranking(
        _probability, "probability of exceeding the threshold", needs_threshold=True, needs_errors=True
    ),
    "expected_improvement": Ranking(
        _improvement, "mean gain over the threshold, none where it falls short", needs_threshold=True, needs_errors=True
    ),
    "pareto": Ranking(_bound, "fronts that nothing beats in all properties", 0.5, is_front=True),
}
"""Ways to rank by name. Expected improvement: Jones, Schonlau & Welch, J. Global Optim. 13, 455 (1998),
doi:10.1023/A:1008306431147."""


def ordered_front(scores: Array, ids: list[str]) -> NDArray[np.int64]:
    """Return the rows of the first front of a table (n, properties), those with the emptiest surroundings first.

    The ends of a front have nobody beyond them and come first; of equals the one whose id comes first.

    Source: crowding distance of Deb et al., IEEE Trans. Evol. Comput. 6, 182 (2002), doi:10.1109/4235.996017.
    """
    rows = pareto_front(list(scores.T)) if len(scores) else np.zeros(0, dtype=np.int64)
    space = _crowding(scores[rows])
    order = sorted(range(len(rows)), key=lambda place: (-space[place], ids[rows[place]]))
    return rows[order]


def _crowding(scores: Array) -> Array:
    found = np.zeros(len(scores))
    for column in scores.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]] if len(order) else 0.0
        if not span > 0:
            continue
        gaps = np.full(len(order), np.inf)
        gaps[1:-1] = (column[order[2:]] - column[order[:-2]]) / span
        found[order] += gaps
    return found
