"""The search for neighbours in numpy and pymatgen: what the compiled one is compared with, and does without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.optimization.neighbors import find_points_in_spheres

from cgnn.errors import CrystalError

Floats = NDArray[np.float64]
Ints = NDArray[np.signedinteger[Any]]

_PERIODIC = np.ones(3, dtype=np.int64)
_MAX_IMAGES = 5_000_000
"""Atoms in the images of the cell that a search may have to look at."""
_MAX_CELLS = 5e8
"""Cells between an atom and the origin."""
_LARGE = 1000
"""Cells of more atoms are looked at for crowded corners before a search."""


@dataclass(frozen=True)
class Neighbors:
    """Edges sorted by target, then by distance, equals by source and shift.

    Args:
        source: Sending atoms (E,).
        target: Receiving atoms (E,).
        shift: Cell of the sending atom (E, 3).
        distance: Å (E,).
        reach: Distance at which messages to an atom have faded to zero (N,), Å; ``inf`` for no fading.
    """

    source: Ints
    target: Ints
    shift: Ints
    distance: Floats
    reach: Floats

    def keep(self, mask: NDArray[np.bool_], reach: Floats) -> Neighbors:
        """Return the edges of a mask, with each atom's cutoff set to ``reach``."""
        return Neighbors(self.source[mask], self.target[mask], self.shift[mask], self.distance[mask], reach)

    def stored(self) -> Neighbors:
        """Return the same with indices and shifts of the stored dtypes.

        Raises:
            CrystalError: A shift does not fit.
        """
        if len(self.shift) and np.abs(self.shift).max() > np.iinfo(np.int16).max:
            raise too_far()
        ends = self.source.astype(np.int32), self.target.astype(np.int32)
        return Neighbors(*ends, self.shift.astype(np.int16), self.distance, self.reach)


def within(pos: Floats, lattice: Floats, cutoff: float) -> Neighbors:
    """Return all pairs not farther apart than a cutoff (and 1e-8 Å), an atom's own images included.

    Args:
        pos: Cartesian positions (N, 3), Å.
        lattice: Rows are the lattice vectors (3, 3), Å.
        cutoff: Å.

    Raises:
        CrystalError: The cell is so flat or skewed that the search would need too many images.
    """
    _check_images(len(pos), lattice, cutoff)
    cells = np.floor(pos @ np.linalg.inv(lattice))
    if not (np.abs(cells) < _MAX_CELLS).all():
        raise too_far()
    inside = pos - cells @ lattice  # the routine takes memory for all space between the atoms
    target, source, shift, _ = find_points_in_spheres(
        all_coords=inside, center_coords=inside, r=float(cutoff), pbc=_PERIODIC, lattice=lattice, tol=1e-8
    )
    shift = (np.rint(shift) + cells[target] - cells[source]).astype(np.int64)
    other = (source != target) | shift.any(axis=1)
    source, target, shift = source[other], target[other], shift[other]
    distance = _distances(pos, lattice, source, target, shift)
    order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], source, distance, target))
    reach = np.full(len(pos), np.inf)
    return Neighbors(source[order], target[order], shift[order], distance[order], reach)


def _distances(pos: Floats, lattice: Floats, source: Ints, target: Ints, shift: Ints) -> Floats:
    # The operations of the compiled search, one by one: the same bits, so the same order among equals.
    cells = (shift[:, 0:1] * lattice[0] + shift[:, 1:2] * lattice[1]) + shift[:, 2:3] * lattice[2]
    vectors = (pos[source] - pos[target]) + cells
    x, y, z = vectors.T
    return np.sqrt((x * x + y * y) + z * z)


def check_cell(pos: Floats, lattice: Floats, cutoff: float, limit: int) -> None:
    """Refuse a search that would find far more pairs than a graph may have edges, before its memory is taken.

    The mean density tells it, and for large cells, which may be crowded in one corner, a search with half the cutoff.

    Args:
        pos: Cartesian positions (N, 3), Å.
        lattice: Rows are the lattice vectors (3, 3), Å.
        cutoff: Å.
        limit: Edges a graph may have.

    Raises:
        CrystalError: There would be too many, or the cell is too flat or skewed.
    """
    atoms = len(pos)
    _check_pairs(4 / 3 * np.pi * cutoff**3 * atoms**2 / abs(np.linalg.det(lattice)), cutoff, limit)
    _check_images(atoms, lattice, cutoff)
    if atoms > _LARGE:
        _check_pairs(8 * len(within(pos, lattice, cutoff / 2).source), cutoff, limit)


def _check_pairs(expected: float, cutoff: float, limit: int) -> None:
    if not expected <= max(4 * limit, 1_000_000):
        raise too_many_pairs(expected, cutoff, limit)


def _check_images(atoms: int, lattice: Floats, cutoff: float) -> None:
    heights = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    images = np.prod(2 * np.ceil(cutoff / heights) + 1)
    if not atoms * images <= _MAX_IMAGES:
        raise too_many_images(atoms, float(images), cutoff)


def too_many_images(atoms: int, images: float, cutoff: float) -> CrystalError:
    """Return what to say of a cell that needs too many images."""
    return CrystalError(
        "cell_shape",
        f"the cell is so flat or skewed that its neighbours up to {cutoff:.1f} Å need {images:.0f} images "
        f"of its {atoms} atoms (limit {_MAX_IMAGES} atoms); use a reduced cell",
    )


def too_many_pairs(expected: float, cutoff: float, limit: int) -> CrystalError:
    """Return what to say of a crystal that would have too many pairs."""
    return CrystalError(
        "too_large",
        f"about {expected:.2g} pairs of atoms lie within {cutoff:.1f} Å; "
        f"that can't end below the limit of {limit} edges (graph.max_edges)",
    )


def too_far() -> CrystalError:
    """Return what to say of atoms far outside the cell."""
    return CrystalError("cell_shape", "positions lie too many cells away from the cell")
