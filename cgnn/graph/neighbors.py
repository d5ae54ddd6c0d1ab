"""Neighbour strategies: which atoms send messages to which.

Every strategy takes bare arrays and `GraphConfig` and returns `Neighbors`. The search is pymatgen's compiled
routine with a cutoff taken from the density, grown until every atom's own cutoff lies inside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pymatgen.optimization.neighbors import find_points_in_spheres

from cgnn.config import GraphConfig
from cgnn.errors import CrystalError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PERIODIC = np.ones(3, dtype=np.int64)
_MAX_IMAGES = 5_000_000
"""Atoms in the images of the cell that a search may have to look at."""
_LARGE = 1000
"""Cells of more atoms are looked at for crowded corners before a search."""


@dataclass(frozen=True)
class Neighbors:
    """Edges sorted by target, then by distance.

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


def within(pos: Floats, lattice: Floats, cutoff: float) -> Neighbors:
    """Return all pairs not farther apart than a cutoff, an atom's own images included.

    Args:
        pos: Cartesian positions (N, 3), Å.
        lattice: Rows are the lattice vectors (3, 3), Å.
        cutoff: Å.

    Raises:
        CrystalError: The cell is so flat or skewed that the search would need too many images.
    """
    _check_images(len(pos), lattice, cutoff)
    target, source, shift, distance = find_points_in_spheres(
        all_coords=pos, center_coords=pos, r=float(cutoff), pbc=_PERIODIC, lattice=lattice, tol=1e-8
    )
    shift = np.rint(shift).astype(np.int64)
    other = (source != target) | shift.any(axis=1)
    source, target, shift, distance = source[other], target[other], shift[other], distance[other]
    order = np.lexsort((distance, target))
    reach = np.full(len(pos), np.inf)
    return Neighbors(source[order], target[order], shift[order], distance[order], reach)


def _check_images(atoms: int, lattice: Floats, cutoff: float) -> None:
    heights = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    images = np.prod(2 * np.ceil(cutoff / heights) + 1)
    if not atoms * images <= _MAX_IMAGES:
        raise CrystalError(
            "cell_shape",
            f"the cell is so flat or skewed that its neighbours up to {cutoff:.1f} Å need {images:.0f} images "
            f"of its {atoms} atoms (limit {_MAX_IMAGES} atoms); use a reduced cell",
        )


def _check_pairs(pos: Floats, lattice: Floats, cutoff: float, limit: int) -> None:
    """Refuse a search that would find far more pairs than a graph may have edges, before its memory is taken.

    The mean density tells it, and for large cells, which may be crowded in one corner, a search with half the cutoff.
    """
    atoms = len(pos)
    expected = 4 / 3 * np.pi * cutoff**3 * atoms**2 / abs(np.linalg.det(lattice))
    if atoms > _LARGE:
        expected = max(expected, 8 * len(within(pos, lattice, cutoff / 2).source))
    if expected > max(4 * limit, 1_000_000):
        raise CrystalError(
            "too_large",
            f"about {expected:.2g} pairs of atoms lie within {cutoff:.1f} Å; "
            f"that can't end below the limit of {limit} edges (graph.max_edges)",
        )


def _cutoff_from_density(atoms: int, lattice: Floats, k: int, reach: float) -> float:
    """Return the radius (Å) of a sphere that holds k atoms on average, with a margin for uneven ones."""
    volume_per_atom = abs(np.linalg.det(lattice)) / atoms
    return float(1.15 * reach * (3 * (k + 1) * volume_per_atom / (4 * np.pi)) ** (1 / 3))


def _kth_distance(found: Neighbors, atoms: int, k: int) -> Floats:
    """Return the distance of each atom's k-th neighbour (N,), ``inf`` where fewer were found."""
    counts = np.bincount(found.target, minlength=atoms)
    first = np.cumsum(counts) - counts
    kth = np.full(atoms, np.inf)
    enough = counts >= k
    kth[enough] = found.distance[first[enough] + k - 1]
    return kth


def _grown(pos: Floats, lattice: Floats, settings: GraphConfig, factor: float) -> tuple[Neighbors, Floats]:
    """Search until ``factor`` times every atom's k-th distance is covered or the largest cutoff is reached.

    Returns:
        All neighbours up to some radius, and each atom's k-th distance (``inf`` beyond the cutoff).
    """
    atoms = len(pos)
    cutoff = min(_cutoff_from_density(atoms, lattice, settings.k, factor), settings.cutoff)
    while True:
        _check_pairs(pos, lattice, cutoff, settings.max_edges)
        found = within(pos, lattice, cutoff)
        kth = _kth_distance(found, atoms, settings.k)
        needed = factor * kth.max()
        if cutoff >= min(needed, settings.cutoff):
            return found, kth
        # With every k-th neighbour known the second search is exact; before that the sphere only grows.
        cutoff = min(needed * (1 + 1e-9) if np.isfinite(needed) else 1.4 * cutoff, settings.cutoff)


def nearest(pos: Floats, lattice: Floats, settings: GraphConfig) -> Neighbors:
    r"""All neighbours within ``reach`` times the radius that holds k neighbours, fading to zero there.

    The radius is that of a smooth count: r_i with

    .. math:: \sum_j S(d_{ij} / r_i)\, T(d_{ij}) = k - 1/2

    where S falls smoothly from one to zero between 0.9 and 1.1, and T from one to zero below the largest
    cutoff. It is nearly the distance of the k-th neighbour, but has no kinks where neighbours change places.
    (Half a neighbour less than k, because between shells the count stays at a whole number and would leave
    the radius open.) It is the same in every description of a crystal, so with a smooth envelope the
    network's answer is invariant and continuous with its slope.
    """
    found, kth = _grown(pos, lattice, settings, max(settings.reach, 1 + _SOFT) / (1 - _SOFT))
    reach = _bounded(settings.reach * _counted_radius(found, kth, settings), settings.cutoff)
    return found.keep(found.distance < reach[found.target], reach)


_SOFT = 0.1
"""Half the relative width over which a neighbour begins to count."""


def _falling(x: Floats, start: float, stop: float) -> tuple[Floats, Floats]:
    """Return a step from one (below start) to zero (above stop), twice continuously differentiable, and its slope."""
    u = np.clip((x - start) / (stop - start), 0.0, 1.0)
    return 1 - u**3 * (10 - 15 * u + 6 * u**2), -30 * u**2 * (1 - u) ** 2 / (stop - start)


def _counted_radius(found: Neighbors, kth: Floats, settings: GraphConfig) -> Floats:
    """Return the radius (N,) within which k - 1/2 neighbours lie, counted smoothly; ``inf`` where there are fewer.

    Newton's method, kept inside a bracket by bisection.
    """
    fading = _falling(found.distance, 0.8 * settings.cutoff, settings.cutoff)[0]
    counted = fading > 0
    target, distance, fading = found.target[counted], found.distance[counted], fading[counted]
    wanted = settings.k - 0.5
    enough = np.bincount(target, weights=fading, minlength=len(kth)) > wanted
    # Fewer than k neighbours count inside the lower end, all of the first k outside the upper one, fading aside.
    low = np.where(enough, kth, 1.0) / (1 + _SOFT)
    high = np.where(kth < 0.8 * settings.cutoff, kth, settings.cutoff) / (1 - _SOFT)
    radius = 0.5 * (low + np.where(enough, kth, 1.0) / (1 - _SOFT))
    is_settled = ~enough
    for _ in range(60):
        ratio = distance / radius[target]
        counts, slopes = _falling(ratio, 1 - _SOFT, 1 + _SOFT)
        excess = np.bincount(target, counts * fading, len(kth)) - wanted
        slope = np.bincount(target, -slopes * fading * ratio, len(kth)) / radius
        too_small = excess < 0
        low, high = np.where(too_small, radius, low), np.where(too_small, high, radius)
        step = radius - excess / np.maximum(slope, 1e-300)
        new = np.where((step >= low) & (step <= high), step, 0.5 * (low + high))
        # The error after a Newton step is of the order of its square: a step of 1e-8 leaves about 1e-14.
        change = np.abs(new - radius)
        radius = np.where(is_settled, radius, new)
        is_settled |= change <= 1e-8 * radius
        if is_settled.all():
            break
    return np.where(enough, radius, np.inf)


def _bounded(reach: Floats, cutoff: float) -> Floats:
    """Return ``min(reach, cutoff)`` with the corner rounded off between 0.8 and 1.2 of the cutoff."""
    x = np.minimum(reach / cutoff, 1.2)
    return cutoff * (x - np.maximum(x - 0.8, 0.0) ** 2 / 0.8)


def shells(pos: Floats, lattice: Floats, settings: GraphConfig) -> Neighbors:
    """The k nearest neighbours and whatever lies at the distance of the k-th, within a tolerance.

    Invariant, but jumps when an atom enters or leaves a shell.
    """
    found, kth = _grown(pos, lattice, settings, 1 + settings.tolerance)
    limit = np.minimum((1 + settings.tolerance) * kth, settings.cutoff)
    return found.keep(found.distance <= limit[found.target], found.reach)


def radius(pos: Floats, lattice: Floats, settings: GraphConfig) -> Neighbors:
    """All neighbours within the cutoff, fading to zero there."""
    _check_pairs(pos, lattice, settings.cutoff, settings.max_edges)
    found = within(pos, lattice, settings.cutoff)
    return found.keep(found.distance < settings.cutoff, np.full(len(pos), settings.cutoff))


def cgcnn(pos: Floats, lattice: Floats, settings: GraphConfig) -> Neighbors:
    """The k nearest neighbours, cut through a shell of equals if need be.

    Kept to reproduce the original CGCNN (Xie and Grossman, PRL 120, 145301, 2018): which of several
    equally distant atoms are kept depends on rounding, so it is neither invariant nor continuous.
    """
    found, _ = _grown(pos, lattice, settings, 1.0)
    counts = np.bincount(found.target, minlength=len(pos))
    rank = np.arange(len(found.target)) - (np.cumsum(counts) - counts)[found.target]
    return found.keep(rank < settings.k, found.reach)


Strategy = Callable[[Floats, Floats, GraphConfig], Neighbors]
NEIGHBORS: dict[str, Strategy] = {
    "nearest": nearest,
    "shells": shells,
    "radius": radius,
    "cgcnn": cgcnn,
}
