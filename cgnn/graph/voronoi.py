"""Neighbours that share a face of the Voronoi tessellation."""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.spatial import Voronoi

from cgnn.config import GraphConfig
from cgnn.graph.search import Floats, Neighbors, check_cell, within

_AROUND = np.array([corner for corner in product((-1.0, 0.0, 1.0), repeat=3) if any(corner)])
_AROUND /= np.linalg.norm(_AROUND, axis=1, keepdims=True)


def voronoi(pos: Floats, lattice: Floats, settings: GraphConfig) -> Neighbors:
    """All neighbours across a face of the atom's Voronoi cell that fills a share of ``tolerance`` of its view.

    Without a largest distance of its own, it follows the shape of the surroundings. Slow: milliseconds per atom, for
    the tessellation is made atom by atom. Invariant, but neither continuous (faces come and go) nor fading: ``reach``
    is infinite. Towards empty space a cell ends at half the largest cutoff.
    """
    cutoff = min(3.2 * (abs(np.linalg.det(lattice)) / len(pos)) ** (1 / 3), settings.cutoff)
    while True:
        check_cell(pos, lattice, cutoff, settings.max_edges)
        found = within(pos, lattice, cutoff)
        cells = [_cell(vectors, settings.cutoff) for vectors in _vectors(found, pos, lattice)]
        # A neighbour twice as far away as the farthest corner of a cell can't touch it.
        if cutoff >= settings.cutoff or cutoff >= 2 * max(corner for _, corner in cells):
            break
        cutoff = min(1.4 * cutoff, settings.cutoff)
    seen = np.concatenate([angles for angles, _ in cells]) > 4 * np.pi * settings.tolerance
    return found.keep(seen | seen[_reversed(found)], found.reach).stored()


def _vectors(found: Neighbors, pos: Floats, lattice: Floats) -> list[Floats]:
    vectors = pos[found.source] + found.shift @ lattice - pos[found.target]
    return np.split(vectors, np.cumsum(np.bincount(found.target, minlength=len(pos)))[:-1])


def _cell(vectors: Floats, cutoff: float) -> tuple[Floats, float]:
    """Return the solid angle (E,) of each neighbour's face, and the distance (Å) of the cell's farthest corner."""
    spots = np.flatnonzero(np.linalg.norm(vectors, axis=1) < 1e-3)
    angles = np.zeros(len(vectors))
    if len(spots):  # two atoms on one spot have no face between them; kept, so that the overlap is noticed
        angles[spots] = 4 * np.pi
        return angles, 0.0
    points = np.vstack([np.zeros((1, 3)), vectors, cutoff * _AROUND])
    cells = Voronoi(points)
    farthest = 0.0
    for pair, corners in zip(cells.ridge_points, cells.ridge_vertices, strict=True):
        if 0 in pair:
            face = cells.vertices[corners]
            farthest = max(farthest, float(np.linalg.norm(face, axis=1).max()))
            if pair.max() <= len(vectors):
                angles[pair.max() - 1] = _solid_angle(face)
    return angles, farthest


def _solid_angle(face: Floats) -> float:
    """Return the solid angle of a convex polygon seen from the origin, triangle by triangle.

    Source: A. van Oosterom and J. Strackee, IEEE Trans. Biomed. Eng. 30, 125 (1983), doi:10.1109/TBME.1983.325207.
    """
    unit = face / np.linalg.norm(face, axis=1, keepdims=True)
    a, b, c = unit[0], unit[1:-1], unit[2:]
    over = np.einsum("ij,ij->i", np.cross(b, c), np.broadcast_to(a, b.shape))
    under = 1 + b @ a + c @ a + np.einsum("ij,ij->i", b, c)
    return float(np.abs(2 * np.arctan2(over, under)).sum())


def _reversed(found: Neighbors) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return where the same pair stands, seen from the other atom."""
    names = np.column_stack([found.source, found.target, found.shift])
    others = np.column_stack([found.target, found.source, -found.shift])
    places = np.empty(len(names), dtype=np.int64)
    places[np.lexsort(others.T)] = np.lexsort(names.T)
    return places
