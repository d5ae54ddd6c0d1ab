"""All images of sites under listed symmetry operations, computed at once."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import SymmOp

from cgnn.data.reading.cif_words import OPERATION, SITE_TOLERANCE

_LARGEST_GROUP = 192
_STEPS = 24
"""Translations of space groups are multiples of 1/24 of the cell (in fact of 1/2, 1/3, 1/4, 1/6 or 1/8)."""
_DOUBT = 4.0
"""An operation's entries are 0 or ±1, so it makes a difference of positions at most three times as large or small.
Within this factor of the tolerance, two images could be one by one operation and two by another."""
_FEW = 40
"""Up to so many atoms, all pairs cost less than a search tree."""


class Group(NamedTuple):
    """Operations that are closed under multiplication, in the order given."""

    rotations: NDArray[np.float64]
    """(M, 3, 3), acting on fractional coordinates as columns."""
    translations: NDArray[np.float64]
    """(M, 3), cells."""
    products: NDArray[np.int16]
    """(M, M), which operation it is to do the column's operation and then the row's."""


@lru_cache(maxsize=512)
def group_of(operations: tuple[str, ...]) -> Group | None:
    """Return the group of operations such as ``'x, -y, z+1/2'``, or ``None`` where they are anything but one."""
    parsed = [_operation(text) for text in operations]
    if not 1 <= len(parsed) <= _LARGEST_GROUP or any(each is None for each in parsed):
        return None
    rotations = np.array([each[0] for each in parsed if each])
    translations = np.array([each[1] for each in parsed if each])
    products = _products(rotations, translations)
    return None if products is None else Group(rotations, translations, products)


@lru_cache(maxsize=8192)
def _operation(text: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    if text[:1] in ("'", '"') and text[-1:] == text[:1]:
        text = text[1:-1]
    if not OPERATION.fullmatch(text):
        return None
    try:
        found = SymmOp.from_xyz_str("".join(text.split()))
    except (ValueError, ZeroDivisionError):
        return None
    rotation, translation = np.array(found.rotation_matrix), np.array(found.translation_vector)
    steps = translation * _STEPS
    is_plain = np.isin(rotation, (-1, 0, 1)).all() and abs(abs(np.linalg.det(rotation)) - 1) < 1e-9
    return (rotation, translation) if is_plain and np.abs(steps - np.round(steps)).max() < 1e-6 else None


def _products(rotations: NDArray[np.float64], translations: NDArray[np.float64]) -> NDArray[np.int16] | None:
    count = len(rotations)
    rows = rotations.reshape(3 * count, 3)
    products = (rows @ rotations.transpose(1, 0, 2).reshape(3, 3 * count)).reshape(count, 3, count, 3)
    moved = (rows @ translations.T).reshape(count, 3, count).transpose(0, 2, 1) + translations[:, None]
    if np.abs(products).max() > 1:
        return None
    given = _keys(rotations, translations)
    made = _keys(products.transpose(0, 2, 1, 3), moved)
    order = np.argsort(given)
    places = np.searchsorted(given, made, sorter=order)
    found = order[np.minimum(places, count - 1)]
    is_group = len(set(given.tolist())) == count and bool((given[found] == made).all())
    return found.astype(np.int16) if is_group else None


def _keys(rotations: NDArray[np.float64], translations: NDArray[np.float64]) -> NDArray[np.int64]:
    turns = (rotations.reshape(*rotations.shape[:-2], 9) + 1) @ 3.0 ** np.arange(9)
    steps = np.round(translations * _STEPS) % _STEPS @ (float(_STEPS) ** np.arange(3))
    return np.asarray(turns * _STEPS**3 + steps).astype(np.int64)


def expanded(fractions: NDArray[np.float64], group: Group) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """Return the atoms that operations make of sites: site by site, and for each in the order of the operations.

    Args:
        fractions: Fractional coordinates of the sites (S, 3).
        group: The operations.

    Returns:
        Fractional coordinates from 0 to 1 (N, 3) and the number of atoms of each site (S,), or ``None`` where two
        atoms may be meant to be one, or lie on one place.
    """
    sites, count = len(fractions), len(group.rotations)
    images = (fractions @ group.rotations.reshape(3 * count, 3).T).reshape(sites, count, 3) + group.translations
    if count > 1:
        moves = images - fractions[:, None]
        distances = np.abs(moves - np.rint(moves)).max(axis=2)
        stays = distances < SITE_TOLERANCE / _DOUBT
        if (distances < SITE_TOLERANCE * _DOUBT).sum() != stays.sum():
            return None
        kept = _first_images(stays, group)
        images, numbers = images[kept], kept.sum(axis=1)
    else:
        images, numbers = images[:, 0], np.ones(sites, dtype=np.int64)
    images = images - np.floor(images)
    return None if _has_close_pair(images) else (images, numbers)


def _first_images(stays: NDArray[np.bool_], group: Group) -> NDArray[np.bool_]:
    """Tell which operations (S, M) are the first to bring a site where they bring it.

    Those that bring it to the same place are one of them after any of the operations that leave it where it is.
    """
    kept = np.ones(stays.shape, dtype=bool)
    places = np.arange(stays.shape[1])
    for site in np.flatnonzero(stays.sum(axis=1) > 1):
        kept[site] = group.products[:, stays[site]].min(axis=1) == places
    return kept


def _has_close_pair(fractions: NDArray[np.float64]) -> bool:
    """Tell whether two atoms are so near (in cells, along each axis) that they may be meant to be one."""
    reach = SITE_TOLERANCE * _DOUBT
    if len(fractions) > _FEW:
        from scipy.spatial import cKDTree

        wrapped = np.where(fractions < 1, fractions, 0.0)
        return bool(len(cKDTree(wrapped, boxsize=1.0).query_pairs(reach, p=np.inf, output_type="ndarray")))
    columns = np.ascontiguousarray(fractions.T)
    apart = columns[:, :, None] - columns[:, None]
    apart -= np.rint(apart)
    return int(np.count_nonzero(np.abs(apart, out=apart).max(axis=0) < reach)) > len(fractions)
