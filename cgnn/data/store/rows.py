"""Prepared graphs as an input: their crystals, read back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cgnn.data.items import Block, Finished, Item
from cgnn.data.reading.documents import Columns
from cgnn.data.store.mapped import GraphStore
from cgnn.errors import DataError

_ROWS = 256


@dataclass(frozen=True)
class Rows:
    """A block of crystals of a file of prepared graphs.

    Args:
        path: The file.
        first: Its first crystal, counted from 0.
        last: The crystal behind its last.
    """

    path: Path
    first: int
    last: int

    def items(self) -> list[Item]:
        """Return the crystals."""
        return list(_opened(self.path).records(self.first, self.last))

    def split(self) -> list[Block]:
        """Return a block for each crystal."""
        return [Rows(self.path, row, row + 1) for row in range(self.first, self.last)]

    @property
    def place(self) -> str:
        """Where the first crystal is."""
        return f"{self.path.name}:{self.first + 1}"


def read_graphs(path: Path, columns: Columns) -> Iterator[Block]:
    """Read the crystals of prepared graphs, and what was set aside when these were made."""
    if columns != Columns():
        raise DataError(f"{path}: prepared graphs have their ids and crystals; columns can't be chosen any more")
    store = GraphStore(path)
    for first in range(0, len(store), _ROWS):
        yield Rows(path, first, min(first + _ROWS, len(store)))
    if store.set_aside:
        yield Finished(list(store.set_aside))


@lru_cache(maxsize=1)
def _opened(path: Path) -> GraphStore:
    return GraphStore(path)
