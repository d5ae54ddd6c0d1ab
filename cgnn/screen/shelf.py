"""Results of blocks on disk, one Parquet file each: what a killed screen goes on from, and what is ranked."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgnn.errors import DataError
from cgnn.files import replacing
from cgnn.graph.crystal import Crystal
from cgnn.screen.chunk import Chunk
from cgnn.screen.head import Sifted
from cgnn.screen.rules import NUMBER, SET

_CRYSTAL = ("z", "pos", "lattice")
_TEXTS = ("material_id", "source", "stage", "reason", "flags")


class Shelf:
    """The results of blocks, by their number; each appears whole or not at all.

    Args:
        folder: Where they lie.
        kinds: Column -> kind of the columns that crystals have.
    """

    def __init__(self, folder: Path, kinds: Mapping[str, str]) -> None:
        self.folder = folder
        self.kinds = dict(kinds)

    def path(self, number: int) -> Path:
        """Return the file of a block's results."""
        return self.folder / f"{number:08d}.parquet"

    def has(self, number: int) -> bool:
        """Say whether a block is done."""
        return self.path(number).is_file()

    def numbers(self) -> Iterator[int]:
        """Yield the blocks that are done, from the first without a gap."""
        number = 0
        while self.has(number):
            yield number
            number += 1

    def put(self, number: int, found: Sifted) -> None:
        """Write the results of a block."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = (found.ids, found.sources, found.stages, found.reasons, found.flags)
        arrays: dict[str, Any] = {
            name: pa.array(values, pa.string()) for name, values in zip(_TEXTS, texts, strict=True)
        }
        arrays["digest"] = pa.array(found.digests, pa.binary())
        for name, kind in self.kinds.items():
            values = found.columns[name]
            arrays[f"c.{name}"] = (
                pa.array(values, pa.float64()) if kind == NUMBER else pa.array([_plain(v) for v in values], pa.string())
            )
        for name in _CRYSTAL:
            kind_of = pa.list_(pa.int16() if name == "z" else pa.float64())
            arrays[name] = pa.array([None if c is None else getattr(c, name).ravel() for c in found.crystals], kind_of)
        with replacing(self.path(number)) as temporary:
            pq.write_table(pa.table(arrays), temporary)

    def read(self, number: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Return columns of a block's results: texts as lists, numbers as arrays; all but the crystals by default."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = [*_TEXTS, *(f"c.{name}" for name in self.kinds)] if columns is None else list(columns)
        path = self.path(number)
        try:
            table = pq.ParquetFile(path).read(columns=wanted)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: is damaged: {str(error).splitlines()[0]}; remove it and resume") from None
        return {name: _values(table.column(name)) for name in wanted}

    def chunk(self, places: Sequence[tuple[int, int]]) -> Chunk:
        """Return crystals that go on, in the order given.

        Args:
            places: For each the number of its block and its row there.
        """
        found: dict[tuple[int, int], tuple[str, str, Crystal, dict[str, Any]]] = {}
        for number in sorted({number for number, _ in places}):
            rows = sorted({row for other, row in places if other == number})
            names = ["material_id", "flags", *_CRYSTAL, *(f"c.{name}" for name in self.kinds)]
            table = self.read(number, names)
            for row in rows:
                values = {name: table[f"c.{name}"][row] for name in self.kinds}
                crystal = _crystal(*(table[name][row] for name in _CRYSTAL))
                found[number, row] = (table["material_id"][row], table["flags"][row], crystal, values)
        entries = [found[place] for place in places]
        columns = {name: _column([values[name] for *_, values in entries], kind) for name, kind in self.kinds.items()}
        return Chunk(
            np.arange(len(entries)),
            [entry[0] for entry in entries],
            [entry[2] for entry in entries],
            columns,
            [entry[1] for entry in entries],
        )

    def discard(self) -> None:
        """Remove all results."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else "-".join(sorted(value))


def _values(column: Any) -> Any:
    import pyarrow as pa

    return column.to_numpy() if pa.types.is_floating(column.type) else column.to_pylist()


def _crystal(z: Sequence[int], pos: Sequence[float], lattice: Sequence[float]) -> Crystal:
    return Crystal(
        np.array(z, dtype=np.int64),
        np.array(pos, dtype=np.float64).reshape(-1, 3),
        np.array(lattice, dtype=np.float64).reshape(3, 3),
    )


def _column(values: Iterable[Any], kind: str) -> NDArray[Any]:
    if kind == NUMBER:
        return np.array(list(values), dtype=np.float64)
    entries = [frozenset(value.split("-")) if kind == SET else value for value in values]
    found = np.empty(len(entries), dtype=object)
    found[:] = entries
    return found
