"""Derived properties with their errors: joint draws of both moduli pushed through every relation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from cgnn.errors import DataError, choose
from cgnn.physics.elastic import Array, moduli, positive
from cgnn.physics.relations import RELATIONS

QUANTILES = {"_p5": 0.05, "_p16": 0.16, "_p50": 0.5, "_p84": 0.84, "_p95": 0.95}
"""Ending of a column -> share of the draws below it: median, 68 % band (p16 to p84), 90 % band (p5 to p95)."""

DRAWS = 500
"""Draws of each crystal unless told otherwise."""

_AT_ONCE = 2**18
"""So many draws are worked on at once: a few MiB for each step, however many crystals there are."""


def derivable(given: Iterable[str]) -> list[str]:
    """Return the properties that follow from the given inputs, such as ``bulk``, ``shear``, ``density``."""
    known = set(given)
    return [name for name, relation in RELATIONS.items() if known.issuperset(relation.needs)]


def derive(
    bulk: ArrayLike,
    shear: ArrayLike,
    volume_per_atom: ArrayLike | None = None,
    density: ArrayLike | None = None,
    atoms_per_cell: ArrayLike | None = None,
    *,
    samples: tuple[ArrayLike, ArrayLike] | None = None,
    names: Iterable[str] | None = None,
) -> dict[str, Array]:
    """Return derived properties of n crystals, and with samples of the moduli their medians and bands.

    Hardness and toughness are steep in Poisson's ratio, so that their errors are neither small nor symmetric: the
    bands are those of the draws, not of a linear law. Draws that are not positive are no moduli and are left out
    (stable crystals are what is asked for); crystals that keep fewer than half get ``nan``.

    Args:
        bulk: Bulk moduli (GPa), a number or (n,); ``nan`` = unknown.
        shear: Shear moduli (GPa).
        volume_per_atom: In Å³; without it properties that need it are left out.
        density: In g/cm³, likewise.
        atoms_per_cell: Atoms of the primitive cell, likewise.
        samples: Joint draws of bulk and shear moduli (GPa), each (n, draws), as `cgnn.Predictions.draws` gives them:
            one column of both is one joint draw.
        names: Properties out of `RELATIONS`; all that can be derived by default.

    Returns:
        By name the value at ``bulk`` and ``shear`` (n,) in the unit of `RELATIONS`; with samples also columns with the
        endings of `QUANTILES`.

    Raises:
        ConfigError: No such property.
        DataError: An input is zero, negative or infinite, the samples do not fit, or a property lacks an input.
    """
    K, G = moduli(bulk, shear)
    rest = {"volume_per_atom": volume_per_atom, "density": density, "atoms_per_cell": atoms_per_cell}
    given = {"bulk": K, "shear": G}
    given |= {name: positive(name.replace("_", " "), value) for name, value in rest.items() if value is not None}
    arrays = dict(zip(given, np.broadcast_arrays(*map(np.atleast_1d, given.values())), strict=True))
    wanted = _wanted(names, arrays)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond all numbers: infinite
        columns = {name: _value(name, arrays) for name in wanted}
    if samples is None:
        return columns
    bands = _bands(wanted, arrays, *_fitting(samples, len(arrays["bulk"])))
    return {column: values for name in wanted for column, values in ((name, columns[name]), *bands[name].items())}


def lognormal_samples(
    bulk: ArrayLike,
    shear: ArrayLike,
    bulk_std: ArrayLike,
    shear_std: ArrayLike,
    correlation: ArrayLike = 0.0,
    draws: int = DRAWS,
) -> tuple[Array, Array]:
    r"""Return joint draws of both moduli from their standard deviations, for `derive`.

    Their logarithms are normal with medians ln m and, as the tables of `cgnn predict` state a spread s,
    :math:`\sigma = \mathrm{arsinh}(s / m)`. The points are those of a fixed evenly spread sequence, the same for
    each crystal: no seed, the same bands in any order and any company, and quantiles that need few of them.

    Args:
        bulk: Bulk moduli (GPa), (n,).
        shear: Shear moduli (GPa), (n,).
        bulk_std: Their standard deviations (GPa), not negative.
        shear_std: Likewise.
        correlation: Of the errors of both logarithms, between -1 and 1, a number or (n,).
        draws: Their number.

    Returns:
        Bulk and shear moduli (GPa), each (n, draws).

    Raises:
        DataError: A modulus is not above zero, a standard deviation is below it, a correlation beyond -1 to 1.

    Source: points by Roberts, The unreasonable effectiveness of quasirandom sequences (2018), made normal by Box &
    Muller, Ann. Math. Stat. 29, 610 (1958), doi:10.1214/aoms/1177706645.
    """
    K, G = moduli(bulk, shear)
    widths, r = (np.asarray(bulk_std, dtype=float), np.asarray(shear_std, dtype=float)), np.asarray(correlation)
    for name, width in zip(("bulk", "shear"), widths, strict=True):
        if ((width < 0) | np.isinf(width)).any():
            raise DataError(f"{name} modulus: expected a standard deviation of 0 or more, got {np.nanmin(width):g}")
    if (np.abs(r) > 1).any():
        raise DataError(f"correlation: expected a number from -1 to 1, got {r[np.abs(r) > 1].flat[0]:g}")
    first, second = _normal_points(draws)
    K, G, wide_K, wide_G, r = (np.atleast_1d(each)[:, None] for each in (K, G, *widths, r))
    together = r * first + np.sqrt(1 - r**2) * second
    with np.errstate(over="ignore"):  # beyond all numbers: infinite, and left out by `derive`
        return K * np.exp(np.arcsinh(wide_K / K) * first), G * np.exp(np.arcsinh(wide_G / G) * together)


def _wanted(names: Iterable[str] | None, given: Iterable[str]) -> list[str]:
    if names is None:
        return derivable(given)
    wanted = list(names)
    known = set(given)
    for name in wanted:
        lacking = [need for need in choose(RELATIONS, name, "derived property").needs if need not in known]
        if lacking:
            raise DataError(f"{name}: needs {', '.join(lacking)}")
    return wanted


def _value(name: str, inputs: dict[str, Array]) -> Array:
    relation = RELATIONS[name]
    return np.asarray(relation.function(*(inputs[need] for need in relation.needs)))


def _fitting(samples: tuple[ArrayLike, ArrayLike], crystals: int) -> tuple[Array, Array]:
    bulk, shear = (np.asarray(drawn, dtype=np.float64) for drawn in samples)
    if bulk.shape != shear.shape or bulk.ndim != 2 or len(bulk) != crystals or not bulk.shape[1]:
        raise DataError(
            f"samples: expected two arrays ({crystals} crystals, draws), got {bulk.shape} and {shear.shape}"
        )
    return bulk, shear


def _bands(names: list[str], inputs: dict[str, Array], bulk: Array, shear: Array) -> dict[str, dict[str, Array]]:
    """Return the quantiles by property and column, some crystals at a time."""
    crystals = len(bulk)
    found = {name: {f"{name}{ending}": np.full(crystals, np.nan) for ending in QUANTILES} for name in names}
    for part in _parts(crystals, bulk.shape[1]):
        K, G = bulk[part], shear[part]
        usable = np.isfinite(K) & np.isfinite(G) & (K > 0) & (G > 0)
        drawn = {name: values[part, None] for name, values in inputs.items()}
        drawn |= {"bulk": np.where(usable, K, np.nan), "shear": np.where(usable, G, np.nan)}
        for name in names:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                drawn_values = _value(name, drawn)
            values = np.broadcast_to(drawn_values, K.shape)
            for column, band in zip(found[name].values(), _quantiles(values), strict=True):
                column[part] = band
    return found


def _parts(crystals: int, draws: int) -> Iterator[slice]:
    size = max(1, _AT_ONCE // draws)
    return (slice(start, start + size) for start in range(0, crystals, size))


def _quantiles(values: Array) -> Array:
    """Return the quantiles of each row without its ``nan`` (quantiles, rows), ``nan`` where those are the most."""
    ordered = np.sort(values, axis=1)  # nan come last
    count = np.isfinite(ordered).sum(axis=1)
    place = np.array(list(QUANTILES.values()))[:, None] * np.maximum(count - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low, high = (np.take_along_axis(ordered, index.T, axis=1).T for index in (below, above))
    return np.where(2 * count >= values.shape[1], low + (place - below) * (high - low), np.nan)


def _normal_points(number: int) -> tuple[Array, Array]:
    """Return points that fill the standard normal distribution of two numbers evenly, each (number,)."""
    if number < 1:
        raise DataError(f"draws: expected at least 1, got {number}")
    golden = 1.324717957244746  # the real root of x³ = x + 1
    u, v = (np.mod(0.5 + np.arange(1, number + 1) / golden**power, 1.0) for power in (1, 2))
    radius = np.sqrt(-2 * np.log(1 - u))
    return radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)
