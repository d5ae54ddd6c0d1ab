"""Whether stated uncertainties are true and of use, judged on crystals that were not used for calibration.

All functions take residuals (truth - prediction), standard deviations and half widths on one scale, the learned one
where nothing else is said, without unknown values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from cgnn.targets import TRANSFORMS, Target
from cgnn.train.trust.calibration import LEVEL, Calibration, interval

Array = NDArray[np.float64]
LEVELS = tuple(percent / 100 for percent in range(5, 100, 5))
"""Levels at which coverage is looked at for a curve."""


def coverage(residual: ArrayLike, half_width: ArrayLike) -> float:
    r"""Return the share of the truth inside its interval, :math:`\frac1n \#\{|r_i| \le w_i\}`."""
    return float(np.mean(np.abs(_array(residual)) <= _array(half_width)))


def interval_score(residual: ArrayLike, half_width: ArrayLike, level: float) -> float:
    r"""Return the mean interval score: width and misses in one number, smaller is better.

    .. math:: \frac1n \sum_i 2 w_i + \frac{2}{1 - q} \max(|r_i| - w_i, 0)

    Source: Gneiting and Raftery, J. Am. Stat. Assoc. 102, 359 (2007), doi:10.1198/016214506000001437, eq. 43.
    """
    width = _array(half_width)
    beyond = np.maximum(np.abs(_array(residual)) - width, 0)
    return float(np.mean(2 * width + 2 / (1 - level) * beyond))


def coverage_curve(residual: ArrayLike, sigma: ArrayLike, calibration: Calibration) -> tuple[Array, Array]:
    """Return levels and the coverage of their intervals, as far as the calibration knows them."""
    levels = [level for level in LEVELS if np.isfinite(calibration.half_width(level))]
    spread = _array(sigma)
    return np.array(levels), np.array([coverage(residual, calibration.half_width(q) * spread) for q in levels])


def miscalibration_area(levels: ArrayLike, coverages: ArrayLike) -> float:
    r"""Return the area between coverage and level, from 0 (exact) to 0.5, by trapezoids.

    .. math:: \int_0^1 |c(q) - q|\,dq

    Source: Tran et al., Mach. Learn.: Sci. Technol. 1, 025006 (2020), doi:10.1088/2632-2153/ab7e1a.
    """
    q = np.concatenate([[0.0], _array(levels), [1.0]])
    gap = np.concatenate([[0.0], _array(coverages), [1.0]]) - q
    left, right, width = gap[:-1], gap[1:], np.diff(q)
    total = np.abs(left) + np.abs(right)
    # where the curve crosses the diagonal between two levels, two triangles
    crossed = (left**2 + right**2) / np.where(total > 0, total, 1)
    return float(np.sum(width * np.where(left * right < 0, crossed, total) / 2))


@dataclass(frozen=True)
class SpreadBins:
    """Errors beside the spread that was stated, in bins of equally many crystals, from sure to unsure.

    Args:
        stated: Root mean variance of each bin.
        found: Root mean squared error of each bin.
        counts: Number of crystals of each bin.
    """

    stated: Array
    found: Array
    counts: NDArray[np.int64]


def spread_bins(residual: ArrayLike, sigma: ArrayLike, bins: int = 10) -> SpreadBins:
    """Return errors against spread; fewer bins where one would hold fewer than ten crystals, or equal spreads."""
    error, spread = _array(residual), _array(sigma)
    number = max(1, min(bins, len(error) // 10, len(np.unique(spread))))
    parts = np.array_split(np.argsort(spread, kind="stable"), number)
    stated = np.array([np.sqrt(np.mean(spread[part] ** 2)) for part in parts])
    found = np.array([np.sqrt(np.mean(error[part] ** 2)) for part in parts])
    return SpreadBins(stated, found, np.array([len(part) for part in parts]))


def calibration_error(bins: SpreadBins) -> float:
    r"""Return the expected normalised calibration error, :math:`\frac1B \sum_b |s_b - e_b| / s_b`.

    Source: Levi et al., Sensors 22, 5540 (2022), doi:10.3390/s22155540, eq. 8.
    """
    return float(np.mean(np.abs(bins.stated - bins.found) / bins.stated))


def rank_correlation(residual: ArrayLike, sigma: ArrayLike) -> float:
    """Return Spearman's correlation of absolute error and spread; ``nan`` where one of them is constant."""
    error, spread = np.abs(_array(residual)), _array(sigma)
    if not np.ptp(error) or not np.ptp(spread):
        return float("nan")
    return float(spearmanr(error, spread).statistic)


@dataclass(frozen=True)
class Retention:
    """Mean absolute error of what is kept when the most uncertain share is dropped.

    Args:
        dropped: Shares that are dropped, from 0 on (n,).
        by_spread: Error left when those of the largest spread go first (n,).
        by_error: Error left when those of the largest error go first: nothing can be better (n,).
        at_random: Error left when any go, the error of all (n,).
    """

    dropped: Array
    by_spread: Array
    by_error: Array
    at_random: Array

    @property
    def gain(self) -> float:
        """The area won over dropping at random, as a share of what knowing the errors would win; 1 is best."""
        best = float(np.sum(self.at_random - self.by_error))
        return float(np.sum(self.at_random - self.by_spread)) / best if best > 0 else 0.0


def retention(residual: ArrayLike, sigma: ArrayLike) -> Retention:
    """Return the retention curve; crystals of equal spread count as one group, dropped in proportion.

    Source: Scalia et al., J. Chem. Inf. Model. 60, 2697 (2020), doi:10.1021/acs.jcim.9b00975 (confidence curves).
    """
    error, spread = np.abs(_array(residual)), _array(sigma)
    _, group = np.unique(spread, return_inverse=True)
    typical = np.bincount(group, error) / np.bincount(group)
    kept = np.arange(1, len(error) + 1)

    def left(order: NDArray[np.int64], values: Array) -> Array:
        return (np.cumsum(values[order]) / kept)[::-1]

    everything = np.full(len(error), error.mean())
    by_spread = left(np.argsort(spread, kind="stable"), typical[group])
    return Retention(1 - kept[::-1] / len(error), by_spread, left(np.argsort(error), error), everything)


def reliability(
    target: Target, truth: ArrayLike, value: ArrayLike, sigma: ArrayLike, calibration: Calibration
) -> dict[str, float]:
    """Return the scores of the uncertainties of one target.

    Args:
        target: What was predicted.
        truth: Labels in the target's unit (n,), ``nan`` = unknown.
        value: Predictions on the learned scale (n,).
        sigma: Their standard deviations there (n,).
        calibration: Of the intervals.

    Returns:
        ``coverage_90`` and ``miscalibration_area`` (shares); ``width_90`` and ``interval_score_90``, in the target's
        unit; ``width_90_<transform>`` on the learned scale, where that is another; ``baseline_`` before a width or
        score: that of the interval that is equally wide on the learned scale for all; ``spread_error`` (ENCE),
        ``spread_rank`` (Spearman) and ``retention_gain``. Empty without a known label; what does not exist is left out.
    """
    labels, middle, spread = (_array(given) for given in (truth, value, sigma))
    known = np.isfinite(labels)
    labels, middle, spread = labels[known], middle[known], spread[known]
    if not len(labels):
        return {}
    residual = target.to_learned(labels) - middle
    curve = coverage_curve(residual, spread, calibration)
    scores = {
        "coverage_90": coverage(residual, calibration.half_width(LEVEL) * spread),
        "miscalibration_area": miscalibration_area(*curve),
        **_widths(target, labels, middle, spread, calibration),
        "spread_error": calibration_error(spread_bins(residual, spread)),
        "spread_rank": rank_correlation(residual, spread),
        "retention_gain": retention(residual, spread).gain,
    }
    return {name: score for name, score in scores.items() if np.isfinite(score)}


def _widths(target: Target, labels: Array, middle: Array, spread: Array, calibration: Calibration) -> dict[str, float]:
    """Return mean widths and interval scores of the calibrated interval and of one of constant width."""
    scores: dict[str, float] = {}
    half = calibration.half_width(LEVEL) * spread
    for prefix, width in (("", half), ("baseline_", np.full(len(half), calibration.constant))):
        lower, upper = interval(target, middle, width, 1.0)
        scores[f"{prefix}width_90"] = float(np.mean(upper - lower))
        centre = (lower + upper) / 2
        scores[f"{prefix}interval_score_90"] = interval_score(labels - centre, (upper - lower) / 2, LEVEL)
        if not TRANSFORMS[target.transform].keeps_scale:
            scores[f"{prefix}width_90_{target.transform}"] = float(np.mean(2 * width))
            learned = target.to_learned(labels) - middle
            scores[f"{prefix}interval_score_90_{target.transform}"] = interval_score(learned, width, LEVEL)
    return scores


def _array(values: ArrayLike | Sequence[float]) -> Array:
    return np.asarray(values, dtype=np.float64)
