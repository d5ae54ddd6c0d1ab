"""Crystals from dicts, arrays, ASE atoms and texts (CIF, POSCAR, JSON), all through `cgnn.data.reading.gate`.

Only the lattice, the elements and the coordinates are taken from the data. Nothing that a file names is
imported or run: ``Structure.from_dict`` decodes site properties and would.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from pymatgen.core import IStructure, Lattice
from pymatgen.io.vasp import Poscar

from cgnn.data.reading.cif import crystal_from_cif
from cgnn.data.reading.gate import MAX_SITES, build_crystal, check_count, check_structure, disordered
from cgnn.data.reading.json_stream import parse_json
from cgnn.errors import CrystalError
from cgnn.graph.crystal import Crystal

_ANGLES = ("alpha", "beta", "gamma")
_PYTHON_WORDS = ("Full Formula (", "PeriodicSite:")
_PYTHON_START = re.compile(r"\s*(?:Structure\(|\{'|Atoms\()")
_PRINTED = (
    "holds the printed form of a structure, which has lost digits; write the text of a CIF into the table instead, "
    "such as df['structure'] = [s.to(fmt='cif') for s in df['structure']]"
)
_POSCAR_SCALE = re.compile(r"\s*[+-]?\d+\.?\d*(?:[eE][+-]?\d+)?\s*")


def crystal_from(value: Any) -> Crystal:
    """Return the crystal in a value as data hold it: a dict, a text, a pymatgen structure, ASE atoms or a `Crystal`.

    Raises:
        CrystalError: It is no crystal, or one that can't be used.
    """
    if isinstance(value, Mapping):
        return crystal_from_dict(value)
    if isinstance(value, str):
        return crystal_from_text(value)
    if isinstance(value, IStructure):
        return check_structure(value)
    if isinstance(value, Crystal):
        return value
    if hasattr(value, "get_chemical_symbols") and hasattr(value, "get_scaled_positions"):
        return _from_ase(value)
    raise CrystalError("no_structure", f"expected a crystal, got {type(value).__name__}")


def crystal_from_text(text: str) -> Crystal:
    """Return the crystal of a text: CIF, POSCAR or the JSON of a structure.

    Raises:
        CrystalError: The text is none of these, or the crystal can't be used.
    """
    start = text[:2000]
    if any(words in start for words in _PYTHON_WORDS) or _PYTHON_START.match(start):
        raise CrystalError("python_repr", f"the structure column {_PRINTED}")
    if text.lstrip().startswith("{"):
        return crystal_from(parse_json(text))
    if "data_" in text or "_cell_length_a" in text:
        return crystal_from_cif(text)
    lines = text.splitlines()
    if len(lines) > 5 and _POSCAR_SCALE.fullmatch(lines[1]):
        return crystal_from_poscar(text)
    raise CrystalError("no_structure", f"expected the text of a CIF, a POSCAR or a JSON structure, got {text[:40]!r}")


def crystal_from_dict(values: Mapping[str, Any]) -> Crystal:
    """Return the crystal of a pymatgen structure dict, or of OPTIMADE columns.

    Raises:
        CrystalError: The dict is no structure, or the crystal can't be used.
    """
    if "lattice_vectors" in values:
        return _from_optimade(values)
    if "lattice" not in values or "sites" not in values:
        raise CrystalError("no_structure", f"a structure has 'lattice' and 'sites', got {_names(values)}")
    sites = values["sites"]
    if not isinstance(sites, list) or not set(map(type, sites)) <= {dict}:
        raise CrystalError("bad_structure", "'sites' of the structure must be a list of sites")
    check_count(len(sites))
    cartesian = sites[0].get("abc") is None
    name = "xyz" if cartesian else "abc"
    coords = [site.get(name) for site in sites]
    return build_crystal(
        _matrix(values["lattice"]), [_symbol(site.get("species")) for site in sites], coords, cartesian
    )


def crystal_from_poscar(text: str) -> Crystal:
    """Return the crystal of a POSCAR or CONTCAR text.

    Raises:
        CrystalError: The text can't be read or names no elements, or the crystal can't be used.
    """
    _check_poscar(text)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = Poscar.from_str(text, read_velocities=False).structure
    except Exception as error:  # the parser raises whatever its own code meets
        raise CrystalError("bad_poscar", f"the POSCAR can't be read: {' '.join(str(error).split())[:160]}") from None
    if any("false names" in str(warning.message) for warning in caught):
        raise CrystalError("unknown_element", "the POSCAR names no elements; write them into its sixth line")
    return check_structure(found)


def _check_poscar(text: str) -> None:
    lines = text.splitlines()
    if len(text) > MAX_SITES * 400:
        raise CrystalError("too_large", "the POSCAR is too large")
    if len(lines) < 8 or not _POSCAR_SCALE.fullmatch(lines[1]):
        raise CrystalError("bad_poscar", "the POSCAR needs a scale in line 2, vectors, elements, counts and sites")
    counts = [int(word) for line in lines[5:26] for word in line.split() if word.isdigit() and len(word) < 12]
    if max(counts, default=0) > MAX_SITES:
        raise CrystalError("too_large", f"the POSCAR has more than {MAX_SITES:,} atoms")
    has_cartesian = any(line.strip()[:1] in tuple("cCkK") for line in lines[6:9])
    if float(lines[1]) <= 0 and has_cartesian:
        raise CrystalError("bad_poscar", "a negative scale with cartesian coordinates is not read; use scale 1")


def _from_ase(atoms: Any) -> Crystal:
    check_count(len(atoms))
    if not all(atoms.get_pbc()):
        raise CrystalError("not_periodic", "the atoms are not periodic in all three directions (atoms.pbc)")
    cell = atoms.get_cell()
    return build_crystal(cell[:], atoms.get_chemical_symbols(), atoms.get_positions(), cartesian=True)


def _matrix(lattice: Any) -> Any:
    if not isinstance(lattice, Mapping):
        return lattice
    if not all(lattice.get("pbc") or (True,)):
        raise CrystalError("not_periodic", "the crystal is not periodic in all three directions")
    if lattice.get("matrix") is not None:
        return lattice["matrix"]
    numbers: list[Any] = [lattice.get(name) for name in ("a", "b", "c", *_ANGLES)]
    limits = (1e6, 1e6, 1e6, 180, 180, 180)
    if not all(isinstance(n, int | float) and 0 < n < limit for n, limit in zip(numbers, limits, strict=True)):
        raise CrystalError("bad_lattice", "the lattice needs a 'matrix', or a, b, c and three angles")
    with np.errstate(all="ignore"):  # impossible angles end as a matrix that is not finite
        return Lattice.from_parameters(*numbers).matrix


def _symbol(species: Any) -> str:
    try:  # nearly all sites are written like this
        (one,) = species
        if one["occu"] == 1 and type(one["element"]) is str:
            return str(one["element"])
    except (TypeError, ValueError, KeyError, IndexError):
        pass
    if isinstance(species, list):
        if len(species) != 1:
            raise disordered(f"a site holds {len(species)} species")
        species = species[0]
    if isinstance(species, Mapping):
        occupancy = species.get("occu", 1)
        if not isinstance(occupancy, int | float) or not abs(occupancy - 1) <= 1e-6:
            raise disordered(f"a site has occupancy {str(occupancy)[:20]}")
        species = species.get("element")
    if not isinstance(species, str):
        raise CrystalError("unknown_element", "a site names no element")
    return species


def _from_optimade(values: Mapping[str, Any]) -> Crystal:
    names, coords = values.get("species_at_sites"), values.get("cartesian_site_positions")
    if not isinstance(names, list) or not isinstance(coords, list) or len(names) != len(coords):
        raise CrystalError("bad_structure", "species_at_sites and cartesian_site_positions must be lists of one length")
    species = values.get("species")
    if isinstance(species, list):
        table = {kind.get("name"): kind for kind in species if isinstance(kind, Mapping)}
        names = [_optimade_symbol(name, table.get(name)) for name in names]
    return build_crystal(values["lattice_vectors"], names, coords, cartesian=True)


def _optimade_symbol(name: Any, kind: Mapping[str, Any] | None) -> Any:
    if kind is None:
        return name
    symbols, shares = kind.get("chemical_symbols"), kind.get("concentration")
    if not isinstance(symbols, list) or len(symbols) != 1 or (shares and shares != [1]):
        raise disordered(f"species {str(name)[:40]!r} is a mixture")
    return symbols[0]


def _names(values: Mapping[str, Any]) -> str:
    return ", ".join(str(name)[:40] for name in list(values)[:12]) or "nothing"
