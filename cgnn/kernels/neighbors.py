"""The neighbours of a crystal from C."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cgnn.kernels.library import load

STRATEGIES = {"nearest": 0, "shells": 1, "radius": 2, "cgcnn": 3}
DONE, TOO_MANY_IMAGES, TOO_MANY_PAIRS, TOO_FAR, NO_MEMORY = range(5)

_Report = ctypes.c_double * 4
_MOST_ATOMS = 2**31 - 1


FoundArrays = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int16], NDArray[np.float64], NDArray[np.float64]]
"""Source (E,), target (E,), shift (E, 3), distance (E,) and reach (N,), the last two in Å."""


class Found(NamedTuple):
    """What was found, or why nothing was.

    Args:
        code: `DONE`, or what was refused.
        amount: Images or pairs that were too many.
        cutoff: The cutoff (Å) at which they were.
        arrays: The edges, sorted by target, then by distance; None where something was refused.
    """

    code: int
    amount: float
    cutoff: float
    arrays: FoundArrays | None


@cache
def _library() -> ctypes.CDLL | None:
    library = load("neighbors")
    if library is not None:
        whole, real, address = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
        library.neighbors_search.argtypes = [address, address, *[whole] * 4, *[real] * 3, address]
        library.neighbors_search.restype = address
        library.neighbors_take.argtypes = [address, address, address]
        library.neighbors_take.restype = None
        library.neighbors_free.argtypes = [address]
        library.neighbors_free.restype = None
    return library


def search(
    pos: NDArray[np.float64],
    lattice: NDArray[np.float64],
    strategy: str,
    numbers: tuple[int, int],
    lengths: tuple[float, float, float],
) -> Found | None:
    """Find neighbours; the GIL is free meanwhile, and threads do not disturb each other.

    Args:
        pos: Cartesian positions (N, 3), Å, finite.
        lattice: Rows are the lattice vectors (3, 3), Å, finite.
        strategy: A key of `STRATEGIES`.
        numbers: k, and the most edges a graph may have.
        lengths: Reach (a multiple), largest cutoff (Å), tolerance (relative).

    Returns:
        The outcome, or None where the library was not built.

    Raises:
        MemoryError: There is not enough.
    """
    library = _library()
    if library is None or not 0 < len(pos) <= _MOST_ATOMS:
        return None
    # Bytes are passed sooner than arrays.
    given = (np.asarray(values, dtype=np.float64).tobytes() for values in (pos, lattice))
    report = _Report()
    handle = library.neighbors_search(*given, len(pos), STRATEGIES[strategy], *numbers, *lengths, report)
    if report[0] == NO_MEMORY:
        raise MemoryError("no memory for the neighbours of a crystal")
    try:
        arrays = _taken(library, handle, int(report[1]), len(pos)) if handle else None
    finally:
        library.neighbors_free(handle)
    return Found(int(report[0]), report[2], report[3], arrays)


def _taken(library: ctypes.CDLL, handle: int, edges: int, atoms: int) -> FoundArrays:
    # What a graph keeps lies in one piece of memory: the addresses of five arrays would take longer than the search.
    distance, kept = np.empty(edges), np.empty(8 * atoms + 14 * edges, dtype=np.uint8)
    library.neighbors_take(handle, distance.ctypes.data, kept.ctypes.data)
    reach: NDArray[np.float64] = np.ndarray(atoms, np.float64, kept)
    source: NDArray[np.int32] = np.ndarray(edges, np.int32, kept, 8 * atoms)
    target: NDArray[np.int32] = np.ndarray(edges, np.int32, kept, 8 * atoms + 4 * edges)
    shift: NDArray[np.int16] = np.ndarray((edges, 3), np.int16, kept, 8 * atoms + 8 * edges)
    return source, target, shift, distance, reach
