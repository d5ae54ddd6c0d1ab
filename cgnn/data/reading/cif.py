"""CIF text to a checked crystal.

pymatgen reads a CIF with great patience: an unknown coordinate becomes 0, a site of species ``?`` is dropped,
``NH3`` becomes nihonium, a damaged block is skipped. Here the cell, the symmetry and the sites are checked first,
and only what was checked is handed on.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from pymatgen.core import Composition, Element
from pymatgen.io.cif import CifBlock, CifFile, CifParser

from cgnn.data.reading.cif_words import (
    CELL,
    COORDINATES,
    MAX_IMAGES,
    MAX_OPERATIONS,
    OPERATION,
    OPERATIONS,
    SITE_TOLERANCE,
    fits_formula,
    last_digit,
    number,
    symbol,
)
from cgnn.data.reading.fast_cif import fast_crystal
from cgnn.data.reading.gate import MAX_SITES, build_crystal, check_count, disordered
from cgnn.errors import CrystalError
from cgnn.graph.crystal import Crystal

MAX_BYTES = 8 * 2**20
_GROUPS = [
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_alt",
    "_space_group_name_Hall",
    "_space_group_IT_number",
    "_symmetry_Int_Tables_number",
]
_BLOCK = re.compile(r"^[ \t]*data_(\S*)", re.MULTILINE | re.IGNORECASE)
_ATOM_LOOP = re.compile(r"^[ \t]*_atom_site_fract_x\b", re.MULTILINE | re.IGNORECASE)


def crystal_from_cif(text: str) -> Crystal:
    """Return the one crystal of a CIF text.

    Raises:
        CrystalError: There is none or more than one, a number is missing, a site is partly occupied or of no
            element, the symmetry makes too many atoms, or the atoms do not add up to the formula given.
    """
    _check_text(text)
    crystal = fast_crystal(text)
    return patient_crystal(text) if crystal is None else crystal


def patient_crystal(text: str) -> Crystal:
    """Return the crystal as pymatgen reads it, after the checks; raises as `crystal_from_cif`."""
    block = _parse(text)
    sites = _sites(block)
    operations = _operations(block, len(sites))
    rounding = last_digit([text for name in COORDINATES for text in _column(block, name)])
    crystal = _expand(_clean_text(block, sites, operations), rounding)
    _check_formula(crystal, block.data.get("_chemical_formula_sum"))
    return crystal


def _check_text(text: str) -> None:
    if len(text) > MAX_BYTES:
        raise CrystalError("too_large", f"the CIF is larger than {MAX_BYTES // 2**20} MB")
    found = len(_ATOM_LOOP.findall(text))
    if found == 0:
        raise CrystalError("no_structure", "the CIF has no atoms (no _atom_site_fract_x)")
    if found > 1:
        names = ", ".join(_BLOCK.findall(text)[:10])
        raise CrystalError("several_structures", f"the CIF holds {found} crystals ({names[:200]}); expected one")


def _parse(text: str) -> CifBlock:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            blocks = CifFile.from_str(text).data.values()
    except Exception as error:  # the parser raises whatever its own code meets
        raise _unreadable(error) from None
    stray = [str(warning.message) for warning in caught if "Possible issue" in str(warning.message)]
    if stray:
        raise CrystalError("bad_cif", f"the CIF is malformed: stray text {stray[0].partition(': ')[2][:80]!r}")
    for block in blocks:
        if COORDINATES[0] in block.data:
            return block
    raise CrystalError("no_structure", "the CIF has no atoms (no _atom_site_fract_x)")


def _sites(block: CifBlock) -> list[tuple[str, list[float]]]:
    columns = [_column(block, name) for name in COORDINATES]
    check_count(len(columns[0]))
    kind = "_atom_site_type_symbol" if "_atom_site_type_symbol" in block.data else "_atom_site_label"
    symbols = _column(block, kind)
    occupancies = _column(block, "_atom_site_occupancy") if "_atom_site_occupancy" in block.data else []
    if len({len(column) for column in (*columns, symbols)}) != 1:
        raise CrystalError("bad_cif", "the CIF lists its sites unevenly")
    for value in occupancies:
        if value not in (".", "?") and abs(number(value, "an occupancy") - 1) > 1e-6:
            raise disordered(f"a site has occupancy {value[:20]}")
    positions = zip(*columns, strict=True)
    return [
        (symbol(name, kind), [number(value, "a coordinate") for value in position])
        for name, position in zip(symbols, positions, strict=True)
    ]


def _column(block: CifBlock, name: str) -> list[str]:
    values = block.data.get(name)
    if not isinstance(values, list):
        raise CrystalError("bad_cif", f"the CIF has no loop with {name}")
    return values


def _operations(block: CifBlock, sites: int) -> list[str]:
    """Return the symmetry operations, after counting what they would make of the sites."""
    for name in OPERATIONS:
        if name in block.data:
            values = block.data[name]
            operations = values if isinstance(values, list) else [values]
            _check_images(len(operations), sites)
            bad = [operation for operation in operations if not OPERATION.fullmatch(operation)]
            if bad or not operations:
                raise CrystalError("bad_cif", f"{str(bad[:1])[:80]} is no symmetry operation")
            return ["".join(operation.split()) for operation in operations]
    if any("symop_magn" in name or "space_group_magn" in name for name in block.data):
        raise CrystalError("bad_cif", "the CIF gives magnetic symmetry only; export the crystal with plain symmetry")
    return _group(block, sites)


def _group(block: CifBlock, sites: int) -> list[str]:
    given = {name: value for name, value in block.data.items() if name in _GROUPS and value not in (".", "?", "")}
    if not given:
        return ["x,y,z"]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = CifParser.from_str("data_crystal\n").get_symops(CifBlock(given, [], "crystal"))
    except Exception as error:  # the parser raises whatever its own code meets
        raise _unreadable(error) from None
    if any("Defaulting to P1" in str(warning.message) for warning in caught):
        raise CrystalError("bad_cif", f"the space group {str(next(iter(given.values())))[:40]!r} of the CIF is unknown")
    _check_images(len(found), sites)
    return [operation.as_xyz_str() for operation in found]


def _check_images(operations: int, sites: int) -> None:
    if operations > MAX_OPERATIONS:
        raise CrystalError("too_large", f"the CIF lists {operations:,} symmetry operations; at most {MAX_OPERATIONS}")
    if operations * sites > MAX_IMAGES:
        raise CrystalError(
            "too_large",
            f"{operations:,} symmetry operations on {sites:,} sites make up to {operations * sites:,} atoms; "
            f"at most {MAX_SITES:,} are accepted",
        )


def _clean_text(block: CifBlock, sites: Sequence[tuple[str, list[float]]], operations: list[str]) -> str:
    cell = [f"{name} {_cell_number(block, name)!r}" for name in CELL]
    symmetry = ["loop_", "_symmetry_equiv_pos_as_xyz", *(f"'{operation}'" for operation in operations)]
    loop = ["loop_", "_atom_site_label", "_atom_site_type_symbol", *COORDINATES]
    rows = [f"{symbol}_{row} {symbol} {x!r} {y!r} {z!r}" for row, (symbol, (x, y, z)) in enumerate(sites)]
    return "\n".join(["data_crystal", *cell, *symmetry, *loop, *rows, ""])


def _cell_number(block: CifBlock, name: str) -> float:
    value = number(block.data.get(name), name)
    if not 0 < value < (180 if "angle" in name else 1e6):
        raise CrystalError("bad_lattice", f"{name} of the CIF is {value:g}")
    return value


def _expand(text: str, rounding: float) -> Crystal:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is left to warn of, all was checked before
            (found,) = _parser(text, rounding).parse_structures(primitive=False, on_error="raise")
    except Exception as error:  # the parser raises whatever its own code meets
        if "Occupancy" in str(error):
            raise CrystalError("overlap", "two atoms of the CIF share one position") from None
        raise _unreadable(error) from None
    # the parser sorts by element; atoms go back to the order of the file, which lists of one number per atom follow
    order = sorted(range(len(found)), key=lambda atom: int(found[atom].label.partition("_")[2]))
    species = found.species_and_occu
    return build_crystal(found.lattice.matrix, [species[atom] for atom in order], found.frac_coords[order])


def _parser(text: str, rounding: float) -> CifParser:
    return CifParser.from_str(text, check_cif=False, site_tolerance=SITE_TOLERANCE, frac_tolerance=rounding)


def _check_formula(crystal: Crystal, formula: Any) -> None:
    numbers, counts = np.unique(crystal.z, return_counts=True)
    found = Composition({Element.from_Z(int(z)): int(count) for z, count in zip(numbers, counts, strict=True)})
    if not fits_formula({str(name): float(count) for name, count in found.items()}, formula):
        raise CrystalError(
            "formula_mismatch",
            f"the atoms of the CIF are {found.formula}, its formula says {formula.strip()[:80]}",
        )


def _unreadable(error: Exception) -> CrystalError:
    message = " ".join(str(error).split())[:160] or type(error).__name__
    return CrystalError("bad_cif", f"the CIF can't be read: {message}")
