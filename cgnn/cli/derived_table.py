"""Derived properties as new columns of a table, CSV or Parquet, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from cgnn.cli.derived import Derived, columns_of, derive_rows, left_out, notes
from cgnn.data.items import SetAside
from cgnn.data.reading import streams
from cgnn.data.reading.csv_blocks import csv_rows, read_cell
from cgnn.data.reading.documents import ID_NAMES, find, normal
from cgnn.data.tables import TableWriter
from cgnn.errors import ConfigError, CrystalError, DataError, choose, unknown
from cgnn.files import check_output, replacing
from cgnn.physics import RELATIONS
from cgnn.physics.relations import INPUTS
from cgnn.predict.forward import SEPARATOR

NAMES: dict[str, tuple[str, ...]] = {
    "bulk": ("bulk_modulus", "bulk_modulus.vrh", "k_vrh", "bulk"),
    "shear": ("shear_modulus", "shear_modulus.vrh", "g_vrh", "shear"),
    "volume_per_atom": ("volume_per_atom",),
    "density": ("density",),
    "atoms_per_cell": ("atoms_per_cell",),
    "bulk_std": ("bulk_std",),
    "shear_std": ("shear_std",),
    "correlation": ("correlation",),
    "band_gap": ("band_gap",),
    "formula": ("formula", "formula_pretty", "pretty_formula", "formula_reduced", "chemical_formula_reduced"),
}
"""Input -> columns in which it is looked for, in any spelling. The standard deviations are also looked for under the
names of the moduli's columns with ``_std``, as `cgnn predict` writes them."""

_ROWS = 1000


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Args:
        table: The input.
        output: Where the result goes, of the same kind.
        named: ``INPUT=COLUMN`` for inputs whose column has another name.
        correlation: Of the errors of both moduli, where there is no column of it.
        draws: Of each crystal.
        names: Wanted properties; all that can be derived by default.
    """

    table: Path
    output: Path
    named: Sequence[str]
    correlation: float | None
    draws: int
    names: Sequence[str] | None


def kind(path: Path) -> str:
    """Return ``.csv`` or ``.parquet``.

    Raises:
        DataError: Another ending.
    """
    name = path.name.lower()
    for ending in (".csv", ".csv.gz", ".parquet"):
        if name.endswith(ending):
            return ending.removesuffix(".gz")
    raise DataError(f"{path}: properties are derived from tables in .csv, .csv.gz or .parquet")


def target(table: Path) -> Path:
    """Return where the result goes by default: beside the table."""
    ending = kind(table)
    return table.with_name(f"{table.name.removesuffix('.gz').removesuffix(ending)}.derived{ending}")


def derive_table(request: Request, counter: Callable[[int], object]) -> tuple[int, list[SetAside], list[str]]:
    """Write a table with derived properties beside its own columns, all or nothing.

    Args:
        request: What was asked for.
        counter: Told how many more rows are done.

    Returns:
        Number of rows written, the rows that were set aside, and what to tell the user.

    Raises:
        ConfigError: Unknown property or input.
        DataError: The table can't be used, or none of its rows.
    """
    ending = kind(request.table)
    if kind(request.output) != ending or request.output.suffix != ending:
        raise DataError(f"{request.output}: the result of {request.table.name} is a {ending} too")
    check_output(request.output, request.table)
    return (_derive_csv if ending == ".csv" else _derive_parquet)(request, counter)


class Plan:
    """Which columns are read, and which are made.

    Args:
        request: What was asked for.
        header: Names of the table's columns.
    """

    def __init__(self, request: Request, header: Sequence[str]) -> None:
        self.request = request
        self.file = request.table
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise DataError(f"{self.file}: column {twice[0]!r} is there twice; rename one")
        self.columns = _columns(request, header)
        self.id_column = find(header, ID_NAMES)
        self.set_aside: list[SetAside] = []
        self.rows = 0
        self._cell = [column for name in ("volume", "nsites") if (column := find(header, (name,)))]
        has_volume = "volume_per_atom" in self.columns or len(self._cell) == 2
        inputs = {*self.columns, *(["volume_per_atom"] if has_volume else [])}
        self.names = _checked(request)
        known = inputs & set(INPUTS)
        if "formula" in inputs and known & {"volume_per_atom", "density"}:
            known |= {"volume_per_atom", "density"}
        self.notes = notes(dict.fromkeys(inputs), "correlation" in inputs or request.correlation is not None)
        if self.names is None:
            self.notes += left_out(known)
        self.units = columns_of(self.names, known, {"bulk_std", "shear_std"} <= inputs)
        taken = sorted({*self.units, "superhard"} & set(header))
        if taken:
            raise DataError(f"{self.file}: column {taken[0]!r} is there already; derive from a table without it")
        self.has_hardness = "hardness_mo" in self.units

    def derive(self, cells: Callable[[str], Sequence[Any]], rows: Sequence[int]) -> Derived:
        """Derive from some rows; those that can't be used are set aside.

        Args:
            cells: Gives the cells of a column.
            rows: Numbers of the rows, the first below the header is 1.
        """
        inputs = {name: cells(column) for name, column in self.columns.items()}
        if "volume_per_atom" not in inputs and len(self._cell) == 2:
            inputs["volume_per_atom"] = [*map(_share, *map(cells, self._cell))]
        if self.request.correlation is not None and "correlation" not in inputs:
            inputs["correlation"] = [self.request.correlation] * len(rows)
        try:
            found = derive_rows(inputs, self.request.draws, self.names)
        except DataError as error:
            raise DataError(f"{self.file}: {error}") from None
        names = cells(self.id_column) if self.id_column else [""] * len(rows)
        for place, reason in found.reasons.items():
            self.leave(rows[place], str(names[place] or ""), "bad_value", reason)
        self.rows += len(found.kept)
        return found

    def leave(self, row: int, material_id: str, code: str, reason: str) -> None:
        """Set a row aside."""
        self.set_aside.append(SetAside(material_id, f"{self.file.name}:{row}", "derive", code, reason))

    def done(self) -> tuple[int, list[SetAside], list[str]]:
        """Return what `derive_table` does.

        Raises:
            DataError: No row could be used.
        """
        if not self.rows:
            first = self.set_aside[0] if self.set_aside else None
            why = f": {first.source} {first.material_id}: {first.reason}" if first else ": it has no rows"
            raise DataError(f"{self.file}: nothing to derive from{why}")
        return self.rows, self.set_aside, self.notes


def _columns(request: Request, header: Sequence[str]) -> dict[str, str]:
    """Return the column of each input that the table has."""
    columns = {name: column for name, wanted in NAMES.items() if (column := find(header, wanted))}
    columns |= dict(_named(pair, header, request.table) for pair in request.named)
    for name, looked_for in NAMES.items():
        if name in ("bulk", "shear") and name not in columns:
            raise DataError(
                f"{request.table}: no column with {name} moduli (looked for {', '.join(looked_for)}; "
                f"got {', '.join(each[:40] for each in header[:40])}); name it with --column {name}=COLUMN"
            )
    for name in ("bulk", "shear"):
        if f"{name}_std" not in columns and (spread := find(header, (f"{normal(columns[name])}_std",))):
            columns[f"{name}_std"] = spread
    return columns


def _named(pair: str, header: Sequence[str], table: Path) -> tuple[str, str]:
    name, equals, column = pair.partition("=")
    if not equals:
        raise ConfigError(f"--column {pair!r}: expected INPUT=COLUMN, such as bulk=K_mine")
    choose(dict.fromkeys(NAMES), name, "input")
    if column not in header:
        raise DataError(f"{table}: {unknown(column[:80], [each[:60] for each in header[:60]], 'column')}")
    return name, column


def _checked(request: Request) -> Sequence[str] | None:
    for name in request.names or ():
        choose(RELATIONS, name, "derived property")
    if request.correlation is not None and not -1 <= request.correlation <= 1:
        raise ConfigError(f"--correlation: expected a number from -1 to 1, got {request.correlation:g}")
    return request.names


def _share(volume: Any, sites: Any) -> Any:
    """Return the volume of an atom from that of a cell; what is no number stays, for `derive_rows` to name."""
    if not isinstance(volume, int | float) or not isinstance(sites, int | float) or sites <= 0:
        return volume if sites is not None else None
    return volume / sites


def _joined(before: Sequence[Any] | None, flags: Sequence[str]) -> list[str]:
    """Return the flags of a row after those it has."""
    if before is None:
        return list(flags)
    return [SEPARATOR.join(filter(None, (old or "", new))) for old, new in zip(before, flags, strict=True)]


def _derive_csv(request: Request, counter: Callable[[int], object]) -> tuple[int, list[SetAside], list[str]]:
    with streams.opened(request.table) as handle:
        rows = csv_rows(handle)
        header = _header(next(rows, (0, None))[1], request.table)
        plan = Plan(request, header)
        with TableWriter(request.output, {**_units_beside(request.table), **plan.units}) as writer:
            while chunk := list(islice(rows, _ROWS)):
                whole = list(_whole(chunk, len(header), plan))
                if whole:
                    writer.add(_csv_columns(plan, header, whole))
                counter(len(chunk))
            return plan.done()


def _whole(chunk: list[tuple[int, Any]], width: int, plan: Plan) -> Iterator[tuple[int, list[str]]]:
    for row, cells in chunk:
        if isinstance(cells, CrystalError):
            plan.leave(row, "", cells.code, cells.reason)
        elif len(cells) != width:
            plan.leave(row, "", "bad_csv", f"the row has {len(cells)} cells, the header has {width}")
        else:
            yield row, cells


def _csv_columns(plan: Plan, header: list[str], rows: list[tuple[int, list[str]]]) -> dict[str, Sequence[Any]]:
    texts = {name: [cells[place] for _, cells in rows] for place, name in enumerate(header)}

    def cells(column: str) -> Sequence[Any]:
        is_text = column in (plan.id_column, plan.columns.get("formula"))
        return texts[column] if is_text else [read_cell(text) for text in texts[column]]

    found = plan.derive(cells, [row for row, _ in rows])
    kept: dict[str, Sequence[Any]] = {name: [column[row] for row in found.kept] for name, column in texts.items()}
    made: dict[str, Sequence[Any]] = {name: list(found.columns.get(name, ())) for name in plan.units}
    if plan.has_hardness:
        made["superhard"] = ["true" if is_one else "false" for is_one in found.superhard]
    flags = _joined(kept.pop("flags", None), found.flags)
    return {**kept, **made, "flags": flags}


def _header(cells: Any, path: Path) -> list[str]:
    if not isinstance(cells, list):
        raise DataError(f"{path}: no header row; expected the names of the columns")
    return [cell.strip() for cell in cells]


def _units_beside(table: Path) -> dict[str, str]:
    """Return the units that stand beside a table of `cgnn predict`."""
    try:
        units = orjson.loads(table.with_name(f"{table.name}.units.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return {str(name): str(unit) for name, unit in units.items()} if isinstance(units, Mapping) else {}


def _derive_parquet(request: Request, counter: Callable[[int], object]) -> tuple[int, list[SetAside], list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        try:
            source = stack.enter_context(pq.ParquetFile(request.table))
        except (OSError, pa.ArrowException) as error:
            why = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise DataError(f"{request.table}: can't be read as Parquet: {why}") from None
        plan = Plan(request, source.schema_arrow.names)
        schema = _schema(source.schema_arrow, plan)
        temporary = stack.enter_context(replacing(request.output))
        writer = stack.enter_context(pq.ParquetWriter(temporary, schema))
        first = 1
        for batch in source.iter_batches(_ROWS):
            writer.write_table(_parquet_rows(plan, pa.Table.from_batches([batch]), schema, first))
            first += len(batch)
            counter(len(batch))
        return plan.done()


def _schema(before: Any, plan: Plan) -> Any:
    import pyarrow as pa

    fields = [field for field in before if field.name != "flags"]
    fields += [pa.field(name, pa.float64(), metadata={"unit": unit}) for name, unit in plan.units.items()]
    fields += [pa.field("superhard", pa.bool_())] * plan.has_hardness + [pa.field("flags", pa.string())]
    return pa.schema(fields, metadata=before.metadata)


def _parquet_rows(plan: Plan, rows: Any, schema: Any, first: int) -> Any:
    import pyarrow as pa

    found = plan.derive(lambda column: rows.column(column).to_pylist(), range(first, first + len(rows)))
    kept = rows.take(pa.array(found.kept))
    before = kept.column("flags").to_pylist() if "flags" in kept.column_names else None
    made: dict[str, Any] = {name: found.columns.get(name, []) for name in plan.units}
    made |= {"superhard": found.superhard, "flags": _joined(before, found.flags)}
    arrays = [
        pa.array(made[field.name], field.type) if field.name in made else kept.column(field.name) for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
