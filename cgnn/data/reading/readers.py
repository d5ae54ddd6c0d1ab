"""One reader for each form in which crystals come; all have the same signature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from cgnn.data.items import Block, Item, Record
from cgnn.data.reading.csv_blocks import read_csv
from cgnn.data.reading.documents import Columns
from cgnn.data.reading.file_blocks import read_cgcnn, read_cif, read_folder, read_poscar
from cgnn.data.reading.file_names import file_format
from cgnn.data.reading.json_blocks import read_json, read_jsonl
from cgnn.data.reading.parquet_blocks import read_parquet
from cgnn.data.store.rows import read_graphs
from cgnn.errors import DataError

Reader = Callable[[Path, Columns], Iterator[Block]]
"""Cuts an input into blocks; where the input as a whole can't be used, it raises `DataError`."""

_TRIED = 20
"""So many documents without a column that was asked for prove that the file has none."""

READERS: dict[str, Reader] = {
    "mp_json": read_json,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "cgcnn": read_cgcnn,
    "folder": read_folder,
    "cif": read_cif,
    "poscar": read_poscar,
    "parquet": read_parquet,
    "graphs": read_graphs,
}


def guess_format(path: Path) -> str:
    """Return the entry of ``READERS`` that fits a file's name or a folder's content.

    Raises:
        DataError: None does.
    """
    if path.is_dir():
        if (path / "id_prop.csv").is_file():
            return "cgcnn"
        has_tables = next(path.rglob("*.parquet"), None) is not None
        return "parquet" if has_tables else "folder"
    kind = file_format(path.name)
    if not kind:
        raise DataError(
            f"{path}: can't tell the format from the name; give format (one of {', '.join(READERS)}) "
            f"or use an ending such as .json, .jsonl, .csv, .parquet, .cif, .vasp (also with .gz)"
        )
    return kind


def check_columns(blocks: Iterator[Block], path: Path, columns: Columns) -> Iterator[Block]:
    """Pass blocks on, unless none of the first documents has a column that was asked for.

    Raises:
        DataError: The column is nowhere; lists those that exist and the nearest spelling.
    """
    held: list[Block] = []
    items: list[Item] = []
    for block in blocks if columns != Columns() else ():
        held.append(block)
        items += block.items()
        if len(items) >= _TRIED or any(isinstance(item, Record) or item.code != "no_column" for item in items):
            break
    reasons = [item.reason for item in items[:_TRIED] if not isinstance(item, Record) and item.code == "no_column"]
    if reasons and len(reasons) == len(items[:_TRIED]):
        raise DataError(f"{path}: {reasons[0]}")
    yield from held
    yield from blocks
