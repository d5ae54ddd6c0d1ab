"""Tables as CSV, with a header and a column of crystals."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from cgnn.data.items import Block, Item, Source
from cgnn.data.reading import streams
from cgnn.data.reading.documents import ID_NAMES, STRUCTURE_NAMES, Columns, find
from cgnn.data.reading.file_names import stem
from cgnn.errors import CrystalError, DataError

Row = tuple[int, list[str] | CrystalError]

_NUMBER = re.compile(r"\s*[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?|nan)\s*", re.IGNORECASE | re.ASCII)
_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,15})", re.ASCII)
_ROWS = 64
_LETTERS = 2**20
"""A block has at most so many rows, and goes no further once it has so many letters."""


@dataclass(frozen=True)
class TableRows:
    """A block of rows of a table below its header."""

    rows: list[Row]
    header: list[str]
    source: Source

    def items(self) -> list[Item]:
        """Return the crystals."""
        return [self._item(row, cells) for row, cells in self.rows]

    def split(self) -> list[Block]:
        """Return a block for each crystal."""
        return [replace(self, rows=[row]) for row in self.rows]

    @property
    def place(self) -> str:
        """Where the first row stands."""
        return f"{self.source.file}:{self.rows[0][0]}"

    def _item(self, row: int, cells: list[str] | CrystalError) -> Item:
        document: dict[str, object] | CrystalError
        if isinstance(cells, CrystalError):
            document = cells
        elif len(cells) != len(self.header):
            document = CrystalError("bad_csv", f"the row has {len(cells)} cells, the header has {len(self.header)}")
        else:
            texts = (self.source.columns.id, self.source.columns.structure)
            pairs = zip(self.header, cells, strict=True)
            document = {name: cell if name in texts else read_cell(cell) for name, cell in pairs if name}
        return self.source.item(document, row)


def read_csv(path: Path, wanted: Columns) -> Iterator[Block]:
    """Read a table with a header and a column of CIF texts (or POSCAR, or JSON structures)."""
    with streams.opened(path) as handle:
        rows = csv_rows(handle)
        header = _header(next(rows, (0, None))[1], path)
        columns = _csv_columns(header, wanted, path)
        for piece in row_groups(rows):
            yield TableRows(piece, header, Source(path.name, stem(path), columns))


def row_groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield rows in groups that are worth the way to another process and not too large for it."""
    group: list[Row] = []
    letters = 0
    for row, cells in rows:
        group.append((row, cells))
        letters += 0 if isinstance(cells, CrystalError) else sum(map(len, cells))
        if len(group) == _ROWS or letters > _LETTERS:
            yield group
            group, letters = [], 0
    if group:
        yield group


def csv_rows(handle: IO[bytes]) -> Iterator[Row]:
    """Yield the rows that are not blank, numbered from 0 so that row 1 is the first below a header."""
    # the limit is one of the whole process; it is only ever raised, and only to the size of a record
    csv.field_size_limit(max(csv.field_size_limit(), streams.RECORD_BYTES))
    rows = csv.reader(streams.Lines(handle), strict=True)
    number = -1
    while True:
        try:
            cells: list[str] | CrystalError = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            cells = CrystalError("bad_csv", f"the row can't be read: {error}")
        except CrystalError as error:
            cells = error
        if cells:
            number += 1
            yield number, cells


def _header(cells: list[str] | CrystalError | None, path: Path) -> list[str]:
    if not isinstance(cells, list):
        raise DataError(f"{path}: no header row; {cells.reason if cells else 'expected the names of the columns'}")
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} is there twice; rename one")
    return names


def _csv_columns(header: list[str], wanted: Columns, path: Path) -> Columns:
    try:
        wanted.check(header)
    except CrystalError as error:
        raise DataError(f"{path}: {error.reason}") from None
    structure = wanted.structure or find(header, STRUCTURE_NAMES)
    if structure is None:
        names = ", ".join(name[:40] for name in header[:40])
        raise DataError(
            f"{path}: no column with crystals (looked for {', '.join(STRUCTURE_NAMES)}; got {names}); "
            "name it with structure_column, and separate columns by commas"
        )
    return Columns(wanted.id or find(header, ID_NAMES), structure)


def read_cell(text: str) -> float | int | str | None:
    """Return the number a cell holds, or its text; an empty one is ``None``."""
    if not text.strip():
        return None
    if _INTEGER.fullmatch(text):
        return int(text)  # the name of a class may be a whole number
    return float(text) if _NUMBER.fullmatch(text) else text
