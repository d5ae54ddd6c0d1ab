"""Prototypes: which crystals differ by the names of their elements only.

Two settings of one structure may name a Wyckoff position by different letters (4a and 4b of Fm-3m change places when
the origin moves), so a prototype is named by multiplicities and site symmetries, which do not depend on the setting.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import reduce
from math import gcd
from typing import Any

import numpy as np

from cgnn.graph.fields import Arrays

SYMPREC = 0.1
"""Distance (Å) up to which atoms count as being on a place of symmetry, as in the Materials Project."""

_MIRRORED = {78: 76, 95: 91, 96: 92, 145: 144, 153: 151, 154: 152, 170: 169, 172: 171, 179: 178, 181: 180, 213: 212}
"""Space groups that are mirror images of others: a crystal and its mirror image have one prototype."""


def prototype(graph: Arrays) -> str:
    """Return the name of a crystal's prototype (``1:1 225 4*-3mm 4*-3mm`` for rock salt).

    Reduced formula without names of elements, space group, and for each element the multiplicities (in the
    conventional cell) and site symmetries of its Wyckoff positions: the same in every cell, orientation and setting,
    for any naming of the elements, and for the mirror image. Letters and free parameters are left out, so that some
    prototypes of the literature share a name. Where spglib finds no symmetry, the formula alone is the name.

    Args:
        graph: Stored fields of one crystal; ``z``, ``pos`` and ``lattice`` are used.

    Source: spglib (Togo, Shinohara and Tanaka, doi:10.1080/27660400.2024.2384822); the idea of the name follows
        AFLOW's prototype labels (Hicks et al., doi:10.1016/j.commatsci.2018.10.043).
    """
    z = graph["z"]
    formula = _formula(z.tolist())
    found = _symmetry(graph["lattice"][0], graph["pos"], z)
    if found is None:
        return formula
    group = _MIRRORED.get(found.number, found.number)
    return " ".join([formula, str(group), *sorted(_sites(z.tolist(), found))])


def inequivalent_sites(graph: Arrays) -> int:
    """Return how many sites of a crystal no symmetry maps onto each other; of a crystal without symmetry, all.

    Where there is only one, every atom has the same features by symmetry, whatever a network does.

    Args:
        graph: Stored fields of one crystal; ``z``, ``pos`` and ``lattice`` are used.
    """
    found = _symmetry(graph["lattice"][0], graph["pos"], graph["z"])
    return len(graph["z"]) if found is None else len(set(found.crystallographic_orbits.tolist()))


def _formula(elements: list[int]) -> str:
    counts = Counter(elements).values()
    divisor = reduce(gcd, counts)
    return ":".join(str(count // divisor) for count in sorted(counts))


def _symmetry(lattice: Any, pos: Any, z: Any) -> Any:
    """Return spglib's symmetry of a crystal, or nothing where it finds none."""
    import spglib

    positions = pos @ np.linalg.inv(lattice)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of how it tells errors; both ways are met here
        try:
            return spglib.get_symmetry_dataset((lattice, positions, z), symprec=SYMPREC)
        except spglib.error.SpglibError:
            return None


def _sites(elements: list[int], found: Any) -> Iterable[str]:
    """Yield for each element its Wyckoff positions, such as ``4*m+8*1``."""
    size = len(found.std_types) / len(elements)  # of the conventional cell, in given cells
    orbits: dict[int, Counter[tuple[int, str]]] = defaultdict(Counter)
    symbols = map(_unordered, found.site_symmetry_symbols)
    for element, orbit, symbol in zip(elements, found.crystallographic_orbits, symbols, strict=True):
        orbits[element][int(orbit), symbol] += 1
    for counts in orbits.values():
        yield "+".join(sorted(f"{round(count * size)}*{symbol}" for (_, symbol), count in counts.items()))


def _unordered(symbol: str) -> str:
    """Return a site symmetry without the order of its axes (``.m.`` and ``m..`` are one mirror each)."""
    return "".join(sorted(symbol.replace(".", "")))
