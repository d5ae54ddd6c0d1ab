"""What the words of a CIF mean: numbers, elements, formulas, symmetry operations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from cgnn.data.reading.gate import element
from cgnn.errors import CrystalError

MAX_OPERATIONS = 1000
"""The largest space groups have 192 operations; unusual settings list a few times as many."""
MAX_IMAGES = 50_000
"""Operations times sites: special positions make fewer atoms of them, but each is computed."""
SITE_TOLERANCE = 1e-3
"""Images nearer than this (in cells) are one atom: coordinates of four digits land up to a few 1e-4 beside the
special position they mean."""
FORMULA_TOLERANCE = 1e-3

CELL = [f"_cell_length_{x}" for x in "abc"] + [f"_cell_angle_{x}" for x in ("alpha", "beta", "gamma")]
COORDINATES = [f"_atom_site_fract_{x}" for x in "xyz"]
OPERATIONS = [
    f"{tag}{end}" for tag in ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz") for end in ("", "_")
]
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?:\(\d+\))?")
_AXIS = r"[-+0-9/.*\s]{0,20}[xyzXYZ][-+xyzXYZ0-9/.*\s]{0,20}"
OPERATION = re.compile(f"{_AXIS},{_AXIS},{_AXIS}")
_FORMULA = re.compile(r"([A-Z][a-z]?)(\d*\.?\d*)")


def number(text: Any, what: str) -> float:
    """Return a number, with or without its uncertainty (``1.234(5)``).

    Raises:
        CrystalError: It is none.
    """
    match = _NUMBER.fullmatch(text.strip()) if isinstance(text, str) else None
    if not match:
        got = "missing" if text is None else f"{str(text)[:40]!r}, not a number"
        raise CrystalError("bad_cif", f"{what} of the CIF is {got}")
    return float(match[1])


@lru_cache(maxsize=4096)
def symbol(text: str, kind: str) -> str:
    """Return the element of a type symbol (``Fe3+``) or a label (``Fe1A``), if there is no doubt.

    Raises:
        CrystalError: There is.
    """
    letters = re.match(r"[A-Za-z]*", text)
    name = letters[0] if letters else ""
    candidates = [name]
    if name.isupper() and len(name) == 2 and _is_natural(name.title()):
        candidates.append(name.title())  # old files write FE for iron
    if kind == "_atom_site_label" and name[1:2].islower() and not re.search("[a-z]", name[2:]):
        candidates.append(name[:2])  # FeA
    if kind == "_atom_site_label" and name[1:2].isupper() and name[1:2] not in "HW":
        candidates.append(name[:1])  # OA; but OH and OW stand for hydrogen that is not listed
    for candidate in candidates:
        try:
            return element(candidate).symbol
        except CrystalError:
            continue
    raise CrystalError("unknown_element", f"{text[:40]!r} in {kind} names no chemical element")


def _is_natural(symbol: str) -> bool:
    try:
        return bool(element(symbol).Z <= 103)
    except CrystalError:
        return False


_DECIMALS = re.compile(r"\.(\d*)")


def last_digit(numbers: list[str]) -> float:
    """Return the step of the last digit of the coordinates, within which 0.3333 means a third; at most 1e-4."""
    return min(10.0 ** -max(map(len, _DECIMALS.findall(" ".join(numbers))), default=0), 1e-4)


def fits_formula(counts: Mapping[str, float], formula: Any) -> bool:
    """Tell whether numbers of atoms by element are in the ratios of a formula, or there is none.

    Raises:
        CrystalError: The formula names something that is no element.
    """
    if not isinstance(formula, str) or formula.strip() in ("", ".", "?"):
        return True
    wanted = _formula_counts(formula)
    if wanted is None or counts.keys() != wanted.keys() or not all(wanted.values()):
        return False
    ratios = [counts[name] / wanted[name] for name in counts]
    return max(ratios) - min(ratios) <= FORMULA_TOLERANCE * max(ratios)


@lru_cache(maxsize=4096)
def _formula_counts(formula: str) -> dict[str, float] | None:
    wanted: dict[str, float] = {}
    for name, count in _FORMULA.findall(formula):
        name = element(name).symbol
        wanted[name] = wanted.get(name, 0.0) + (float(count) if count not in ("", ".") else 1.0)
    return None if _FORMULA.sub("", formula).strip() else wanted
