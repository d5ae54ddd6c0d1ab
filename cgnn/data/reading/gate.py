"""The gate for crystals: whatever form they come in, they leave as a checked `Crystal`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pymatgen.core import DummySpecies, Element, IStructure

from cgnn.errors import CrystalError
from cgnn.graph.crystal import Crystal

Rows = list[list[float]]

MAX_SITES = 10_000
LENGTH_RANGE = (0.5, 1000.0)
"""Shortest and longest accepted lattice vector (Å); in a shorter one an atom touches its own image."""
ATOM_VOLUME_RANGE = (1.0, 1e6)
"""Smallest and largest accepted volume per atom (Å³): hydrogen at a terapascal, one atom in a 100 Å box."""
MAX_FRACTIONAL = 1e4
"""Coordinates further from the origin (in cells) lose digits that matter."""

_ELEMENTS = {element.symbol: element for element in Element} | {"D": Element("H"), "T": Element("H")}
_SPECIES = re.compile(r"([A-Z][a-z]?)(?:\d*\.?\d*[+-])?(?:,spin=-?\d+\.?\d*)?")


@lru_cache(maxsize=1024)
def element(symbol: str) -> Element:
    """Return the element of ``Fe``, ``Fe3+`` or ``D`` (hydrogen): charges, spins and isotopes are dropped.

    Raises:
        CrystalError: It is no chemical element (``X``, ``Vac``, ``NH3``).
    """
    match = _SPECIES.fullmatch(symbol)
    found = _ELEMENTS.get(match[1]) if match else None
    if found is None:
        raise CrystalError("unknown_element", f"{symbol[:40]!r} is no chemical element")
    return found


def build_crystal(lattice: ArrayLike, species: Sequence[Any], coords: ArrayLike, cartesian: bool = False) -> Crystal:
    """Return a new, checked crystal.

    Args:
        lattice: Lattice vectors as rows (3, 3), Å.
        species: Element symbols, N of them.
        coords: Fractional or cartesian (Å) coordinates (N, 3).
        cartesian: Whether ``coords`` are cartesian.

    Raises:
        CrystalError: The crystal is empty, too large, not finite, flat, absurdly dense or thin, or holds
            something that is no element.
    """
    check_count(len(species))
    matrix = _floats(lattice, (3, 3), "lattice")
    positions = _floats(coords, (len(species), 3), "coordinates")
    _check_cell(matrix.tolist(), len(species))
    with np.errstate(all="ignore"):  # what overflows here is refused by size
        fractions = positions @ _inverse(matrix.tolist()) if cartesian else positions
    if not max(fractions.max(), -fractions.min()) <= MAX_FRACTIONAL:
        raise CrystalError("bad_coordinates", f"an atom lies more than {MAX_FRACTIONAL:g} cells from the origin")
    numbers = np.array([atomic_number(each) if isinstance(each, str) else _number_of(each) for each in species])
    return Crystal(numbers, positions if cartesian else _cartesian(positions, matrix), matrix)


def check_structure(structure: IStructure) -> Crystal:
    """Return a crystal's lattice, elements and coordinates, checked.

    Oxidation states, spins and site properties are left behind; the input is not changed.

    Raises:
        CrystalError: The crystal is disordered, not periodic, or unusable as `build_crystal` says.
    """
    check_count(len(structure))
    if not all(structure.lattice.pbc):
        raise CrystalError("not_periodic", "the crystal is not periodic in all three directions")
    return build_crystal(structure.lattice.matrix, structure.species_and_occu, structure.frac_coords)


def check_count(sites: int) -> None:
    """Refuse a crystal without atoms or with too many.

    Raises:
        CrystalError: There is no site, or there are more than ``MAX_SITES``.
    """
    if sites == 0:
        raise CrystalError("no_sites", "the crystal has no atoms")
    if sites > MAX_SITES:
        raise CrystalError("too_large", f"the crystal has {sites:,} atoms; at most {MAX_SITES:,} are accepted")


def disordered(what: str) -> CrystalError:
    """Return the error for a site that is partly occupied or shared."""
    return CrystalError("disordered", f"{what}: only fully occupied sites of one element can be used")


@lru_cache(maxsize=1024)
def atomic_number(symbol: str) -> int:
    """Return the atomic number of what `element` accepts."""
    return int(element(symbol).Z)


def _number_of(species: Any) -> int:
    if not hasattr(species, "items"):
        raise CrystalError("unknown_element", f"{str(species)[:40]!r} is no chemical element")
    if len(species) != 1 or abs(species.num_atoms - 1) > 1e-6:
        raise disordered(f"a site holds {str(species)[:80]}")
    (one,) = species
    if isinstance(one, DummySpecies):
        raise CrystalError("unknown_element", f"{str(one)[:40]!r} is no chemical element")
    return atomic_number(one.symbol)


def _floats(values: ArrayLike, shape: tuple[int, int], what: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError):
        array = np.asarray(None)
    if array.dtype.kind not in "fiu" or array.shape != shape:
        raise CrystalError(f"bad_{what}", f"the {what} must be {shape[0]} x {shape[1]} numbers")
    if not np.isfinite(array).all():
        raise CrystalError(f"bad_{what}", f"a number of the {what} is not finite")
    return array.astype(np.float64)


def _check_cell(rows: Rows, sites: int) -> None:
    lengths = [math.sqrt(x * x + y * y + z * z) for x, y, z in rows]
    if not LENGTH_RANGE[0] <= min(lengths) <= max(lengths) <= LENGTH_RANGE[1]:
        raise CrystalError(
            "bad_lattice",
            f"the lattice vectors are {min(lengths):.3g} to {max(lengths):.3g} Å long, "
            f"outside {LENGTH_RANGE[0]:g} to {LENGTH_RANGE[1]:g} Å",
        )
    a, b, c = rows
    volume = abs(_dot(a, _cross(b, c))) / sites
    if not ATOM_VOLUME_RANGE[0] <= volume <= ATOM_VOLUME_RANGE[1]:
        raise CrystalError(
            "bad_volume",
            f"the volume is {volume:.3g} Å³ per atom, outside {ATOM_VOLUME_RANGE[0]:g} to {ATOM_VOLUME_RANGE[1]:g} Å³",
        )


# for nine numbers a call into linear algebra costs more than the arithmetic


def _cartesian(fractions: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``fractions @ matrix``; written out, because the last digit of a BLAS product may depend on the call."""
    return fractions[:, :1] * matrix[0] + fractions[:, 1:2] * matrix[1] + fractions[:, 2:] * matrix[2]


def _inverse(rows: Rows) -> NDArray[np.float64]:
    a, b, c = rows
    columns = [_cross(b, c), _cross(c, a), _cross(a, b)]
    volume = _dot(a, columns[0])
    return np.array([[column[axis] / volume for column in columns] for axis in range(3)])


def _cross(a: list[float], b: list[float]) -> list[float]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def _dot(a: list[float], b: list[float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
