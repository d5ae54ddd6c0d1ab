"""What a screen leaves: the finalists, the fate of every other crystal, the counts, inputs for what comes next."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from cgnn.data.tables import TableWriter, harmless
from cgnn.errors import CgnnError, DataError, nearest
from cgnn.files import write_json, write_text
from cgnn.screen.chunk import Chunk, Known
from cgnn.screen.inputs import write_inputs
from cgnn.screen.rules import NUMBER, SET
from cgnn.screen.settings import ScreenConfig
from cgnn.screen.shelf import Shelf
from cgnn.screen.tail import Ended

if TYPE_CHECKING:
    import pandas as pd

RANKED, CANDIDATES, REJECTED, COUNTS = "ranked", "candidates.parquet", "rejected", "counts.json"
FINALISTS, INPUTS = "finalists", "inputs"
_WHOLE = ("num_atoms", "num_elements", "atoms_per_cell")
"""Columns whose numbers are whole."""


@dataclass(frozen=True)
class Screening:
    """A finished screen, as it lies in its folder.

    Args:
        folder: Where it lies: ``ranked.csv`` and ``ranked.parquet`` (the finalists), ``rejected.csv`` (every other
            crystal with stage and reason), ``candidates.parquet`` (all crystals with their numbers and the stage at
            which each was dropped), ``counts.json``, ``finalists/`` (CIF files) and, where wanted, ``inputs/``.
    """

    folder: Path

    @classmethod
    def load(cls, folder: str | Path) -> Screening:
        """Open the folder of a finished screen.

        Raises:
            DataError: It holds none.
        """
        if not cls.is_finished(Path(folder)):
            raise DataError(f"{folder}: holds no finished screen (there is no {COUNTS}); resume it, or start one")
        return cls(Path(folder))

    @staticmethod
    def is_finished(folder: Path) -> bool:
        """Say whether a folder holds a finished screen: the counts are written last."""
        return (folder / COUNTS).is_file()

    @property
    def counts(self) -> list[dict[str, Any]]:
        """For each stage its name, its kind, and the crystals before and after it."""
        found: list[dict[str, Any]] = orjson.loads((self.folder / COUNTS).read_bytes())
        return found

    @property
    def table(self) -> pd.DataFrame:
        """The finalists, the best first; ``attrs["units"]`` holds the units, ``attrs["counts"]`` the counts."""
        import pandas as pd
        import pyarrow.parquet as pq

        path = self.folder / f"{RANKED}.parquet"
        schema = pq.read_schema(path)
        frame = pd.read_parquet(path)
        frame.attrs["units"] = {field.name: (field.metadata or {}).get(b"unit", b"").decode() for field in schema}
        frame.attrs["counts"] = self.counts
        return frame

    def structures(self, first: int | None = None) -> dict[str, Any]:
        """Return the finalists as pymatgen ``Structure`` by their ids, the best first; all, or so many of them."""
        from pymatgen.core import Structure

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of thirds, of which a CIF holds eight digits
            files = islice(self.finalist_files().items(), first)
            return {name: Structure.from_file(f"{path}.cif") for name, path in files}

    def finalist_files(self) -> dict[str, Path]:
        """Return where the files of finalists lie, without their ending, by their ids, the best first."""
        ids = list(self.table["material_id"])
        return dict(zip(ids, (self.folder / FINALISTS / name for name in _file_names(ids)), strict=True))

    def reached_ranking(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return columns of all crystals that came as far as the first ranking, those that it dropped included.

        Args:
            columns: Their names; those that no crystal has are left out. ``material_id`` and ``stage``, ``""`` for
                finalists, come along.
        """
        import pandas as pd
        import pyarrow.parquet as pq

        counts = self.counts
        first = next(place for place, count in enumerate(counts) if count["kind"] in ("unique", "rank"))
        reached = {"", *(count["stage"] for count in counts[first:])}
        path = self.folder / CANDIDATES
        there = pq.read_schema(path).names
        wanted = ["material_id", "stage", *(name for name in columns if name in there)]
        frame = pd.read_parquet(path, columns=wanted, filters=[("stage", "in", reached)])
        return frame.reset_index(drop=True)

    def why(self, material_id: str) -> str:
        """Return what became of a crystal; several lines where its id came several times.

        Raises:
            DataError: No such crystal was given.
        """
        found = [text for name, text in self._fates() if name == material_id]
        if found:
            return "\n".join(found)
        guess = nearest(material_id, (name for name, _ in self._fates()))
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise DataError(f"{self.folder}: no crystal {material_id!r} was given to this screen{hint}")

    def _fates(self) -> Iterator[tuple[str, str]]:
        with open(self.folder / f"{RANKED}.csv", newline="", encoding="utf-8") as handle:
            finalists = list(csv.DictReader(handle))
        for row in finalists:
            yield row["material_id"], f"{row['material_id']}: finalist, number {row['rank']} of {len(finalists)}"
        for row in self._rejected():
            source = f" ({row['source']})" if row["source"] else ""
            name = row["material_id"]
            yield name, f"{name or '?'}{source}: dropped at stage {row['stage']!r}: {row['reason']}"

    def _rejected(self) -> Iterator[dict[str, str]]:
        path = self.folder / f"{REJECTED}.csv"
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as handle:
                yield from csv.DictReader(handle)
            return
        import pyarrow.parquet as pq

        path = path.with_suffix(".parquet")
        if not path.stat().st_size:  # nothing was rejected
            return
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()


def write_results(folder: Path, settings: ScreenConfig, ended: Ended, shelf: Shelf, known: Known) -> None:
    """Write everything into the folder of a screen; the counts, which say that it is finished, last."""
    _write_ranked(folder, ended.chunk, known)
    _write_fates(folder, settings, ended, shelf)
    names = _file_names(ended.chunk.ids)
    for place, name in enumerate(names):
        structure = ended.chunk.crystals[place].to_structure()
        write_text(folder / FINALISTS / f"{name}.cif", structure.to(fmt="cif"))
        if settings.inputs is not None:
            title = f"{ended.chunk.columns['formula'][place]} ({ended.chunk.ids[place]})"
            try:
                write_inputs(structure, folder / INPUTS / name, settings.inputs.sets, title)
            except CgnnError as error:
                write_text(folder / INPUTS / name / "README.md", f"# {title}\n\nNo inputs could be made: {error}\n")
    write_json(folder / COUNTS, [asdict(count) for count in ended.counts])


def _write_ranked(folder: Path, chunk: Chunk, known: Known) -> None:
    columns = {name: values for name, values in chunk.columns.items() if known.kinds.get(name) != SET}
    for ending in (".csv", ".parquet"):
        table: dict[str, Any] = {"rank": list(range(1, len(chunk) + 1)), "material_id": chunk.ids}
        table |= {name: _cells(name, values, ending) for name, values in columns.items()}
        table["flags"] = chunk.flags
        with TableWriter(folder / f"{RANKED}{ending}", {n: known.units.get(n, "") for n in table}) as writer:
            writer.add(table)


def _cells(name: str, values: Any, ending: str) -> list[Any]:
    if name == "metal":
        truths = [bool(value) for value in values]
        return truths if ending == ".parquet" else [str(value).lower() for value in truths]
    if name in _WHOLE and np.isfinite(values).all():
        return [int(value) for value in values]
    found: list[Any] = values.tolist()
    return found


def _write_fates(folder: Path, settings: ScreenConfig, ended: Ended, shelf: Shelf) -> None:
    """Write the tables of all crystals and of the rejected ones, a block at a time."""
    names = {name: kind for name, kind in shelf.kinds.items() if kind != SET}
    with ExitStack() as stack:
        everything = stack.enter_context(TableWriter(folder / CANDIDATES, {}))
        rejected = stack.enter_context(TableWriter(folder / f"{REJECTED}.{settings.rejected}", {}))
        if settings.rejected == "csv":  # a header, if nothing else; Parquet takes its types from the first rows
            rejected.add({"material_id": [], "source": [], "stage": [], "reason": []})
        for number in shelf.numbers():
            table = shelf.read(number)
            fates = [_fate(ended, number, row, table) for row in range(len(table["material_id"]))]
            columns = {name: _typed(table[f"c.{name}"], kind) for name, kind in names.items()}
            stages = [fate[0] for fate in fates]
            everything.add({"material_id": table["material_id"], "stage": stages, **columns, "flags": table["flags"]})
            rows = [row for row, stage_name in enumerate(stages) if stage_name]
            if rows:
                rejected.add(_rejections(table, fates, rows, settings.rejected == "csv"))


def _typed(values: Any, kind: str) -> list[Any]:
    return values.tolist() if kind == NUMBER else list(values)


def _fate(ended: Ended, number: int, row: int, table: Mapping[str, Any]) -> tuple[str, str]:
    if table["stage"][row]:
        return table["stage"][row], table["reason"][row]
    return ended.fates.get((number, row)) or ended.cut((number, row), dict(table)) or ("", "")


def _rejections(
    table: Mapping[str, Any], fates: list[tuple[str, str]], rows: list[int], is_csv: bool
) -> dict[str, list[str]]:
    def text(value: str) -> str:
        return harmless(value) if is_csv else value

    return {
        "material_id": [text(table["material_id"][row]) for row in rows],
        "source": [text(table["source"][row]) for row in rows],
        "stage": [text(fates[row][0]) for row in rows],
        "reason": [text(fates[row][1]) for row in rows],
    }


def _file_names(ids: list[str]) -> list[str]:
    """Return names for files: the rank, and what of the id any file system takes."""
    width = max(3, len(str(len(ids))))
    return [f"{rank:0{width}d}-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:80]}" for rank, name in enumerate(ids, 1)]
