"""Reading crystals: `read` gives one stream of `Record`s and `SetAside`s whatever the file.

`blocks` and `parse` are its two halves, for those who read in several processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pymatgen.core import IStructure

from cgnn.data.items import Block, Item, Record, SetAside, Stream, Value, make_item
from cgnn.data.reading.documents import Columns
from cgnn.data.reading.readers import READERS, check_columns, guess_format
from cgnn.data.repeats import Repeats
from cgnn.errors import DataError, nearest, unknown

__all__ = [
    "READERS",
    "Block",
    "Item",
    "Record",
    "SetAside",
    "Stream",
    "Value",
    "blocks",
    "from_structures",
    "parse",
    "read",
    "without_duplicates",
]


def read(
    path: str | Path,
    format: str = "auto",
    id_column: str | None = None,
    structure_column: str | None = None,
) -> Stream:
    """Read crystals one after another, in the order of the file, without holding them.

    A crystal that can't be used comes as a `SetAside`, and the rest goes on.

    Args:
        path: A file or a folder; ``.gz`` is unpacked on the way.
        format: An entry of ``READERS``; by default found from the name and the content.
        id_column: Column of the ids; by default ``material_id``, ``immutable_id``, ``id`` ... Folders of
            crystal files take the ids from the file names.
        structure_column: Column of the crystals; by default ``structure``, ``cif`` ...

    Raises:
        DataError: The file as a whole can't be used; says what was got, what was expected and what to do.
    """
    return _joined(blocks(path, format, id_column, structure_column))


def blocks(
    path: str | Path,
    format: str = "auto",
    id_column: str | None = None,
    structure_column: str | None = None,
) -> Iterator[Block]:
    """Cut an input into blocks of up to some hundred crystals, one after another, without reading these.

    A block can be pickled, and `parse` reads it in any process: the blocks' items, joined, are what `read` gives.

    Args:
        path: As for `read`, and so are the others.
        format: An entry of ``READERS``.
        id_column: Column of the ids.
        structure_column: Column of the crystals.

    Raises:
        DataError: The file as a whole can't be used; says what was got, what was expected and what to do.
    """
    path = Path(path).expanduser()
    if format != "auto" and format not in READERS:
        raise DataError(unknown(format, READERS, "format"))
    _check_path(path)
    name = guess_format(path) if format == "auto" else format
    if path.is_dir() != (name in ("cgcnn", "folder")) and not (path.is_dir() and name == "parquet"):
        is_dir = path.is_dir()
        raise DataError(
            f"{path}: format {name!r} reads a {'file' if is_dir else 'folder'}, "
            f"this is a {'folder' if is_dir else 'file'}"
        )
    columns = Columns(id_column, structure_column)
    return _not_empty(check_columns(READERS[name](path, columns), path, columns), path)


def parse(block: Block) -> list[Item]:
    """Return the `Record`s and `SetAside`s of a block in their order; the same each time, in any process."""
    return block.items()


def without_duplicates(stream: Iterable[Item]) -> Stream:
    """Pass a stream on with each id once: the first stays, later ones are set aside.

    The code is ``duplicate`` where a later record has the same content, ``id_conflict`` where it has not.
    """
    repeats = Repeats()
    for item in stream:
        if isinstance(item, SetAside):
            yield item
        else:
            yield repeats.note(item.material_id, item.source, item.digest) or item


def from_structures(structures: Any, ids: Iterable[str] | None = None) -> Stream:
    """Give crystals in memory as records.

    Args:
        structures: pymatgen structures or ASE atoms: one, or a list, pandas Series or generator of them. They
            are copied, never changed.
        ids: As many ids; by default ``crystal-0``, ``crystal-1`` ...

    Raises:
        DataError: There are no crystals in it, or not as many as ids.
    """
    if isinstance(structures, str | Path | Mapping):
        raise DataError(
            f"expected structures, got {type(structures).__name__}; files are read by cgnn.data.records.read"
        )
    is_one = isinstance(structures, IStructure) or hasattr(structures, "get_chemical_symbols")
    if not is_one and not hasattr(structures, "__iter__"):
        raise DataError(f"expected structures, got {type(structures).__name__}")
    return _numbered([structures] if is_one else structures, ids)


def _numbered(structures: Iterable[Any], ids: Iterable[str] | None) -> Stream:
    names = None if ids is None else iter(ids)
    for row, structure in enumerate(structures):
        name: Any = f"crystal-{row}" if names is None else next(names, None)
        if name is None:
            raise DataError(f"there are only {row} ids, and more structures; give one id for each")
        yield make_item({"structure": structure, "id": name}, f"structure {row}", Columns())
    if names is not None and next(names, None) is not None:
        raise DataError("there are more ids than structures; give one id for each")


def _check_path(path: Path) -> None:
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise DataError(f"{path}: no permission to read the folder")
    elif not path.exists():
        beside = os.listdir(path.parent) if os.access(path.parent, os.R_OK) and path.parent.is_dir() else []
        guess = nearest(path.name, beside)
        raise DataError(f"{path}: no such file{f'; did you mean {guess}?' if guess else ''}")
    elif not path.is_file():
        raise DataError(f"{path}: neither a file nor a folder")
    elif path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; expected crystals")


def _not_empty(pieces: Iterator[Block], path: Path) -> Iterator[Block]:
    first = next(pieces, None)
    if first is None:
        raise DataError(f"{path}: no crystals in it")
    yield first
    yield from pieces


def _joined(pieces: Iterator[Block]) -> Stream:
    for block in pieces:
        yield from parse(block)
