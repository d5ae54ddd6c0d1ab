"""From a crystal to its graph."""

from __future__ import annotations

import hashlib
from math import isfinite
from typing import Any

import numpy as np
import orjson

from cgnn.config import GraphConfig
from cgnn.errors import CrystalError, choose
from cgnn.graph.crystal import Crystal
from cgnn.graph.fields import Arrays, CrystalGraph
from cgnn.graph.neighbors import NEIGHBORS
from cgnn.graph.search import Neighbors

SCHEMA = 1
"""Raised when the stored fields change, so that prepared graphs of another version are not used."""

MIN_DISTANCE = 0.5
"""Two atoms nearer than this (Å) are a mistake: the shortest real bond, H2, is 0.74 Å."""


class GraphBuilder:
    """Turns crystals into graphs.

    Args:
        settings: How neighbours are found; the default is all neighbours within 1.25 times the radius
            that holds twelve, under a smooth envelope.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> rock_salt = Structure.from_spacegroup(
        ...     "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
        ... )
        >>> GraphBuilder()(rock_salt).num_nodes
        8
    """

    def __init__(self, settings: GraphConfig | None = None) -> None:
        self.settings = settings or GraphConfig()
        self._strategy = choose(NEIGHBORS, self.settings.neighbors, "neighbour strategy")

    def __call__(self, crystal: Any) -> CrystalGraph:
        """Return the graph of a `Crystal`, a pymatgen ``Structure`` or ASE ``Atoms``.

        Raises:
            CrystalError: The crystal can't be used: partial occupancy, no periodicity, overlapping
                atoms, or more atoms or edges than the settings allow.
        """
        return CrystalGraph.from_arrays(self.arrays(crystal))

    def arrays(self, crystal: Any) -> Arrays:
        """Return the graph as numpy arrays with the stored dtypes; raises as `__call__`."""
        z, pos, lattice = crystal_arrays(crystal)
        self._check_size(len(z))
        _check_cell(len(z), pos, lattice)
        found = self._strategy(pos, lattice, self.settings)
        self._check_edges(found)
        return {
            "z": z,
            "pos": pos,
            "reach": found.reach,
            "lattice": lattice[None],
            "source": found.source,
            "target": found.target,
            "edge_shift": found.shift,
        }

    def _check_size(self, atoms: int) -> None:
        limit = self.settings.max_atoms
        if not atoms:
            raise CrystalError("empty", "the crystal has no atoms")
        if atoms > limit:
            raise CrystalError("too_large", f"{atoms} atoms, the limit is {limit} (graph.max_atoms)")

    def _check_edges(self, found: Neighbors) -> None:
        limit = self.settings.max_edges
        if len(found.source) > limit:
            raise CrystalError("too_large", f"{len(found.source)} edges, the limit is {limit} (graph.max_edges)")
        if not len(found.source):
            return
        edge = int(found.distance.argmin())
        if found.distance[edge] < MIN_DISTANCE:
            first, second = sorted((int(found.source[edge]), int(found.target[edge])))
            raise CrystalError(
                "overlap",
                f"atoms {first} and {second} (counted from 0, images included) are "
                f"{found.distance[edge]:.3f} Å apart, nearer than {MIN_DISTANCE} Å",
            )


def crystal_arrays(crystal: Any) -> tuple[Any, Any, Any]:
    """Return atomic numbers (N,), positions (N, 3) and lattice (3, 3), Å, of a crystal, as own arrays of stored dtypes.

    Args:
        crystal: A `Crystal`, a pymatgen ``Structure`` or ASE ``Atoms``.

    Raises:
        CrystalError: It is not periodic in three directions, has partial occupancy or atoms of no element.
    """
    if isinstance(crystal, Crystal):
        numbers, pos, lattice, periodic = crystal.z.tolist(), crystal.pos, crystal.lattice, True
    elif hasattr(crystal, "get_atomic_numbers"):
        numbers, pos = crystal.get_atomic_numbers().tolist(), crystal.get_positions()
        lattice, periodic = crystal.cell, all(crystal.pbc)
    elif hasattr(crystal, "lattice"):
        numbers, pos = _numbers(crystal), crystal.cart_coords
        lattice, periodic = crystal.lattice.matrix, all(crystal.lattice.pbc)
    else:
        wanted = "a pymatgen Structure, ASE Atoms or a Crystal"
        raise CrystalError("not_a_crystal", f"expected {wanted}, got {type(crystal).__name__}")
    if not periodic:
        raise CrystalError("not_periodic", "the structure is not periodic in all three directions")
    if numbers and not 1 <= min(numbers) <= max(numbers) <= 118:
        raise CrystalError("unknown_element", "an atomic number is not from 1 to 118, so it is no chemical element")
    own_pos = np.array(pos, dtype=np.float64, order="C").reshape(-1, 3)
    return np.array(numbers, dtype=np.uint8), own_pos, np.array(lattice, dtype=np.float64, order="C")


def _numbers(structure: Any) -> list[int]:
    numbers, known = [], dict[int, int]()
    for site in structure.sites:
        composition = site.species
        if len(composition) != 1 or composition.num_atoms != 1:
            raise CrystalError("disordered", "a site has partial or mixed occupancy; order it first")
        (species,) = composition
        number = known.get(id(species))  # an element is one object wherever it stands
        if number is None:
            number = known[id(species)] = _number(species)
        numbers.append(number)
    return numbers


def _number(species: Any) -> int:
    number = getattr(species, "Z", None)
    if not isinstance(number, int) or not 1 <= number <= 118 or not hasattr(species, "atomic_mass"):
        raise CrystalError("unknown_element", f"{species} is no chemical element")
    return number


def _check_cell(atoms: int, pos: Any, lattice: Any) -> None:
    rows = lattice.tolist()
    if not all(isfinite(entry) for row in rows for entry in row) or not np.isfinite(pos).all():
        raise CrystalError("not_finite", "the lattice or a position is not a finite number")
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = rows
    volume = abs(ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx))
    if not 0.5 <= volume / atoms <= 1e5:
        raise CrystalError("volume", f"{volume / atoms:.3g} Å³ per atom is not a crystal (expected 0.5 to 100,000)")


def fingerprint(settings: GraphConfig) -> str:
    """Return a key of everything a stored graph depends on: the settings and the schema."""
    content = {"schema": SCHEMA, "settings": settings.model_dump(mode="json")}
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
