"""Neighbour strategies: which atoms send messages to which.

Every strategy takes bare arrays and `GraphConfig` and returns `Neighbors`. Those of `REFERENCE` are written out here
in numpy; in `NEIGHBORS` the compiled search answers for them where it was built, with the same results. The search
has a cutoff taken from the density, grown until every atom's own cutoff lies inside it.

Two pairs of equal distance may differ by rounding. So that neither way of computing decides what is kept, limits are
drawn a relative 1e-10 away from where such pairs may lie: inside it for the fading strategies, where a message on the
limit has weight zero, outside it for whole shells.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import numpy as np

from cgnn.config import GraphConfig
from cgnn.graph.search import Floats, Neighbors, check_cell, too_far, too_many_images, too_many_pairs, within
from cgnn.graph.voronoi import voronoi
from cgnn.kernels import neighbors as kernel

_TIE = 1e-10
"""Relative: pairs nearer than that to the limit of a strategy count as on it."""
_OVERLAP = 1e-6
"""Å; atoms nearer than that lie on one spot."""
_SOFT = 0.1
"""Half the relative width over which a neighbour begins to count."""
_FADE = 0.8
"""Share of the largest cutoff where neighbours begin to count less."""


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
        check_cell(pos, lattice, cutoff, settings.max_edges)
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
    # Where the largest cutoff makes neighbours count less, all up to it are wanted.
    found, kth = _grown(pos, lattice, settings, max(max(settings.reach, 1 + _SOFT) / (1 - _SOFT), 1 / _FADE))
    reach = _bounded(settings.reach * _counted_radius(found, kth, settings), settings.cutoff)
    return found.keep(found.distance <= (1 - _TIE) * reach[found.target], reach)


def _falling(x: Floats, start: float, stop: float) -> tuple[Floats, Floats]:
    """Return a step from one (below start) to zero (above stop), twice continuously differentiable, and its slope."""
    u = np.clip((x - start) / (stop - start), 0.0, 1.0)
    return 1 - u**3 * (10 - 15 * u + 6 * u**2), -30 * u**2 * (1 - u) ** 2 / (stop - start)


def _counted_radius(found: Neighbors, kth: Floats, settings: GraphConfig) -> Floats:
    """Return the radius (N,) within which k - 1/2 neighbours lie, counted smoothly; ``inf`` where there are fewer.

    Newton's method, kept inside a bracket by bisection.
    """
    fading = _falling(found.distance, _FADE * settings.cutoff, settings.cutoff)[0]
    kth = np.maximum(kth, _OVERLAP)  # k atoms on one spot: any radius holds them
    counted = fading > 0
    target, distance, fading = found.target[counted], found.distance[counted], fading[counted]
    wanted = settings.k - 0.5
    enough = np.bincount(target, weights=fading, minlength=len(kth)) > wanted
    # Fewer than k neighbours count inside the lower end, all of the first k outside the upper one, fading aside.
    low = np.where(enough, kth, 1.0) / (1 + _SOFT)
    high = np.where(kth < _FADE * settings.cutoff, kth, settings.cutoff) / (1 - _SOFT)
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
    return found.keep(found.distance <= (1 + _TIE) * limit[found.target], found.reach)


def radius(pos: Floats, lattice: Floats, settings: GraphConfig) -> Neighbors:
    """All neighbours within the cutoff, fading to zero there."""
    check_cell(pos, lattice, settings.cutoff, settings.max_edges)
    found = within(pos, lattice, settings.cutoff)
    return found.keep(found.distance <= (1 - _TIE) * settings.cutoff, np.full(len(pos), settings.cutoff))


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
REFERENCE: dict[str, Strategy] = {"nearest": nearest, "shells": shells, "radius": radius, "cgcnn": cgcnn}


def _compiled(name: str) -> Strategy:
    """Return a strategy that asks the compiled search first."""
    reference = REFERENCE[name]

    @wraps(reference)
    def strategy(pos: Floats, lattice: Floats, settings: GraphConfig) -> Neighbors:
        numbers, lengths = (settings.k, settings.max_edges), (settings.reach, settings.cutoff, settings.tolerance)
        found = kernel.search(pos, lattice, name, numbers, lengths)
        if found is None:
            return reference(pos, lattice, settings).stored()
        if found.arrays is not None:
            return Neighbors(*found.arrays)
        if found.code == kernel.TOO_MANY_IMAGES:
            raise too_many_images(len(pos), found.amount, found.cutoff)
        if found.code == kernel.TOO_MANY_PAIRS:
            raise too_many_pairs(found.amount, found.cutoff, settings.max_edges)
        raise too_far()

    return strategy


NEIGHBORS: dict[str, Strategy] = {name: _compiled(name) for name in REFERENCE} | {"voronoi": voronoi}
