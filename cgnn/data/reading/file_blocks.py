"""Files of one crystal each: CIF, POSCAR and JSON, alone, in a folder, or listed as CGCNN does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cgnn.data.items import Block, Item, make_item, set_aside
from cgnn.data.reading import streams
from cgnn.data.reading.csv_blocks import Row, csv_rows, read_cell, row_groups
from cgnn.data.reading.documents import Columns, check_id
from cgnn.data.reading.file_names import file_kind, stem
from cgnn.data.reading.json_stream import parse_json
from cgnn.data.reading.structures import crystal_from_cif, crystal_from_poscar
from cgnn.errors import CrystalError, DataError

_FILES = 64


@dataclass(frozen=True)
class Files:
    """A block of files with a crystal each, read when its items are asked for.

    Args:
        folder: Where they lie.
        names: Their names with their kinds: ``cif``, ``poscar`` or ``json``.
    """

    folder: Path
    names: list[tuple[str, str]]

    def items(self) -> list[Item]:
        """Return the crystals."""
        return [_file_item(self.folder / name, kind) for name, kind in self.names]

    def split(self) -> list[Block]:
        """Return a block for each crystal."""
        return [replace(self, names=[name]) for name in self.names]

    @property
    def place(self) -> str:
        """The first file."""
        return self.names[0][0]


@dataclass(frozen=True)
class Listed:
    """A block of rows of ``id_prop.csv``, the crystals of which are read when its items are asked for."""

    folder: Path
    rows: list[Row]
    table: str

    def items(self) -> list[Item]:
        """Return the crystals."""
        return [_cgcnn_item(self.folder, cells, f"{self.table}:{row + 1}") for row, cells in self.rows]

    def split(self) -> list[Block]:
        """Return a block for each crystal."""
        return [replace(self, rows=[row]) for row in self.rows]

    @property
    def place(self) -> str:
        """Where the first row stands."""
        return f"{self.table}:{self.rows[0][0] + 1}"


def read_cgcnn(path: Path, columns: Columns) -> Iterator[Block]:
    """Read a folder with ``id_prop.csv`` (id, value, ...; no header) and a ``<id>.cif`` for each line.

    The values become the columns ``target``, ``target_1`` ...
    """
    table = path / "id_prop.csv"
    if not table.is_file():
        raise DataError(f"{path}: no id_prop.csv in it; format 'cgcnn' is a folder with id_prop.csv and <id>.cif files")
    with streams.opened(table) as handle:
        for group in row_groups(csv_rows(handle)):
            yield Listed(path, group, table.name)


def read_folder(path: Path, columns: Columns) -> Iterator[Block]:
    """Read a folder of CIF, POSCAR and JSON files, a crystal each; the id is the name without its ending."""
    if not path.is_dir():
        raise DataError(f"{path}: format 'folder' reads a folder of CIF or POSCAR files, this is a file")
    inside = sorted(os.listdir(path))
    names = [(name, file_kind(name)) for name in inside if file_kind(name)]
    if not names:
        held = ", ".join(inside[:8]) or "nothing"
        raise DataError(f"{path}: no crystals in the folder (*.cif, POSCAR*, *.vasp, *.json); it holds {held}")
    for start in range(0, len(names), _FILES):
        yield Files(path, names[start : start + _FILES])


def read_cif(path: Path, columns: Columns) -> Iterator[Block]:
    """Read one CIF file; the id is the name without its ending."""
    yield Files(path.parent, [(path.name, "cif")])


def read_poscar(path: Path, columns: Columns) -> Iterator[Block]:
    """Read one POSCAR file; the id is the name without its ending."""
    yield Files(path.parent, [(path.name, "poscar")])


def _cgcnn_item(folder: Path, cells: list[str] | CrystalError, source: str) -> Item:
    name = ""
    try:
        if isinstance(cells, CrystalError):
            raise cells
        name = check_id(cells[0].strip())
        document: dict[str, Any] = {"structure": crystal_from_cif(_file_text(_cgcnn_file(folder, name)))}
    except CrystalError as error:
        return set_aside(name, source, error)
    document["target"] = read_cell(cells[1]) if len(cells) > 1 else None
    document.update({f"target_{place}": read_cell(cell) for place, cell in enumerate(cells[2:], 1)})
    return make_item(document, source, Columns(), material_id=name)


def _cgcnn_file(folder: Path, name: str) -> Path:
    if "/" in name or "\\" in name or name in (".", ".."):
        raise CrystalError("bad_id", f"the id {name[:60]!a} would lead out of the folder")
    for file in (folder / f"{name}.cif", folder / f"{name}.cif.gz"):
        try:
            if file.is_file():
                return file
        except OSError:
            continue  # a name the file system can't hold
    raise CrystalError("no_file", f"there is no file {name}.cif beside id_prop.csv")


def _file_item(path: Path, kind: str) -> Item:
    try:
        text = _file_text(path)
        if kind == "json":
            document = parse_json(text)
            if isinstance(document, list):
                what = "a list, and a file of a folder holds one crystal"
                raise CrystalError("bad_record", f"{what}; if it lists crystals, give the file's own path")
            if isinstance(document, dict) and "sites" in document:
                document = {"structure": document}
        else:
            document = {"structure": (crystal_from_cif if kind == "cif" else crystal_from_poscar)(text)}
    except CrystalError as error:
        document = error
    return make_item(document, path.name, Columns(), material_id=stem(path))


def _file_text(path: Path) -> str:
    try:
        content = streams.plain_content(path, streams.RECORD_BYTES + 1)
        if content is None:
            with streams.opened(path) as handle:
                content = streams.read_up_to(handle, streams.RECORD_BYTES + 1)
    except DataError as error:
        raise CrystalError("unreadable", str(error).removeprefix(f"{path}: ")) from None
    if len(content) > streams.RECORD_BYTES:
        raise streams.too_large()
    return content.decode("utf-8-sig", "replace")
