"""Joint draws of several targets: whatever is computed from them can carry their error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from cgnn.errors import CheckpointError
from cgnn.targets import TRANSFORMS, Target

Array = NDArray[np.float64]
FEWEST_PAIRS = 20
"""Crystals with both labels below which two targets count as uncorrelated."""
_SMALLEST_EIGENVALUE = 1e-3


@dataclass(frozen=True)
class Correlation:
    """How the errors of several targets go together.

    Args:
        names: Names of the T targets.
        matrix: Correlations of their standardised residuals (T, T), positive definite.
    """

    names: tuple[str, ...]
    matrix: Array

    @classmethod
    def fit(cls, residuals: Mapping[str, ArrayLike]) -> Correlation:
        r"""Take the correlations from standardised residuals.

        From Spearman's rank correlation, which outliers hardly move, follows that of normal distributions,
        :math:`r = 2 \sin(\pi \rho / 6)`. Of n crystals it is shrunk by n / (n + 10); where the matrix is still not
        positive definite its eigenvalues are lifted.

        Args:
            residuals: By target name, (truth - value) / sigma on the learned scale of the same crystals (n,),
                ``nan`` = unknown.

        Source: Kruskal, J. Am. Stat. Assoc. 53, 814 (1958), doi:10.1080/01621459.1958.10501481.
        """
        names = tuple(residuals)
        columns = [np.asarray(residuals[name], dtype=np.float64) for name in names]
        matrix = np.eye(len(names))
        for i in range(len(names)):
            for j in range(i):
                matrix[i, j] = matrix[j, i] = _pair(columns[i], columns[j])
        return cls(names, _positive(matrix))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {"targets": list(self.names), "matrix": self.matrix.tolist()}

    @classmethod
    def from_dict(cls, values: Any) -> Correlation:
        """Return the correlations that `to_dict` described.

        Raises:
            CheckpointError: Other keys, or no matrix of correlations.
        """
        try:
            names, rows = values["targets"], values["matrix"]
            is_plain = all(type(number) in (int, float) for row in rows for number in row)
            matrix = np.array(rows, dtype=np.float64).reshape(len(names), len(names))
            is_right = is_plain and set(values) == {"targets", "matrix"} and all(type(name) is str for name in names)
        except (KeyError, TypeError, ValueError):
            is_right = False
        if not is_right or not _is_correlation(matrix):
            raise CheckpointError(f"correlation: expected names and a matrix of correlations, got {repr(values)[:100]}")
        return cls(tuple(names), matrix)


def draws(
    targets: Sequence[Target],
    value: Mapping[str, ArrayLike],
    sigma: Mapping[str, ArrayLike],
    correlation: Correlation,
    number: int,
    seed: int = 0,
) -> dict[str, Array]:
    """Draw values of several targets together: normal on the learned scale, with the correlation of their errors.

    Args:
        targets: Regression targets, all in ``correlation``.
        value: By target name, predictions on the learned scale (n,).
        sigma: By target name, their standard deviations there (n,).
        correlation: How the errors go together.
        number: How many draws of each crystal.
        seed: The same seed and crystals give the same draws.

    Returns:
        By target name, draws in the target's unit (n, number); one column is one joint draw.
    """
    places = [correlation.names.index(target.name) for target in targets]
    root = np.linalg.cholesky(correlation.matrix[np.ix_(places, places)])
    crystals = len(np.asarray(value[targets[0].name])) if targets else 0
    noise = np.random.default_rng(seed).standard_normal((crystals, number, len(targets))) @ root.T
    found = {}
    for place, target in enumerate(targets):
        middle, width = (np.asarray(given[target.name], dtype=np.float64)[:, None] for given in (value, sigma))
        with np.errstate(over="ignore"):  # beyond all numbers: infinite
            found[target.name] = np.asarray(TRANSFORMS[target.transform].inverse(middle + width * noise[:, :, place]))
    return found


def _pair(first: Array, second: Array) -> float:
    both = np.isfinite(first) & np.isfinite(second)
    count = int(both.sum())
    if count < FEWEST_PAIRS or not np.ptp(first[both]) or not np.ptp(second[both]):
        return 0.0
    rank = float(spearmanr(first[both], second[both]).statistic)
    return 2 * np.sin(np.pi * rank / 6) * count / (count + 10)


def _positive(matrix: Array) -> Array:
    """Return the matrix with its eigenvalues lifted above zero, where they are not, and ones on the diagonal."""
    values, vectors = np.linalg.eigh(matrix)
    if not len(values) or values[0] >= _SMALLEST_EIGENVALUE:
        return matrix
    lifted = (vectors * np.maximum(values, _SMALLEST_EIGENVALUE)) @ vectors.T
    scale = 1 / np.sqrt(np.diag(lifted))
    lifted = lifted * scale * scale[:, None]
    return (lifted + lifted.T) / 2


def _is_correlation(matrix: Array) -> bool:
    if not np.isfinite(matrix).all() or (np.abs(matrix) > 1 + 1e-9).any() or not np.allclose(np.diag(matrix), 1):
        return False
    return bool(np.allclose(matrix, matrix.T) and (np.linalg.eigvalsh(matrix) > 0).all())
