"""Several files as one: the same crystal under the same id becomes one record with the labels of all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TypeVar

import numpy as np

from cgnn.data.dataset import collate, summarise
from cgnn.data.items import Record, Value
from cgnn.data.store import GraphStore
from cgnn.data.store.chunks import Built, PackedChunk, pack
from cgnn.data.store.writer import CHUNK
from cgnn.data.summary import SAME, CrystalSummary, duplicate_groups

T = TypeVar("T")

SUMMARISED = 1000
"""Crystals that are compared at once."""


@dataclass(frozen=True)
class Merged:
    """The crystals of several stores, one store after another.

    An id that several stores have is looked at: where the crystals are the same (formula, volume and shells, within
    the tolerance of duplicates), the first store's gets the values of the others, and where two stores have a value
    in one column, the first one's stays. Another crystal under the same id keeps its own values and is called
    ``ID@NAME``.

    Args:
        stores: Prepared graphs, made with the same settings.
        names: A name of each, all different.
    """

    stores: Sequence[GraphStore]
    names: Sequence[str]

    def chunks(self) -> Iterator[PackedChunk]:
        """Yield the graphs and records, and what the stores set aside; the same chunks each time."""
        for built in _batched(self._built(), CHUNK):
            yield pack(built)

    def _built(self) -> Iterator[Built]:
        rows = [{name: row for row, name in enumerate(store.ids())} for store in self.stores]
        shared = self._shared(rows)
        for place, store in enumerate(self.stores):
            yield from ((crystal, {}) for crystal in store.set_aside)
            for material_id, row in rows[place].items():
                groups = shared.get(material_id, [(place,)])
                group = next(group for group in groups if place in group)
                if place == group[0]:
                    record = self._record([(other, rows[other][material_id]) for other in group])
                    is_first = group is groups[0]
                    name = material_id if is_first else f"{material_id}@{self.names[place]}"
                    yield replace(record, material_id=name), store.graph(row)

    def _shared(self, rows: Sequence[dict[str, int]]) -> dict[str, list[tuple[int, ...]]]:
        """Return for each id of several stores the stores in groups that have the same crystal."""
        counts = Counter(chain.from_iterable(rows))
        found: dict[str, list[CrystalSummary]] = defaultdict(list)
        for place, known in enumerate(rows):
            for part in _batched((name for name in known if counts[name] > 1), SUMMARISED):
                graphs = [self.stores[place].graph(known[name]) for name in part]
                for name, summary in zip(part, summarise(collate(graphs), [str(place)] * len(part)), strict=True):
                    found[name].append(summary)
        return {name: self._groups(name, crystals, rows) for name, crystals in found.items()}

    def _groups(
        self, name: str, crystals: Sequence[CrystalSummary], rows: Sequence[dict[str, int]]
    ) -> list[tuple[int, ...]]:
        groups: list[tuple[int, ...]] = []
        for group in duplicate_groups(crystals):
            members = sorted(map(int, group))
            apart = [m for m in members[1:] if not self._can_join((members[0], m), name, rows)]
            groups += [tuple(m for m in members if m not in apart), *((m,) for m in apart)]
        return sorted(groups)

    def _can_join(self, pair: tuple[int, int], name: str, rows: Sequence[dict[str, int]]) -> bool:
        """Tell whether values may go from one crystal to the other: those of atoms need the same atoms in order."""
        first, second = ((self.stores[place], rows[place][name]) for place in pair)
        if not any(isinstance(value, list) for value in second[0].record(second[1])[2].values()):
            return True
        ours, theirs = (store.graph(row) for store, row in (first, second))
        return np.array_equal(ours["z"], theirs["z"]) and all(
            np.allclose(ours[field], theirs[field], rtol=SAME, atol=SAME) for field in ("pos", "lattice")
        )

    def _record(self, places: Sequence[tuple[int, int]]) -> Record:
        """Return the first of some records with what the others know besides."""
        first, *others = (next(self.stores[place].records(row, row + 1)) for place, row in places)
        values: dict[str, Value] = dict(first.values)
        for other in others:
            values |= {key: value for key, value in other.values.items() if values.get(key) is None}
        source = "; ".join(record.source for record in (first, *others))
        return replace(first, values=values, source=source)


def _batched(items: Iterable[T], number: int) -> Iterator[list[T]]:
    entries = iter(items)
    while part := list(islice(entries, number)):
        yield part
