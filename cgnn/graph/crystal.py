"""A crystal as bare arrays: what readers give and graphs are built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Crystal:
    """Atoms in a periodic cell, checked where they were read.

    It costs far less to make and to send than a pymatgen ``Structure``, which `to_structure` gives where it is wanted.

    Args:
        z: Atomic numbers (N,), int64.
        pos: Cartesian positions (N, 3), Å, float64.
        lattice: Rows are the lattice vectors (3, 3), Å, float64.
    """

    z: NDArray[np.int64]
    pos: NDArray[np.float64]
    lattice: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.z)

    def to_structure(self) -> Any:
        """Return a new pymatgen ``Structure``."""
        from pymatgen.core import Element, Lattice, Structure

        species = [Element.from_Z(int(z)) for z in self.z]
        return Structure(Lattice(self.lattice), species, self.pos, coords_are_cartesian=True)
