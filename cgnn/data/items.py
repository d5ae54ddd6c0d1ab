"""What readers give: `Record`s, and `SetAside`s for the crystals that can't be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pymatgen.core import Structure

from cgnn.data.documents import Columns, check_id, read_crystal, read_id, read_values
from cgnn.errors import CrystalError

Value = float | int | str | bool | list[float] | None


@dataclass(frozen=True)
class Record:
    """One crystal as read.

    Args:
        material_id: Opaque identifier, unique within a data set.
        structure: The crystal.
        values: Columns by (dotted) name: scalars, or one number per atom.
        source: ``file`` or ``file:row`` it came from.
    """

    material_id: str
    structure: Structure
    values: dict[str, Value] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class SetAside:
    """One crystal that can't be used, and why.

    Args:
        material_id: Its identifier, or ``""`` where none could be read.
        source: ``file`` or ``file:row``.
        stage: ``"read"``, ``"graph"``, ``"label"`` or ``"predict"``.
        code: Short machine-readable reason, such as ``"overlap"``.
        reason: One sentence for people.
    """

    material_id: str
    source: str
    stage: str
    code: str
    reason: str


Item = Record | SetAside
Stream = Iterator[Item]


def make_item(document: Any, source: str, columns: Columns, fallback: str = "", material_id: str = "") -> Item:
    """Return a document's record, or why it is set aside.

    Args:
        document: The columns by name, or the `CrystalError` met in place of them.
        source: Where it came from.
        columns: Which of them hold the id and the crystal.
        fallback: The id where the document has none.
        material_id: The id, whatever the document says.
    """
    name = ""
    try:
        name = check_id(material_id) if material_id else ""
        if isinstance(document, CrystalError):
            raise document
        if not isinstance(document, Mapping):
            raise CrystalError("bad_record", f"expected a document with keys, got {type(document).__name__}")
        name = name or read_id(document, columns, fallback)
        structure = read_crystal(document, columns)
        values = read_values(document, columns, len(structure))
    except CrystalError as error:
        return set_aside(name, source, error)
    return Record(name, structure, values, printable(source))


def set_aside(material_id: str, source: str, error: CrystalError) -> SetAside:
    """Return the note on a crystal that could not be read."""
    return SetAside(material_id, printable(source), "read", error.code, printable(error.reason))


def printable(text: str) -> str:
    """Return a text on one line, without characters that could forge lines of a report."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
