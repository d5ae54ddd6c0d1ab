"""One document (a dict of columns) to its id, its crystal and its values."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cgnn.data.reading.structures import crystal_from
from cgnn.errors import CrystalError, unknown
from cgnn.graph.crystal import Crystal

ID_NAMES = ("material_id", "immutable_id", "id", "task_id", "mp_id")
STRUCTURE_NAMES = ("structure", "cif", "cif_string", "cif_text", "structures", "crystal_structure", "poscar")
OPTIMADE_NAMES = ("lattice_vectors", "cartesian_site_positions", "species_at_sites", "species")
MAX_ID = 200

_MODULI = {"k": "bulk_modulus", "g": "shear_modulus"}
_FLAT_MODULUS = re.compile(r"(?:elasticity\.)?(log10\()?([kg])_(voigt|reuss|vrh)\)?", re.IGNORECASE)
_MAX_DEPTH = 8
_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}", re.ASCII)
_ICSD = ("icsd", "icsd_id", "icsd_ids")
_NOT_VALUES = frozenset({*STRUCTURE_NAMES, *OPTIMADE_NAMES, *ID_NAMES})


@dataclass(frozen=True)
class Columns:
    """Which columns hold the id and the crystal; by default they are found by their names."""

    id: str | None = None
    structure: str | None = None

    def check(self, known: Iterable[str]) -> None:
        """Refuse a named column that does not exist.

        Raises:
            CrystalError: No such column; lists those that exist and the nearest spelling.
        """
        known = list(known)
        for name in (self.id, self.structure):
            if name is not None and name not in known:
                raise CrystalError("no_column", unknown(name[:80], [each[:60] for each in known[:60]], "column"))


def normal(name: str) -> str:
    """Return a column's name in the spelling by which it is recognised."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def find(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """Return the first of the ``wanted`` columns that is among ``names``, in any spelling."""
    by_normal = {normal(name): name for name in reversed(list(names))}
    return next((by_normal[name] for name in wanted if name in by_normal), None)


def read_id(document: Mapping[str, Any], columns: Columns, fallback: str) -> str:
    """Return the document's id, or ``fallback`` where it has none.

    Raises:
        CrystalError: The id can't be carried through tables and reports.
    """
    if columns.id is not None:
        columns.check(document)
        value = document[columns.id]
        return check_id("" if value is None else value)
    for name in ID_NAMES:
        if document.get(name) is not None:
            return check_id(document[name])
    return check_id(fallback)


def check_id(value: Any) -> str:
    """Return an id as text.

    Raises:
        CrystalError: It is empty, long, not printable, or a spreadsheet would take it for a formula.
    """
    if isinstance(value, str) and _PLAIN_ID.fullmatch(value):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise CrystalError("bad_id", f"an id must be a text, got {type(value).__name__}")
    if isinstance(value, int) and abs(value) >= 10**18:
        raise CrystalError("bad_id", "the id is a number of more than 18 digits")
    text = str(value)
    what = "empty" if not text.strip() else "too long" if len(text) > MAX_ID else ""
    what = what or ("" if text.isprintable() and "\ufffd" not in text else "not printable")
    if what:
        raise CrystalError("bad_id", f"the id {text[:60]!a} is {what}")
    # wide look-alikes of these signs are taken for them by some spreadsheets
    if unicodedata.normalize("NFKC", text.lstrip()[0])[:1] in "=+-@":
        raise CrystalError("bad_id", f"the id {text[:60]!a} starts like a spreadsheet formula")
    return text


def read_crystal(document: Mapping[str, Any], columns: Columns) -> Crystal:
    """Return the document's crystal.

    Raises:
        CrystalError: There is none, or it can't be used.
    """
    if columns.structure is not None:
        columns.check(document)
    name = columns.structure or next((name for name in STRUCTURE_NAMES if name in document), None)
    if name is not None:
        if document[name] is None or document[name] == "":
            raise CrystalError("no_structure", f"column {name!r} is empty")
        return crystal_from(document[name])
    if "lattice_vectors" in document or ("lattice" in document and "sites" in document):
        return crystal_from(document)
    names = ", ".join(str(key)[:40] for key in list(document)[:12]) or "nothing"
    raise CrystalError("no_structure", f"no crystal: expected a key 'structure', got {names}")


def read_values(document: Mapping[str, Any], columns: Columns, sites: int) -> dict[str, Any]:
    """Return the columns a target may name: scalars, and lists of one number per atom.

    A list of ICSD ids becomes one text, ids with commas between them.

    Nested keys are joined with dots. Moduli under the flat names people derive (``k_vrh``, ``log10(G_VRH)``) are
    also given under the Materials Project's (``bulk_modulus.vrh``, GPa).

    Raises:
        CrystalError: Two keys have the same dotted name.
    """
    if "sites" in document and "lattice" in document:
        return {}
    named = (columns.id, columns.structure)
    kept = {key: value for key, value in document.items() if key not in _NOT_VALUES and key not in named}
    values: dict[str, Any] = {}
    _flatten(kept, "", sites, values, _MAX_DEPTH)
    return _with_aliases(values)


def _flatten(node: Mapping[str, Any], prefix: str, sites: int, values: dict[str, Any], depth: int) -> None:
    for key, value in node.items():
        if key[:1] == "@":
            continue
        name = prefix + key
        if isinstance(value, dict):
            if depth:
                _flatten(value, name + ".", sites, values, depth - 1)
            continue
        if isinstance(value, list) and is_icsd(key):  # as many as there are, not one for each atom
            value = ", ".join(map(str, value))
        if value is None or isinstance(value, str | bool | int | float) or _is_per_atom(value, sites):
            if name in values:
                raise CrystalError("duplicate_key", f"two columns are named {name[:80]!r}")
            values[name] = value


def is_icsd(name: str) -> bool:
    """Tell whether a column holds ids of the Inorganic Crystal Structure Database, by its name."""
    return normal(name.rpartition(".")[2]) in _ICSD


def _is_per_atom(value: Any, sites: int) -> bool:
    """Tell whether a value is a list with an entry for each atom; what the entries mean is the targets' business."""
    is_list = isinstance(value, list) and len(value) == sites
    return is_list and all(entry is None or isinstance(entry, str | bool | int | float) for entry in value)


def _with_aliases(values: dict[str, Any]) -> dict[str, Any]:
    for name in list(values):
        alias = _alias(name)
        if alias is not None and values.get(alias[0]) is None:
            values[alias[0]] = _power(values[name]) if alias[1] else values[name]
    return values


@lru_cache(maxsize=4096)
def _alias(name: str) -> tuple[str, bool] | None:
    match = _FLAT_MODULUS.fullmatch(name)
    if not match or bool(match[1]) != name.endswith(")"):
        return None
    return f"{_MODULI[match[2].lower()]}.{match[3].lower()}", bool(match[1])


def _power(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return 10.0**value if is_number and abs(value) < 100 else value
