"""How sure a prediction is: from raw spreads to a standard deviation and intervals that cover what they say.

The spreads that a model gives (members that disagree, a head that learned its own errors) rank crystals but have no
scale of their own. It is taken here from crystals that were not trained on, on the scale on which the target is
learned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from cgnn.errors import CheckpointError
from cgnn.targets import TRANSFORMS, Target

Array = NDArray[np.float64]

LEVEL = 0.9
"""Share of the truth that the intervals in tables of predictions cover."""
FEWEST = 10
"""Known labels below which nothing is calibrated: nine are needed for an interval of 90 %."""
FEW = 50
"""Known labels below which all crystals get the same width: too few to weigh spreads against each other."""
_PERCENT = range(1, 100)
_TAILS = 4.0
"""Degrees of freedom of the Student distribution by whose likelihood the spreads are weighed."""


@dataclass(frozen=True)
class Calibration:
    r"""What turns the spreads of one regression target into calibrated numbers, on its learned scale.

    .. math:: \sigma^2 = a\,\mathrm{between} + b\,\mathrm{within}^2 + c

    Args:
        between: Coefficient a of the variance between members.
        within: Coefficient b of the squared scale that the heads learned.
        floor: The constant c, in the learned unit squared; above zero.
        quantiles: Half widths of the intervals of 1, 2, ... %, in units of sigma, as far as ``count`` allows.
        constant: Half width, in the learned unit, of the interval of 90 % that is as wide for every crystal.
        count: Number of labels it was fitted on.
    """

    between: float
    within: float
    floor: float
    quantiles: tuple[float, ...]
    constant: float
    count: int

    @classmethod
    def fit(
        cls, target: Target, value: ArrayLike, variance_between: ArrayLike, scale_within: ArrayLike, truth: ArrayLike
    ) -> Calibration:
        r"""Calibrate on crystals that were not trained on.

        The coefficients maximise the likelihood of a Student distribution, which outliers hardly move, and are then
        scaled so that the standardised residuals have unit variance,

        .. math:: \frac1n \sum_i (y_i - v_i)^2 / \sigma_i^2 = 1.

        The intervals are split-conformal ones on these residuals: that of level q is :math:`v \pm k \sigma` with k the
        :math:`\lceil (n + 1) q \rceil`-th smallest of the n values :math:`|y_i - v_i| / \sigma_i`. They cover at least
        q of all crystals drawn like the ones given here.

        Args:
            target: What was predicted.
            value: Predictions on the learned scale (n,).
            variance_between: Variance between members on the learned scale (n,); zeros for one member.
            scale_within: The heads' own scale on the learned scale (n,); zeros where it is not learned.
            truth: Labels in the target's unit (n,), ``nan`` = unknown; at least `FEWEST` known.

        Source: conformal intervals normalised by a difficulty: Papadopoulos et al., J. Artif. Intell. Res. 40, 815
        (2011), doi:10.1613/jair.3198; the quantile is that of the package crepes (Bostrom 2022). Variance scaling:
        Levi et al., Sensors 22, 5540 (2022), doi:10.3390/s22155540.
        """
        known = np.isfinite(np.asarray(truth, dtype=np.float64))
        values, between, within, labels = (
            np.asarray(given, dtype=np.float64)[known] for given in (value, variance_between, scale_within, truth)
        )
        if len(labels) < FEWEST:
            raise ValueError(f"calibration of {target.name!r}: {len(labels)} labels, at least {FEWEST} wanted")
        residual = target.to_learned(labels) - values
        coefficients = _weighed(residual, np.stack([between, within**2, np.ones_like(between)]))
        variance = coefficients @ np.stack([between, within**2, np.ones_like(between)])
        coefficients = coefficients * np.mean(residual**2 / variance)
        floor = max(float(coefficients[2]), _smallest(residual))
        calibration = cls(float(coefficients[0]), float(coefficients[1]), floor, (), 0.0, len(labels))
        sizes = np.sort(np.abs(residual) / calibration.sigma(between, within))
        quantiles = tuple(float(sizes[rank - 1]) for rank in _ranks(len(sizes)))
        constant = np.sort(np.abs(residual))[_rank(len(residual), round(100 * LEVEL)) - 1]
        return cls(calibration.between, calibration.within, floor, quantiles, float(constant), len(labels))

    def sigma(self, variance_between: ArrayLike, scale_within: ArrayLike) -> Array:
        """Return calibrated standard deviations on the learned scale (n,)."""
        between, within = (np.asarray(given, dtype=np.float64) for given in (variance_between, scale_within))
        return np.sqrt(self.between * between + self.within * within**2 + self.floor)

    def half_width(self, level: float) -> float:
        """Return the half width of an interval in units of sigma; ``inf`` where the labels were too few for it.

        Of levels between whole per cents the next higher one is taken: never too narrow.

        Raises:
            ValueError: The level is not between 0 and 0.99.
        """
        if not 0 < level <= 0.99:
            raise ValueError(f"level {level}: expected a share above 0 and up to 0.99, such as 0.9")
        place = math.ceil(100 * level - 1e-9) - 1
        return self.quantiles[place] if place < len(self.quantiles) else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {**asdict(self), "quantiles": list(self.quantiles)}

    @classmethod
    def from_dict(cls, values: Any) -> Calibration:
        """Return the calibration that `to_dict` described.

        Raises:
            CheckpointError: Other keys, or numbers that no calibration has.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or set(values) != set(names):
            raise CheckpointError(f"calibration: expected {', '.join(names)}, got {values!r:.100}")
        count, quantiles = values["count"], values["quantiles"]
        single = [values[name] for name in ("between", "within", "floor", "constant")]
        if type(count) is not int or count < FEWEST or not isinstance(quantiles, list | tuple):
            raise CheckpointError(f"calibration: expected a count and a list of quantiles, got {values!r:.100}")
        if not all(_is_size(number) for number in [*single, *quantiles]) or not values["floor"] > 0:
            raise CheckpointError(f"calibration: expected finite numbers that are not negative, got {values!r:.100}")
        number = len(_ranks(count))
        if len(quantiles) != number or list(quantiles) != sorted(quantiles):
            raise CheckpointError(f"calibration: expected {number} rising quantiles, got {quantiles!r:.100}")
        between, within, floor, constant = map(float, single)
        return cls(between, within, floor, tuple(map(float, quantiles)), constant, count)


def std(target: Target, value: ArrayLike, sigma: ArrayLike) -> Array:
    r"""Return standard deviations in the target's unit (n,).

    Half the way between what lies one sigma below and above, with f from the learned to the physical scale:

    .. math:: s = \frac{f(v + \sigma) - f(v - \sigma)}{2}

    This is sigma itself without a transform and, for moduli learned as logarithms, :math:`y \sinh(\sigma \ln 10)`: to
    first order the standard deviation of the lognormal distribution, without its growth for broad ones.

    Args:
        target: What was predicted.
        value: Predictions v on the learned scale (n,).
        sigma: Their standard deviations there (n,).
    """
    lower, upper = interval(target, value, sigma, 1.0)
    return (upper - lower) / 2


def interval(target: Target, value: ArrayLike, sigma: ArrayLike, half_width: float) -> tuple[Array, Array]:
    """Return both ends of intervals in the target's unit, each (n,).

    The ends are transformed: an interval of a modulus learned as a logarithm never reaches below zero.

    Args:
        target: What was predicted.
        value: Predictions on the learned scale (n,).
        sigma: Their standard deviations there (n,).
        half_width: In units of sigma (`Calibration.half_width`).
    """
    middle, half = np.asarray(value, dtype=np.float64), half_width * np.asarray(sigma, dtype=np.float64)
    inverse = TRANSFORMS[target.transform].inverse
    with np.errstate(over="ignore"):  # beyond all numbers: infinite
        return np.asarray(inverse(middle - half)), np.asarray(inverse(middle + half))


def _weighed(residual: Array, parts: Array) -> Array:
    """Return the coefficients (3,), not negative, of the parts of the variance (3, n); the last part is constant."""
    typical = parts.mean(axis=1)
    size = max(float(np.mean(residual**2)), _smallest(residual))
    used = (typical > 0) & (np.ptp(parts, axis=1) > 1e-9 * typical) if len(residual) >= FEW else np.zeros(3, dtype=bool)
    used[2] = True
    scaled = parts[used] / typical[used, None] * size
    squares = residual**2

    def loss(logarithms: Array) -> tuple[float, Array]:
        weights = np.exp(logarithms)
        variance = weights @ scaled
        share = squares / (_TAILS * variance)
        value = 0.5 * np.log(variance) + 0.5 * (_TAILS + 1) * np.log1p(share)
        slope = (0.5 - 0.5 * (_TAILS + 1) * share / (1 + share)) / variance
        return float(value.mean()), weights * (scaled @ slope) / len(squares)

    start = np.full(int(used.sum()), -np.log(used.sum()))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(-12.0, 6.0)] * len(start))
    coefficients = np.zeros(3)
    coefficients[used] = np.exp(found.x) * size / typical[used]
    return coefficients


def _smallest(residual: Array) -> float:
    """Return the smallest variance that is believed, for residuals that are all zero or nearly so."""
    return max(1e-6 * float(np.mean(residual**2)), 1e-24)


def _rank(count: int, percent: int) -> int:
    """Return ceil((n + 1) q), in whole numbers: a rounded q would move it."""
    return -(-(count + 1) * percent // 100)


def _ranks(count: int) -> list[int]:
    """Return the ranks of the levels that so many residuals allow."""
    return [rank for percent in _PERCENT if (rank := _rank(count, percent)) <= count]


def _is_size(number: Any) -> bool:
    return type(number) in (int, float) and 0 <= number < 1e30
