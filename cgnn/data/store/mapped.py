"""Prepared graphs on disk: memory-mapped, and checked block by block when they are first used.

Opening reads the header alone (see `cgnn.data.store.layout`): the size of the file and the checksum of the checksums
are compared there, so that a cut, swapped or older file is found at once, and opening a million crystals costs
what opening ten costs. Every access below checks the blocks it touches before it serves them, once; damage in
them is found then, before a wrong number is used. A store that knows how it was made (`rebuild`) warns, is built
again and goes on; one that does not raises a `DataError`. This was chosen over a note of the file's last full
check, because such a note knows nothing of a disk that forgets.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgnn.data.items import Record, SetAside, Value
from cgnn.data.store.chunks import PACKED, Column
from cgnn.data.store.layout import BLOCK, DIGEST, Place, digest, read_header
from cgnn.errors import DataError
from cgnn.graph.crystal import Crystal
from cgnn.graph.fields import FIELDS, Arrays

Ints = NDArray[np.int64]


class GraphStore:
    """Prepared graphs of a data set, read from disk as they are used.

    Args:
        path: File written by `StoreWriter`.
        rebuild: Makes the file again, the same as it was; called when damage is found in it.

    Raises:
        DataError: The file is truncated, altered or of another version.
    """

    def __init__(self, path: str | Path, rebuild: Callable[[], None] | None = None) -> None:
        self.path = Path(path)
        self.arrays: Mapping[str, NDArray[Any]] = _Checked(self)
        """The packed arrays by name; each is checked whole when it is first asked for."""
        self._rebuild = rebuild
        self._open()

    def __len__(self) -> int:
        return self._places["atom_ptr"].shape[0] - 1

    @property
    def num_atoms(self) -> int:
        """Atoms of all crystals together."""
        return self._places["z"].shape[0]

    @property
    def key(self) -> str:
        """What the file was made from (`cgnn.data.prepare.store_key`)."""
        return self._metadata["key"]

    @property
    def settings(self) -> str:
        """The graph settings as JSON."""
        return self._metadata["settings"]

    @cached_property
    def set_aside(self) -> list[SetAside]:
        """Crystals that could not be read or turned into graphs."""
        return [SetAside(**entry) for entry in json.loads(self._text("set_aside"))]

    @cached_property
    def columns(self) -> list[str]:
        """Names of the columns of values, in the order in which they appeared."""
        names: list[str] = json.loads(self._text("column_names"))
        return names

    def ids(self) -> list[str]:
        """Return the ids of all crystals."""
        return self._text("id_lines").split("\n")[:-1]

    def sources(self) -> list[str]:
        """Return where all crystals came from."""
        return self._text("source_lines").split("\n")[:-1]

    def column(self, name: str) -> Column | None:
        """Return a column of values; nothing where only the records hold it.

        Raises:
            ValueError: There is no such column.
        """
        row = self.columns.index(name)
        if row >= PACKED:
            return None
        part = row * len(self), (row + 1) * len(self)
        return Column(self._part("column_kinds", *part), self._part("column_values", *part))

    def graph(self, index: int) -> Arrays:
        """Return the fields of one crystal."""
        self.verify(np.array([index]))
        bounds = {level: slice(*self.mapped[f"{level}_ptr"][index : index + 2]) for level in ("atom", "edge")}
        bounds["crystal"] = slice(index, index + 1)
        return {name: self.mapped[name][bounds[field.level]] for name, field in FIELDS.items()}

    def record(self, index: int) -> tuple[str, str, dict[str, Value]]:
        """Return id, source and values of one crystal."""
        start, stop = self._part("record_ptr", index, index + 2).tolist()
        material_id, source, values = json.loads(self._part("record", start, stop).tobytes())
        return material_id, source, values

    def records(self, first: int = 0, last: int | None = None) -> Iterator[Record]:
        """Yield the crystals as they were read, all or those from ``first`` up to ``last``."""
        for index in range(first, len(self) if last is None else last):
            graph = self.graph(index)
            material_id, source, values = self.record(index)
            crystal = Crystal(graph["z"].astype(np.int64), graph["pos"].copy(), graph["lattice"][0].copy())
            yield Record(material_id, crystal, values, source)

    def verify(self, rows: Ints) -> None:
        """Check what the graphs of some crystals are read from; then `mapped` may be used for these.

        Args:
            rows: Crystals, counted from 0.

        Raises:
            DataError: The file is damaged and can't be made again.
        """
        if self._known[rows].all():
            return
        rows = rows[~self._known[rows]]
        pointers = {}
        for level in ("atom", "edge"):
            self._check(self._blocks_of(f"{level}_ptr", rows, rows + 2))
            pointers[level] = self.mapped[f"{level}_ptr"][rows], self.mapped[f"{level}_ptr"][rows + 1]
        pointers["crystal"] = rows, rows + 1
        for name, field in FIELDS.items():
            self._check(self._blocks_of(name, *pointers[field.level]))
        self._known[rows] = True

    def verify_all(self) -> None:
        """Check the whole file.

        Raises:
            DataError: The file is damaged and can't be made again.
        """
        self._check(np.arange(len(self._sound)))
        self._known[:] = True

    def _open(self) -> None:
        self._metadata, self._places, start = read_header(self.path)
        try:
            # a plain view of the map: indexing np.memmap itself costs a Python call per slice
            content = np.asarray(np.memmap(self.path, dtype=np.uint8, mode="r"))[start:]
            self.mapped: Arrays = {name: _view(content, place) for name, place in self._places.items()}
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self.path}: damaged: {error}") from None
        self._checksums = self.mapped["checksums"].tobytes()
        if sha256(self._checksums).hexdigest() != self._metadata.get("table"):
            raise DataError(f"{self.path}: damaged: the checksums differ from their own")
        self._data = content[: self._places["checksums"].start]
        self._sound = np.zeros(len(self._checksums) // DIGEST, dtype=bool)
        self._known = np.zeros(len(self), dtype=bool)

    def _part(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return some entries of an array, checked."""
        place, width = self._places[name], self._width(name)
        first, last = place.start + start * width, place.start + stop * width
        self._check(np.arange(first // BLOCK, -(-last // BLOCK) if stop > start else first // BLOCK))
        return self.mapped[name][start:stop]

    def _text(self, name: str) -> str:
        return self.arrays[name].tobytes().decode()

    def _blocks_of(self, name: str, starts: Ints, stops: Ints) -> Ints:
        """Return the blocks that hold the entries of an array from some places up to others."""
        place, width = self._places[name], self._width(name)
        first, last = place.start + starts * width, place.start + stops * width - 1
        first, last = first[stops > starts] // BLOCK, last[stops > starts] // BLOCK
        opened = np.bincount(first, minlength=len(self._sound) + 1)
        return np.flatnonzero(np.cumsum(opened - np.bincount(last + 1, minlength=len(opened))))

    def _width(self, name: str) -> int:
        place = self._places[name]
        return (place.stop - place.start) // max(place.shape[0], 1)

    def _check(self, blocks: Ints) -> None:
        """Compare the checksums of those of some blocks that were not checked before."""
        for block in blocks[~self._sound[blocks]].tolist():
            found = digest(self._data[block * BLOCK : (block + 1) * BLOCK].data)
            if found != self._checksums[block * DIGEST : (block + 1) * DIGEST]:
                self._repair()
                return
            self._sound[block] = True

    def _repair(self) -> None:
        """Make a damaged file again and check it whole: nothing of the old one is used any more."""
        message = f"{self.path}: damaged: a checksum differs"
        if self._rebuild is None:
            raise DataError(f"{message}; delete it and prepare the crystals again")
        warnings.warn(f"{message}; it is built again", stacklevel=2)
        before, rebuild, self._rebuild = self._checksums, self._rebuild, None
        rebuild()
        self._open()
        self.verify_all()
        self._rebuild = rebuild
        if self._checksums != before:
            raise DataError(f"{self.path}: was built again, but is not the same; run the command again")


class _Checked(Mapping[str, NDArray[Any]]):
    """The arrays of a store, each checked when it is first asked for."""

    def __init__(self, store: GraphStore) -> None:
        self._store = store
        self._sound: set[str] = set()

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._sound:
            self._store._part(name, 0, len(self._store.mapped[name]))
            self._sound.add(name)
        return self._store.mapped[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._store.mapped if name != "checksums")

    def __len__(self) -> int:
        return len(self._store.mapped) - 1


def _view(content: NDArray[np.uint8], place: Place) -> NDArray[Any]:
    return content[place.start : place.stop].view(place.dtype).reshape(place.shape)
