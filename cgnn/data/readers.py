"""One reader for each form in which crystals come; all have the same signature."""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from cgnn.data import streams
from cgnn.data.documents import ID_NAMES, STRUCTURE_NAMES, Columns, check_id, find
from cgnn.data.items import Item, Record, Stream, make_item, set_aside
from cgnn.data.json_stream import documents, parse_json
from cgnn.data.structures import structure_from_cif, structure_from_poscar
from cgnn.errors import CrystalError, DataError, unknown

Reader = Callable[[Path, str | None, str | None], Stream]

_NUMBER = re.compile(r"\s*[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?|nan)\s*", re.IGNORECASE | re.ASCII)
_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,15})", re.ASCII)
_TRIED = 20
"""So many documents without a column that was asked for prove that the file has none."""
_BATCH = 256


def read_json(path: Path, id_column: str | None, structure_column: str | None) -> Stream:
    """Read a JSON export: a list of documents as mp-api and monty dump them."""
    with streams.opened(path) as handle:
        yield from _items(documents(handle, path), path, Columns(id_column, structure_column))


def read_jsonl(path: Path, id_column: str | None, structure_column: str | None) -> Stream:
    """Read JSON Lines: a document a line."""
    with streams.opened(path) as handle:
        yield from _items(_json_lines(handle, path), path, Columns(id_column, structure_column))


def read_csv(path: Path, id_column: str | None, structure_column: str | None) -> Stream:
    """Read a table with a header and a column of CIF texts (or POSCAR, or JSON structures)."""
    with streams.opened(path) as handle:
        rows = _csv_rows(handle)
        header = _header(next(rows, (0, None))[1], path)
        columns = _csv_columns(header, Columns(id_column, structure_column), path)
        yield from _items(_csv_documents(rows, header, columns), path, columns)


def read_cgcnn(path: Path, id_column: str | None, structure_column: str | None) -> Stream:
    """Read a folder with ``id_prop.csv`` (id, value, ...; no header) and a ``<id>.cif`` for each line.

    The values become the columns ``target``, ``target_1`` ...
    """
    table = path / "id_prop.csv"
    if not table.is_file():
        raise DataError(f"{path}: no id_prop.csv in it; format 'cgcnn' is a folder with id_prop.csv and <id>.cif files")
    with streams.opened(table) as handle:
        for row, cells in _csv_rows(handle):
            yield _cgcnn_item(path, cells, f"{table.name}:{row + 1}")


def read_folder(path: Path, id_column: str | None, structure_column: str | None) -> Stream:
    """Read a folder of CIF, POSCAR and JSON files, a crystal each; the id is the name without its ending."""
    if not path.is_dir():
        raise DataError(f"{path}: format 'folder' reads a folder of CIF or POSCAR files, this is a file")
    inside = sorted(os.listdir(path))
    names = [name for name in inside if file_kind(name)]
    if not names:
        held = ", ".join(inside[:8]) or "nothing"
        raise DataError(f"{path}: no crystals in the folder (*.cif, POSCAR*, *.vasp, *.json); it holds {held}")
    for name in names:
        yield _file_item(path / name, file_kind(name))


def read_cif(path: Path, id_column: str | None, structure_column: str | None) -> Stream:
    """Read one CIF file; the id is the name without its ending."""
    yield _file_item(path, "cif")


def read_poscar(path: Path, id_column: str | None, structure_column: str | None) -> Stream:
    """Read one POSCAR file; the id is the name without its ending."""
    yield _file_item(path, "poscar")


def read_parquet(path: Path, id_column: str | None, structure_column: str | None) -> Stream:
    """Read Parquet, a file or a folder: OPTIMADE columns as LeMaterial's, or documents as mp-api stores them."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.parquet") if "_delta_log" not in file.parts)
    for file in files:
        yield from _parquet_items(file, Columns(id_column, structure_column))


READERS: dict[str, Reader] = {
    "mp_json": read_json,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "cgcnn": read_cgcnn,
    "folder": read_folder,
    "cif": read_cif,
    "poscar": read_poscar,
    "parquet": read_parquet,
}

_ENDINGS = {
    ".json": "mp_json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
_KINDS = {".cif": "cif", ".vasp": "poscar", ".poscar": "poscar", ".json": "json"}


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
    ending = _plain_name(path.name).suffix.lower()
    kind = _ENDINGS.get(ending) or file_kind(path.name)
    if not kind:
        raise DataError(
            f"{path}: can't tell the format from the name; give format (one of {', '.join(READERS)}) "
            f"or use an ending such as .json, .jsonl, .csv, .parquet, .cif, .vasp (also with .gz)"
        )
    return kind


def file_kind(name: str) -> str:
    """Return ``cif``, ``poscar`` or ``json`` for the name of a file that holds one crystal, else ``""``."""
    if name.startswith("."):
        return ""
    if name.upper().startswith(("POSCAR", "CONTCAR")):
        return "poscar"
    return _KINDS.get(_plain_name(name).suffix.lower(), "")


def stem(path: Path) -> str:
    """Return a file's name without its ending and ``.gz``."""
    name = _plain_name(path.name)
    return name.stem if name.suffix.lower() in {*_ENDINGS, *_KINDS} else name.name


def _plain_name(name: str) -> Path:
    return Path(name[:-3] if name.lower().endswith(".gz") else name)


def _items(documents: Iterable[tuple[int, Any]], path: Path, columns: Columns) -> Stream:
    """Make items of numbered documents; a column asked for that none of the first ones has is an error."""
    numbered = iter(documents)
    pending = []
    for row, document in itertools.islice(numbered, _TRIED):
        pending.append(make_item(document, f"{path.name}:{row}", columns, f"{stem(path)}-{row}"))
        if isinstance(pending[-1], Record) or pending[-1].code != "no_column":
            break
    else:
        if pending:
            raise DataError(f"{path}: {pending[0].reason}")  # type: ignore[union-attr]
    yield from pending
    for row, document in numbered:
        yield make_item(document, f"{path.name}:{row}", columns, f"{stem(path)}-{row}")


def _json_lines(handle: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    lines = streams.Lines(handle)
    for row in itertools.count(1):
        try:
            line = next(lines).strip()
            if row == 1 and line.startswith("["):
                raise DataError(f"{path}: is a JSON list, not JSON Lines; use format 'mp_json'")
            if line:
                yield row, parse_json(line)
        except StopIteration:
            return
        except CrystalError as error:
            yield row, error


def _csv_rows(handle: IO[bytes]) -> Iterator[tuple[int, list[str] | CrystalError]]:
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


def _csv_documents(
    rows: Iterable[tuple[int, list[str] | CrystalError]], header: list[str], columns: Columns
) -> Iterator[tuple[int, Any]]:
    for row, cells in rows:
        if isinstance(cells, CrystalError):
            yield row, cells
        elif len(cells) != len(header):
            yield row, CrystalError("bad_csv", f"the row has {len(cells)} cells, the header has {len(header)}")
        else:
            pairs = zip(header, cells, strict=True)
            texts = (columns.id, columns.structure)
            yield row, {name: cell if name in texts else _cell(cell) for name, cell in pairs if name}


def _cell(text: str) -> float | int | str | None:
    if not text.strip():
        return None
    if _INTEGER.fullmatch(text):
        return int(text)  # the name of a class may be a whole number
    return float(text) if _NUMBER.fullmatch(text) else text


def _cgcnn_item(folder: Path, cells: list[str] | CrystalError, source: str) -> Item:
    name = ""
    try:
        if isinstance(cells, CrystalError):
            raise cells
        name = check_id(cells[0].strip())
        document: dict[str, Any] = {"structure": structure_from_cif(_file_text(_cgcnn_file(folder, name)))}
    except CrystalError as error:
        return set_aside(name, source, error)
    document["target"] = _cell(cells[1]) if len(cells) > 1 else None
    document.update({f"target_{place}": _cell(cell) for place, cell in enumerate(cells[2:], 1)})
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
            if isinstance(document, dict) and "sites" in document:
                document = {"structure": document}
        else:
            document = {"structure": (structure_from_cif if kind == "cif" else structure_from_poscar)(text)}
    except CrystalError as error:
        document = error
    return make_item(document, path.name, Columns(), material_id=stem(path))


def _file_text(path: Path) -> str:
    try:
        with streams.opened(path) as handle:
            content = streams.read_up_to(handle, streams.RECORD_BYTES + 1)
    except DataError as error:
        raise CrystalError("unreadable", str(error).removeprefix(f"{path}: ")) from None
    if len(content) > streams.RECORD_BYTES:
        raise streams.too_large()
    return content.decode("utf-8-sig", "replace")


def _parquet_items(path: Path, columns: Columns) -> Stream:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = _parquet_columns(file.schema_arrow, columns, path)
            yield from _items(_parquet_documents(file, names), path, columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {' '.join(str(error).split())[:200]}") from None


def _parquet_columns(schema: Any, columns: Columns, path: Path) -> dict[str, bool]:
    """Return the columns worth reading, with whether they are maps."""
    from pyarrow import types

    for name in (columns.id, columns.structure):
        if name is not None and name not in schema.names:
            raise DataError(f"{path}: {unknown(name, schema.names, 'column')}")
    crystal = {*STRUCTURE_NAMES, "lattice_vectors", "cartesian_site_positions", "species_at_sites", columns.structure}
    if not crystal.intersection(schema.names):
        raise DataError(
            f"{path}: no crystals in it; expected lattice_vectors, cartesian_site_positions and species_at_sites, "
            f"or structure; got {', '.join(schema.names[:40])}"
        )
    is_wanted = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_large_string)
    kept = {}
    for column in schema:
        is_numbers = types.is_list(column.type) and types.is_floating(column.type.value_type)
        is_nested = types.is_struct(column.type) or types.is_map(column.type) or is_numbers
        if column.name in crystal | {"species"} or is_nested or any(check(column.type) for check in is_wanted):
            kept[column.name] = types.is_map(column.type)
    return kept


def _parquet_documents(file: Any, names: dict[str, bool]) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa

    maps = [name for name, is_map in names.items() if is_map]
    row = 0
    batches = file.iter_batches(batch_size=_BATCH, columns=list(names))
    while True:
        try:
            documents = next(batches).to_pylist()
        except StopIteration:
            return
        except (pa.ArrowException, OSError) as error:
            yield row + 1, CrystalError("truncated", f"the file can't be read beyond this record ({str(error)[:120]})")
            return
        for document in documents:
            row += 1
            for name in maps:
                document[name] = dict(document[name] or ())
            yield row, document
