"""Tables out: CSV or Parquet, written piece by piece, all or nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from cgnn.data.records import SetAside
from cgnn.errors import DataError
from cgnn.files import replacing, write_json


class TableWriter:
    """Writes rows in pieces; the file appears when the context ends without an error.

    CSV gets its units in ``<file>.units.json`` beside it, Parquet in its schema. Numbers are written with
    seven digits, what a float32 network knows. Lists (values per atom) become JSON text in CSV.

    Args:
        path: ``.csv`` or ``.parquet``.
        units: Column -> unit.

    Raises:
        DataError: Another ending, or the file can't be written.
    """

    def __init__(self, path: str | Path, units: Mapping[str, str]) -> None:
        self.path = Path(path)
        self.units = dict(units)
        if self.path.suffix not in (".csv", ".parquet"):
            raise DataError(f"{path}: tables are written as .csv or .parquet, got {self.path.suffix!r}")

    def __enter__(self) -> TableWriter:
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(replacing(self.path))
        self._sink: Any = None
        return self

    def __exit__(self, *error: Any) -> bool | None:
        if self._sink is None and error[0] is None:
            self._temporary.touch()
        done = self._stack.__exit__(*error)  # closes the sink, then puts the file in its place
        if error[0] is None and self.path.suffix == ".csv" and self.units:
            write_json(self.path.with_name(f"{self.path.name}.units.json"), self.units)
        return done

    def add(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Append rows, given as columns of equal length; the first call fixes the names."""
        if self.path.suffix == ".csv":
            self._add_csv(columns)
        else:
            self._add_parquet(columns)

    def _add_csv(self, columns: Mapping[str, Sequence[Any]]) -> None:
        if self._sink is None:
            handle = open(self._temporary, "w", encoding="utf-8", newline="")  # noqa: SIM115
            self._sink = self._stack.enter_context(handle)
            self._writer = csv.writer(self._sink, lineterminator="\n")
            self._writer.writerow(columns)
        self._writer.writerows([_text(value) for value in row] for row in zip(*columns.values(), strict=True))

    def _add_parquet(self, columns: Mapping[str, Sequence[Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({name: list(values) for name, values in columns.items()})
        if self._sink is None:
            schema = pa.schema(
                [field.with_metadata({"unit": self.units.get(field.name, "")}) for field in table.schema]
            )
            self._sink = self._stack.enter_context(pq.ParquetWriter(self._temporary, schema))
        self._sink.write_table(table.cast(self._sink.schema))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if hasattr(value, "__len__"):
        return json.dumps([float(f"{entry:.7g}") for entry in value])
    return "" if value != value else f"{value:.7g}"


def write_set_aside(path: str | Path, crystals: Iterable[SetAside]) -> None:
    """Write the crystals that were set aside, with stage, code and reason, as CSV."""
    rows = [{name: harmless(text) for name, text in asdict(crystal).items()} for crystal in crystals]
    with TableWriter(path, {}) as table:
        table.add({field.name: [row[field.name] for row in rows] for field in fields(SetAside)})


def harmless(text: str) -> str:
    """Return a text that a spreadsheet takes for a text: file names may start like a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
