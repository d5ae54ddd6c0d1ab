"""What readers give: `Record`s, and `SetAside`s for the crystals that can't be used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from cgnn.data.reading.documents import Columns, check_id, read_crystal, read_id, read_values
from cgnn.errors import CrystalError
from cgnn.graph.crystal import Crystal

Value = float | int | str | bool | list[float] | None


@dataclass(frozen=True, eq=False)
class Record:
    """One crystal as read; records are equal where their ids, sources and contents are.

    Args:
        material_id: Opaque identifier, unique within a data set.
        crystal: The crystal.
        values: Columns by (dotted) name: scalars, or one number per atom.
        source: ``file`` or ``file:row`` it came from.
    """

    material_id: str
    crystal: Crystal
    values: dict[str, Value] = field(default_factory=dict)
    source: str = ""

    @cached_property
    def structure(self) -> Any:
        """The crystal as a pymatgen ``Structure``, made on first use."""
        return self.crystal.to_structure()

    @cached_property
    def digest(self) -> bytes:
        """Sixteen bytes that differ where crystal (by 1e-6 Å) or values differ, made on first use."""
        crystal = self.crystal
        content = hashlib.blake2b(np.asarray(crystal.z, dtype=np.int64).tobytes(), digest_size=16)
        # adding zero makes -0.0 the same as 0.0
        content.update((np.round(crystal.lattice, 6) + 0.0).tobytes())
        content.update((np.round(crystal.pos, 6) + 0.0).tobytes())
        content.update(repr(sorted(self.values.items())).encode("utf-8", "backslashreplace"))
        return content.digest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return (self.material_id, self.source, self.digest) == (other.material_id, other.source, other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True)
class SetAside:
    """One crystal that can't be used, and why.

    Args:
        material_id: Its identifier, or ``""`` where none could be read.
        source: ``file`` or ``file:row``.
        stage: ``"read"``, ``"graph"``, ``"label"``, ``"predict"`` or ``"derive"``.
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


class Block(Protocol):
    """A piece of an input, with all that is needed to read its crystals in any process; it can be pickled."""

    def items(self) -> list[Item]:
        """Return the crystals of the piece in their order; the same each time."""
        ...

    def split(self) -> list[Block]:
        """Return blocks of a single crystal each that together hold the same."""
        ...

    @property
    def place(self) -> str:
        """Where the piece begins: ``file`` or ``file:row``."""
        ...


@dataclass(frozen=True)
class Source:
    """Where the documents of a block come from, and which of their columns hold the id and the crystal.

    Args:
        file: The file's name.
        stem: What ids start with where a document has none.
        columns: The columns.
    """

    file: str
    stem: str
    columns: Columns

    def item(self, document: Any, row: int) -> Item:
        """Return the record of a document (or of the `CrystalError` met in its place), or why it is set aside."""
        return make_item(document, f"{self.file}:{row}", self.columns, f"{self.stem}-{row}")


@dataclass(frozen=True)
class Documents:
    """A block of numbered documents that are in memory."""

    documents: list[tuple[int, Any]]
    source: Source

    def items(self) -> list[Item]:
        """Return the crystals."""
        return [self.source.item(document, row) for row, document in self.documents]

    def split(self) -> list[Block]:
        """Return a block for each crystal."""
        return [Documents([numbered], self.source) for numbered in self.documents]

    @property
    def place(self) -> str:
        """Where the first document stands."""
        return f"{self.source.file}:{self.documents[0][0]}"


@dataclass(frozen=True)
class Finished:
    """A block of crystals that are read already.

    Args:
        content: The records and what was set aside.
    """

    content: list[Item]

    def items(self) -> list[Item]:
        """Return the crystals."""
        return self.content

    def split(self) -> list[Block]:
        """Return a block for each crystal."""
        return [Finished([item]) for item in self.content]

    @property
    def place(self) -> str:
        """Where the first crystal comes from."""
        return self.content[0].source


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
        crystal = read_crystal(document, columns)
        values = read_values(document, columns, len(crystal))
    except CrystalError as error:
        return set_aside(name, source, error)
    return Record(name, crystal, values, printable(source))


def set_aside(material_id: str, source: str, error: CrystalError) -> SetAside:
    """Return the note on a crystal that could not be read."""
    return SetAside(material_id, printable(source), "read", error.code, printable(error.reason))


def printable(text: str) -> str:
    """Return a text on one line, without characters that could forge lines of a report."""
    text = " ".join(text.split())
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)
