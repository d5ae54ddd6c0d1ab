"""Derived properties of rows of inputs as users give them: cells checked, densities completed, metals told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgnn.errors import DataError
from cgnn.physics import RELATIONS, derivable, flags, is_metal, is_superhard, lognormal_samples
from cgnn.physics import derive as derive_arrays
from cgnn.physics.elastic import DALTON, Array, poisson_ratio
from cgnn.physics.propagation import QUANTILES
from cgnn.physics.relations import INPUTS

NUMBERS = (*INPUTS, "bulk_std", "shear_std", "correlation", "band_gap")
"""Inputs that are numbers; ``formula`` is a text."""

_NEEDED = ("bulk", "shear")
_LEAST = {"bulk_std": 0.0, "shear_std": 0.0, "band_gap": 0.0, "correlation": -1.0}
_WORDS = {"bulk": "bulk modulus", "shear": "shear modulus"}
_DENSE = DALTON * 1e27  # mass per atom in u and volume in Å³ to g/cm³


@dataclass(frozen=True)
class Derived:
    """What was derived from rows of inputs.

    Args:
        kept: Rows that could be used (n,).
        reasons: Row that could not -> why.
        columns: Name -> values of the kept rows.
        flags: What to know of each kept row.
        metal: Whether each kept row is a metal.
        poisson: Its Poisson's ratio.
    """

    kept: NDArray[np.int64]
    reasons: dict[int, str]
    columns: dict[str, Array]
    flags: list[str]
    metal: NDArray[np.bool_]
    poisson: Array

    @property
    def superhard(self) -> NDArray[np.bool_]:
        """Which kept rows rank as superhard by Mazhnik and Oganov's hardness; none where it was not derived."""
        hardness = self.columns.get("hardness_mo", np.zeros(len(self.kept)))
        return is_superhard(hardness, self.poisson, self.metal)


def derive_rows(inputs: Mapping[str, Sequence[Any]], draws: int, names: Sequence[str] | None) -> Derived:
    """Derive properties from columns of cells.

    Args:
        inputs: Names of `NUMBERS` and ``formula`` -> cells; ``None`` and ``nan`` are unknown.
        draws: Of each crystal, where both standard deviations are given.
        names: Wanted properties; all that can be derived by default.

    Raises:
        ConfigError: No such property.
        DataError: A wanted property lacks an input.
    """
    size = len(inputs["bulk"])
    reasons: dict[int, str] = {}
    columns = {name: _numbers(name, inputs[name], reasons) for name in NUMBERS if name in inputs}
    masses, metal = _chemistry(inputs.get("formula", [None] * size), columns.get("band_gap"), reasons)
    kept = np.array([row for row in range(size) if row not in reasons], dtype=np.int64)
    columns = {name: values[kept] for name, values in columns.items()}
    metal, masses = metal[kept], masses[kept]
    if "formula" in inputs:
        _complete(columns, masses)
    found = _with_bands(columns, draws, names) if len(kept) else {}
    nu = poisson_ratio(columns["bulk"], columns["shear"])
    return Derived(kept, reasons, found, flags(nu, metal), metal, nu)


def _with_bands(columns: Mapping[str, Array], draws: int, names: Sequence[str] | None) -> dict[str, Array]:
    K, G = columns["bulk"], columns["shear"]
    samples = None
    if "bulk_std" in columns and "shear_std" in columns:
        r = columns.get("correlation", np.zeros(len(K)))
        samples = lognormal_samples(K, G, columns["bulk_std"], columns["shear_std"], np.nan_to_num(r), draws)
    given = {name: columns[name] for name in INPUTS if name in columns}
    return derive_arrays(**given, samples=samples, names=names)


def _numbers(name: str, cells: Sequence[Any], reasons: dict[int, str]) -> Array:
    """Return cells as numbers, ``nan`` where unknown; say in ``reasons`` which rows can't be used."""
    found = np.full(len(cells), np.nan)
    least = _LEAST.get(name)
    for row, cell in enumerate(cells):
        what = _WORDS.get(name, name.replace("_", " "))
        if cell is None or cell != cell:
            if name in _NEEDED:
                reasons.setdefault(row, f"no {what}")
        elif isinstance(cell, bool) or not isinstance(cell, int | float) or math.isinf(cell):
            reasons.setdefault(row, f"{what}: expected a number, got {str(cell)[:40]!r}")
        elif cell <= 0 if least is None else cell < least or (name == "correlation" and cell > 1):
            wanted = "above 0" if least is None else "from -1 to 1" if least < 0 else "of 0 or more"
            reasons.setdefault(row, f"{what}: expected a number {wanted}, got {cell:g}")
        else:
            found[row] = cell
    return found


def _chemistry(formulas: Sequence[Any], gaps: Array | None, reasons: dict[int, str]) -> tuple[Array, NDArray[np.bool_]]:
    """Return the mean mass of an atom (u, ``nan`` = unknown) and whether each crystal is a metal."""
    masses, metal = np.full(len(formulas), np.nan), np.zeros(len(formulas), dtype=np.bool_)
    for row, formula in enumerate(formulas):
        if formula is None or formula != formula or formula == "":
            continue
        try:
            masses[row], elements = _read_formula(str(formula))
        except DataError as error:
            reasons.setdefault(row, str(error))
            continue
        metal[row] = is_metal(elements, None if gaps is None else float(gaps[row]))
    return masses, metal


@lru_cache(maxsize=100_000)
def _read_formula(formula: str) -> tuple[float, tuple[str, ...]]:
    from pymatgen.core import Composition, Element

    try:
        composition = Composition(formula)
        elements = composition.elements
        if elements and all(isinstance(element, Element) for element in elements):
            mass = float(composition.weight) / float(composition.num_atoms)
            return mass, tuple(element.symbol for element in elements)
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        pass
    raise DataError(f"formula: expected one such as B4C, got {formula[:40]!r}")


def _complete(columns: dict[str, Array], masses: Array) -> None:
    """Fill in densities where volumes are known, and volumes where densities are."""
    if "volume_per_atom" in columns:
        density = columns.get("density", np.full(len(masses), np.nan))
        columns["density"] = np.where(np.isnan(density), masses * _DENSE / columns["volume_per_atom"], density)
    elif "density" in columns:
        columns["volume_per_atom"] = masses * _DENSE / columns["density"]


def notes(inputs: Mapping[str, Any], correlation_given: bool) -> list[str]:
    """Return what was taken for granted or left out for want of inputs."""
    found = []
    spread = [name for name in ("bulk_std", "shear_std") if name in inputs]
    if len(spread) == 1:
        found.append(f"only {spread[0]} is given: bands need the standard deviations of both moduli; none are derived")
    if len(spread) == 2 and not correlation_given:
        found.append("the errors of both moduli are taken as independent: no correlation is given")
    if "formula" not in inputs:
        barred = ", ".join(name for name, relation in RELATIONS.items() if not relation.for_metals)
        found.append(f"no formula is given: metals can't be told, for which these are not valid: {barred}")
    return found


def left_out(known: set[str]) -> list[str]:
    """Return sentences that name the properties which lack an input, by that input."""
    lacking: dict[str, list[str]] = {}
    for name, relation in RELATIONS.items():
        if missing := [need.replace("_", " ") for need in relation.needs if need not in known]:
            lacking.setdefault(" and ".join(missing), []).append(name)
    return [f"no {inputs}: left out {', '.join(names)}" for inputs, names in lacking.items()]


def one_crystal(
    crystal: Mapping[str, Any], draws: int, names: Sequence[str] | None
) -> tuple[dict[str, Any], list[str]]:
    """Derive the properties of one crystal.

    Args:
        crystal: Names of `NUMBERS` and ``formula`` -> its value; ``None`` is unknown.
        draws: For the bands.
        names: Wanted properties.

    Returns:
        Plain values for JSON (``inputs``, ``properties``, ``flags``, ``superhard``), and what to tell the user.

    Raises:
        ConfigError: No such property.
        DataError: An input can't be used; names it and its value.
    """
    inputs = {name: [value] for name, value in crystal.items() if value is not None}
    found = derive_rows(inputs, draws, names)
    if found.reasons:
        raise DataError(found.reasons[0])
    columns = {name: float(values[0]) for name, values in found.columns.items()}
    wanted = [name for name in RELATIONS if name in columns]
    told = notes(inputs, "correlation" in inputs)
    if names is None:
        told += left_out({need for name in wanted for need in RELATIONS[name].needs})
    return {
        "inputs": {name: values[0] for name, values in inputs.items()},
        "properties": {name: _described(name, columns) for name in wanted},
        "superhard": bool(found.superhard[0]) if "hardness_mo" in columns else None,
        "flags": found.flags,
    }, told


def _described(name: str, columns: Mapping[str, float]) -> dict[str, Any]:
    relation = RELATIONS[name]
    bands = {ending[1:]: columns[f"{name}{ending}"] for ending in QUANTILES if f"{name}{ending}" in columns}
    return {
        "value": columns[name],
        **bands,
        "unit": relation.unit,
        "formula": relation.formula,
        "source": relation.source + (f", doi:{relation.doi}" if relation.doi else ""),
        "validity": relation.validity,
    }


def one_text(found: Mapping[str, Any]) -> str:
    """Return what `one_crystal` gave as a table for people: value, bands, unit, formula, validity, source."""
    rows = [["property", "value", "68 %", "90 %", "unit", "validity", "source"]]
    for name, entry in found["properties"].items():
        ends = [f"{entry[a]:.4g} to {entry[b]:.4g}" if a in entry else "" for a, b in (("p16", "p84"), ("p5", "p95"))]
        rows.append([name, f"{entry['value']:.5g}", *ends, entry["unit"], entry["validity"], entry["source"]])
    shown = [place for place in range(7) if any(row[place] for row in rows[1:])]
    widths = [max(len(row[place]) for row in rows) for place in shown]
    lines = [
        "  ".join(row[place].ljust(width) for place, width in zip(shown, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, *(f"! {flag}" for flag in found["flags"] if flag)])


def columns_of(names: Sequence[str] | None, known: set[str], with_bands: bool) -> dict[str, str]:
    """Return the columns that `derive_rows` gives for such inputs, with their units."""
    wanted = list(names) if names is not None else derivable(known)
    endings = ("", *QUANTILES) if with_bands else ("",)
    return {f"{name}{ending}": RELATIONS[name].unit for name in wanted for ending in endings}
