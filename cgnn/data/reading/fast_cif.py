"""CIF text to a checked crystal by gemmi, where its meaning is beyond doubt.

What is refused here is not wrong: `cgnn.data.reading.cif` then reads it patiently, and says what is wrong.
"""

from __future__ import annotations

import math
from typing import Any

import gemmi
import numpy as np

from cgnn.data.reading.cif_symmetry import expanded, group_of
from cgnn.data.reading.cif_words import (
    CELL,
    COORDINATES,
    MAX_IMAGES,
    OPERATIONS,
    fits_formula,
    last_digit,
    number,
    symbol,
)
from cgnn.data.reading.gate import MAX_SITES, build_crystal
from cgnn.errors import CrystalError
from cgnn.graph.crystal import Crystal

_LETTERS = bytes(range(32, 127)) + b"\t\r\n"
_DIGITS = b"0123456789+-.eE"
_THIRDS = np.array([1 / 3, 2 / 3])
_FULL = {"1", "1.0", "1.00", "1.000", "1.0000", ".", "?"}
_FAR = 100.0
"""Coordinates this far from the cell lose the digits by which atoms are told apart."""
_THIN = 0.1
"""Cells flatter than this (volume over the product of the lengths) are left to the patient reading."""

Values = dict[str, Any]


def fast_crystal(text: str) -> Crystal | None:
    """Return the crystal of a CIF text, or ``None`` where there is any doubt.

    Atoms are in the order of the file's sites, those of one site in the order of the symmetry operations.
    """
    values = _values(text)
    if values is None:
        return None
    try:
        return _crystal(values)
    except (CrystalError, ValueError, KeyError, OverflowError):
        return None


def _values(text: str) -> Values | None:
    """Return the values of the only block: a text for a tag, a list for a column of a loop."""
    if not text.isascii() or text.encode().translate(None, _LETTERS) or "_eof" in text:
        return None
    if _has_late_comment(text):
        return None
    try:
        document = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError):
        return None
    if len(document) != 1 or "powder_pattern" in document[0].name:
        return None
    values: Values = {}
    item: Any
    for item in document[0]:
        pair = item.pair
        if pair is not None:
            values[pair[0]] = pair[1]
            continue
        loop = item.loop
        if loop is None:
            return None
        cells, width = loop.values, loop.width()
        for place, tag in enumerate(loop.tags):
            values[tag] = cells[place::width]
    return values


def _has_late_comment(text: str) -> bool:
    """Tell whether there is a comment behind something else in its line; inside quotes it may be none."""
    place = text.find("#")
    while place >= 0:
        if place and text[place - 1] != "\n":
            return True
        end = text.find("\n", place)
        place = text.find("#", end) if end > 0 else -1
    return False


def _crystal(values: Values) -> Crystal | None:
    columns = [values[name] for name in COORDINATES]
    kind = "_atom_site_type_symbol" if "_atom_site_type_symbol" in values else "_atom_site_label"
    names = values[kind]
    occupancies: Any = values.get("_atom_site_occupancy", names)
    if any(type(column) is not list or len(column) != len(names) for column in (*columns, names, occupancies)):
        return None
    if not 1 <= len(names) <= MAX_SITES or (occupancies is not names and not _FULL.issuperset(occupancies)):
        return None
    tag = next((tag for tag in OPERATIONS if tag in values), None)
    operations = values[tag] if tag else None
    if type(operations) is not list or len(operations) * len(names) > MAX_IMAGES:
        return None
    group = group_of(tuple(operations))
    atoms = expanded(_fractions(columns), group) if group else None
    if atoms is None:
        return None
    cell, formula = [values[name] for name in CELL], values.get("_chemical_formula_sum", "?")
    if any(type(value) is not str for value in (*cell, formula)):
        return None
    fractions, counts = atoms
    matrix = _matrix(_numbers(cell))
    symbols = [symbol(name, kind) for name in names]
    return _checked(matrix, symbols, counts.tolist(), fractions, gemmi.cif.as_string(formula))


def _checked(matrix: Any, symbols: list[str], counts: list[int], fractions: Any, formula: str) -> Crystal | None:
    """Return the crystal if its atoms add up to the formula."""
    if len(fractions) > MAX_SITES or matrix is None:
        return None
    found = dict.fromkeys(symbols, 0.0)
    species: list[str] = []
    for name, count in zip(symbols, counts, strict=True):
        found[name] += count
        species += [name] * count
    if not fits_formula(found, formula):
        return None
    return build_crystal(matrix, species, fractions)


def _numbers(texts: list[str]) -> list[float]:
    if "".join(texts).encode().translate(None, _DIGITS):
        return [number(text, "a number") for text in texts]
    return [float(text) for text in texts]


def _fractions(columns: list[list[str]]) -> Any:
    """Return the coordinates (S, 3), thirds made exact where they are meant."""
    texts = [text for column in columns for text in column]
    numbers = _numbers(texts)
    if not -_FAR < min(numbers) <= max(numbers) < _FAR:
        raise ValueError("coordinates far from the cell")
    fractions = np.array(numbers).reshape(3, -1).T
    is_third = np.abs(fractions[..., None] / _THIRDS - 1) <= last_digit(texts)
    if is_third.any():
        for place, third in enumerate(_THIRDS):
            fractions[is_third[..., place]] = third
    return fractions


def _matrix(cell: list[float]) -> list[list[float]] | None:
    """Return the lattice vectors as pymatgen lays them: c along z, a in the xz plane."""
    a, b, c = cell[:3]
    if not all(0 < length < 1e6 for length in cell[:3]) or not all(0 < angle < 180 for angle in cell[3:]):
        return None
    alpha, beta, gamma = (math.radians(angle) for angle in cell[3:])
    sines = math.sin(alpha) * math.sin(beta)
    cosine = (math.cos(alpha) * math.cos(beta) - math.cos(gamma)) / sines
    if not abs(cosine) < 1:
        return None
    star = math.acos(cosine)
    if sines * math.sin(star) < _THIN:
        return None
    return [
        [a * math.sin(beta), 0.0, a * math.cos(beta)],
        [-b * math.sin(alpha) * math.cos(star), b * math.sin(alpha) * math.sin(star), b * math.cos(alpha)],
        [0.0, 0.0, c],
    ]
