"""Small changes of a crystal along a path: an atom moves, all do, the cell is strained, a shell is split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cgnn.config import GraphConfig
from cgnn.graph.crystal import Crystal
from cgnn.graph.neighbors import NEIGHBORS

Array = NDArray[np.float64]
Path = Callable[[float], Crystal]
"""An amplitude, Å -> the changed crystal; zero gives the crystal as it is."""


def moved(crystal: Crystal, settings: GraphConfig, rng: np.random.Generator) -> Path:
    """One atom moves along a random direction, by the amplitude."""
    step = np.zeros_like(crystal.pos)
    step[rng.integers(len(crystal))] = _direction(rng)
    return _shifted(crystal, step)


def shaken(crystal: Crystal, settings: GraphConfig, rng: np.random.Generator) -> Path:
    """All atoms move along random directions; the amplitude is the root mean square of their steps."""
    step = rng.normal(size=crystal.pos.shape)
    return _shifted(crystal, step / np.sqrt((step**2).sum(1).mean()))


def strained(crystal: Crystal, settings: GraphConfig, rng: np.random.Generator) -> Path:
    """The cell is strained at random; the amplitude is the largest strain times the cube root of the atomic volume."""
    strain = rng.normal(size=(3, 3))
    strain += strain.T
    return _deformed(crystal, strain / (np.abs(np.linalg.eigvalsh(strain)).max() * _spacing(crystal)))


def split_shell(crystal: Crystal, settings: GraphConfig, rng: np.random.Generator) -> Path:
    """The k-th neighbour of an atom moves away from it, by the amplitude: of a shell of equals it alone leaves.

    Where it is an image of the atom itself, the cell is stretched along the bond.
    """
    twelve = settings.model_copy(update={"neighbors": "cgcnn"})
    found = NEIGHBORS["cgcnn"](crystal.pos, crystal.lattice, twelve)
    if not len(found.target):
        return moved(crystal, settings, rng)
    atom = rng.choice(np.unique(found.target))
    edge = np.flatnonzero(found.target == atom)[-1]  # sorted by distance
    source = found.source[edge]
    bond = crystal.pos[source] + found.shift[edge] @ crystal.lattice - crystal.pos[atom]
    length = np.linalg.norm(bond)
    if source == atom:
        return _deformed(crystal, np.outer(bond, bond) / length**3)
    step = np.zeros_like(crystal.pos)
    step[source] = bond / length
    return _shifted(crystal, step)


PERTURBATIONS: dict[str, Callable[[Crystal, GraphConfig, np.random.Generator], Path]] = {
    "moved": moved,
    "shaken": shaken,
    "strained": strained,
    "split_shell": split_shell,
}
"""A crystal, how its neighbours are found, and random numbers -> a path."""


def _direction(rng: np.random.Generator) -> Array:
    step = rng.normal(size=3)
    return np.asarray(step / np.linalg.norm(step))


def _spacing(crystal: Crystal) -> float:
    """Return the cube root of the volume per atom, Å."""
    return float((abs(np.linalg.det(crystal.lattice)) / len(crystal)) ** (1 / 3))


def _shifted(crystal: Crystal, step: Array) -> Path:
    return lambda amplitude: Crystal(crystal.z, crystal.pos + amplitude * step, crystal.lattice)


def _deformed(crystal: Crystal, strain: Array) -> Path:
    """Return the path along a strain per Å (3, 3); positions go with the cell."""

    def at(amplitude: float) -> Crystal:
        change = np.eye(3) + amplitude * strain
        return Crystal(crystal.z, crystal.pos @ change, crystal.lattice @ change)

    return at
