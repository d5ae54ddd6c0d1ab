"""Parquet: OPTIMADE columns as LeMaterial's, or documents as mp-api stores whole collections.

Lists of numbers without gaps are taken from Arrow's buffers as they are; everything else goes by way of documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cgnn.data.items import Block, Documents, Item, Source
from cgnn.data.reading.documents import STRUCTURE_NAMES, Columns, is_icsd
from cgnn.data.reading.file_names import stem
from cgnn.data.reading.gate import build_crystal
from cgnn.errors import CrystalError, DataError, unknown

_ROWS = 256
_COLUMNS = ("lattice_vectors", "cartesian_site_positions", "species_at_sites")


class _Crystals(NamedTuple):
    """The crystals of some rows."""

    lattices: NDArray[np.float64]
    """(rows, 3, 3), Å."""
    positions: NDArray[np.float64]
    """(atoms, 3), Å."""
    symbols: list[str]
    """One for each atom."""
    starts: list[int]
    """Where each row's atoms start, and the last one's end."""


@dataclass(frozen=True)
class Batch:
    """A block of rows of a Parquet file.

    Args:
        rows: The rows' columns, as a ``pyarrow.RecordBatch``.
        first: Row of the first.
        source: Where they come from.
    """

    rows: Any
    first: int
    source: Source

    def items(self) -> list[Item]:
        """Return the crystals."""
        crystals = _crystals(self.rows, self.source.columns)
        if crystals is None:
            return [self.source.item(document, row) for row, document in enumerate(_documents(self.rows), self.first)]
        others = [name for name in self.rows.schema.names if name not in _COLUMNS]
        documents = enumerate(_documents(self.rows.select(others)))
        return [self._item(place, document, crystals) for place, document in documents]

    def split(self) -> list[Block]:
        """Return a block for each crystal."""
        return [Batch(self.rows.slice(row, 1), self.first + row, self.source) for row in range(self.rows.num_rows)]

    @property
    def place(self) -> str:
        """Where the first row stands."""
        return f"{self.source.file}:{self.first}"

    def _item(self, place: int, document: dict[str, Any], crystals: _Crystals) -> Item:
        lattices, positions, symbols, starts = crystals
        atoms = slice(starts[place], starts[place + 1])
        try:
            document["structure"] = build_crystal(lattices[place], symbols[atoms], positions[atoms], cartesian=True)
        except CrystalError:
            (document,) = _documents(self.rows.slice(place, 1))  # which says what is wrong in the file's own terms
        return self.source.item(document, self.first + place)


def read_parquet(path: Path, columns: Columns) -> Iterator[Block]:
    """Read Parquet, a file or a folder: OPTIMADE columns as LeMaterial's, or documents as mp-api stores them."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.parquet") if "_delta_log" not in file.parts)
    for file in files:
        yield from _file_blocks(file, columns)


def _file_blocks(path: Path, columns: Columns) -> Iterator[Block]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = Source(path.name, stem(path), columns)
    try:
        with pq.ParquetFile(path) as file:
            yield from _batches(file, _wanted(file.schema_arrow, columns, path), source)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {' '.join(str(error).split())[:200]}") from None


def _wanted(schema: Any, columns: Columns, path: Path) -> list[str]:
    """Return the columns worth reading."""
    from pyarrow import types

    for name in (columns.id, columns.structure):
        if name is not None and name not in schema.names:
            raise DataError(f"{path}: {unknown(name, schema.names, 'column')}")
    crystal = {*STRUCTURE_NAMES, *_COLUMNS, columns.structure}
    if not crystal.intersection(schema.names):
        raise DataError(
            f"{path}: no crystals in it; expected lattice_vectors, cartesian_site_positions and species_at_sites, "
            f"or structure; got {', '.join(schema.names[:40])}"
        )
    is_wanted = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_large_string)
    kept = []
    for column in schema:
        is_numbers = types.is_list(column.type) and types.is_floating(column.type.value_type)
        is_nested = types.is_struct(column.type) or types.is_map(column.type) or is_numbers or is_icsd(column.name)
        if column.name in crystal | {"species"} or is_nested or any(check(column.type) for check in is_wanted):
            kept.append(column.name)
    return kept


def _batches(file: Any, names: list[str], source: Source) -> Iterator[Block]:
    import pyarrow as pa

    row = 1
    batches = file.iter_batches(batch_size=_ROWS, columns=names)
    while True:
        try:
            rows = next(batches)
        except StopIteration:
            return
        except (pa.ArrowException, OSError) as error:
            reason = f"the file can't be read beyond this record ({str(error)[:120]})"
            yield Documents([(row, CrystalError("truncated", reason))], source)
            return
        if rows.num_rows:
            yield Batch(rows, row, source)
        row += rows.num_rows


def _crystals(rows: Any, columns: Columns) -> _Crystals | None:
    """Return the crystals of rows, or ``None`` where the columns are others or have gaps."""
    names = set(rows.schema.names)
    if columns.structure or not names.issuperset(_COLUMNS) or names & {*STRUCTURE_NAMES, "species", "sites"}:
        return None
    lattices, positions, symbols = (_lists(rows.column(name)) for name in _COLUMNS)
    if lattices is None or positions is None or symbols is None:
        return None
    vectors, atoms = _triples(lattices[0]), _triples(positions[0])
    if vectors is None or atoms is None or symbols[0].null_count:
        return None
    if (np.diff(lattices[1]) != 3).any() or (positions[1] != symbols[1]).any():
        return None
    return _Crystals(vectors.reshape(-1, 3, 3), atoms, symbols[0].to_pylist(), positions[1].tolist())


def _lists(column: Any) -> tuple[Any, NDArray[np.int64]] | None:
    """Return what the lists of a column hold, joined, and where each starts and the last one ends."""
    from pyarrow import types

    if not (types.is_list(column.type) or types.is_large_list(column.type)) or column.null_count:
        return None
    starts = column.offsets.to_numpy()
    return column.flatten(), (starts - starts[0]).astype(np.int64)


def _triples(column: Any) -> NDArray[np.float64] | None:
    from pyarrow import types

    lists = _lists(column)
    if lists is None or (np.diff(lists[1]) != 3).any():
        return None
    numbers = lists[0]
    if numbers.null_count or not types.is_floating(numbers.type):
        return None
    return np.asarray(numbers.to_numpy(zero_copy_only=False), dtype=np.float64).reshape(-1, 3)


def _documents(rows: Any) -> list[dict[str, Any]]:
    from pyarrow import types

    documents: list[dict[str, Any]] = rows.to_pylist() if rows.num_columns else [{} for _ in range(rows.num_rows)]
    for column in rows.schema:
        if types.is_map(column.type):
            for document in documents:
                document[column.name] = dict(document[column.name] or ())
    return documents
