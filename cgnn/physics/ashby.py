"""What an Ashby diagram shows, as numbers: material indices, their guide lines, Pareto fronts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgnn.errors import DataError
from cgnn.physics.elastic import Array, positive


@dataclass(frozen=True)
class Index:
    """A material index: a product of powers of properties, the larger the better.

    Args:
        powers: Property -> exponent; names without a model's ending, such as ``"hardness"``.
        meaning: What a large value is good for.
        source: Where it was published.
    """

    powers: Mapping[str, float]
    meaning: str
    source: str

    def value(self, properties: Mapping[str, ArrayLike]) -> Array:
        r"""Return the index :math:`M = \prod_i p_i^{a_i}` of each material.

        Args:
            properties: Property -> values above zero (n,).

        Raises:
            DataError: A property lacks or is not above zero.
        """
        lacking = [name for name in self.powers if name not in properties]
        if lacking:
            raise DataError(f"index: no values of {', '.join(lacking)}")
        factors = [positive(name, properties[name]) ** power for name, power in self.powers.items()]
        return np.asarray(np.prod(np.broadcast_arrays(*factors), axis=0))

    def guide_line(self, value: float, x_name: str, y_name: str, x: ArrayLike) -> Array:
        r"""Return y on the line of equal index: :math:`y = (M / x^{a_x})^{1 / a_y}`, straight on logarithmic axes.

        Args:
            value: The index M on the line.
            x_name: Property on the horizontal axis.
            y_name: Property on the vertical axis.
            x: Values there (m,).

        Raises:
            DataError: The index does not consist of these two, or a number is not above zero.
        """
        if set(self.powers) != {x_name, y_name} or x_name == y_name:
            raise DataError(f"guide line: the index is one of {', '.join(self.powers)}, not of {x_name} and {y_name}")
        along = positive(x_name, x) ** self.powers[x_name]
        return np.asarray((positive("index", value) / along) ** (1 / self.powers[y_name]))


_ASHBY = "Ashby, Materials Selection in Mechanical Design (1992)"

INDICES: dict[str, Index] = {
    "wear_resistance": Index(
        {"hardness": 0.5, "toughness": 0.75},
        "abrasive wear by lateral cracks is slow",
        "Evans & Wilshaw, Acta Metall. 24, 939 (1976)",
    ),
    "damage_tolerance": Index(
        {"toughness": 1.0, "hardness": -1.0},
        "deforms rather than cracks: the inverse of the brittleness H / K_IC",
        "Lawn & Marshall, J. Am. Ceram. Soc. 62, 347 (1979)",
    ),
    "fracture_energy": Index({"toughness": 2.0, "youngs_modulus": -1.0}, "takes much energy to break", _ASHBY),
    "failure_strain": Index({"toughness": 1.0, "youngs_modulus": -1.0}, "bears much strain before it breaks", _ASHBY),
    "stiff_tie": Index({"youngs_modulus": 1.0, "density": -1.0}, "light and stiff in tension", _ASHBY),
    "stiff_beam": Index({"youngs_modulus": 0.5, "density": -1.0}, "light and stiff in bending", _ASHBY),
    "stiff_plate": Index({"youngs_modulus": 1 / 3, "density": -1.0}, "light and stiff as a plate", _ASHBY),
}
"""Material indices by name."""


def pareto_front(objectives: Sequence[ArrayLike], largest: Sequence[bool] | None = None) -> NDArray[np.int64]:
    """Return the rows that no other row beats: none is at least as good everywhere and better somewhere.

    Equal rows stay together; rows with ``nan`` are never on the front. Two objectives take O(n log n) steps, more of
    them at worst O(n²), with small fronts O(n log n + n f).

    Args:
        objectives: Columns to optimise, each (n,).
        largest: For each whether large values are good; all are by default.

    Returns:
        Row numbers in the order of the first objective, best first.

    Raises:
        DataError: No objective, or columns of different lengths.
    """
    columns = [np.atleast_1d(np.asarray(column, dtype=np.float64)) for column in objectives]
    if not columns or any(column.shape != columns[0].shape or column.ndim != 1 for column in columns):
        raise DataError("Pareto front: expected one or more columns of equal length")
    signs = [1.0 if up else -1.0 for up in (largest if largest is not None else [True] * len(columns))]
    if len(signs) != len(columns):
        raise DataError(f"Pareto front: expected {len(columns)} directions, got {len(signs)}")
    values = np.stack([sign * column for sign, column in zip(signs, columns, strict=True)], axis=1)
    rows = np.flatnonzero(~np.isnan(values).any(axis=1))
    rows = rows[np.lexsort(-values[rows].T[::-1])]  # by the first, then the second, ... objective, best first
    keep = _front_of_two if len(columns) == 2 else _front_of_many
    return rows[keep(values[rows])]


def _front_of_two(ordered: Array) -> NDArray[np.bool_]:
    """Say which rows of an ordered (n, 2) table are on the front."""
    first, second = ordered.T
    starts = np.concatenate([[True], first[1:] != first[:-1]]) if len(first) else np.zeros(0, dtype=np.bool_)
    group = np.maximum.accumulate(np.where(starts, np.arange(len(first)), 0)) if len(first) else np.zeros(0, np.int64)
    best = np.concatenate([[-np.inf], np.maximum.accumulate(second)])  # of all rows before this one
    is_first = starts[group] & (group == 0)  # nothing has a larger first objective
    return np.asarray((second == second[group]) & (is_first | (second > best[group])))


def _front_of_many(ordered: Array) -> NDArray[np.bool_]:
    """Say which rows of an ordered (n, m) table are on the front: only rows before a row can beat it."""
    keep = np.zeros(len(ordered), dtype=np.bool_)
    front = np.empty_like(ordered)
    size = 0
    for row, values in enumerate(ordered):
        before = front[:size]
        if not ((before >= values).all(axis=1) & (before > values).any(axis=1)).any():
            keep[row] = True
            front[size] = values
            size += 1
    return keep
