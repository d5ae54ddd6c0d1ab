"""The best of any number of crystals, without holding them: as many passes over their scores as it takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cgnn.graph.crystal import Crystal
from cgnn.screen.ranking import ordered_front
from cgnn.screen.sameness import Same

Array = NDArray[np.float64]
Place = tuple[int, int]
"""Number of a block, and a row of it."""

POOL = 4096
"""So many scores are held at least while the best are looked for."""


class Scored(NamedTuple):
    """Scores of some crystals.

    Args:
        number: Of their block.
        rows: Their rows there (n,).
        ids: Their ids (n,).
        formulas: Their reduced formulas (n,).
        scores: What they are ranked by, large is good (n, properties).
    """

    number: int
    rows: NDArray[np.int64]
    ids: list[str]
    formulas: list[str]
    scores: Array


class Entry(NamedTuple):
    """One crystal that may be kept."""

    scores: tuple[float, ...]
    material_id: str
    place: Place
    formula: str

    @property
    def key(self) -> tuple[float, str, Place]:
        """What crystals with one score are put in order by: the best first."""
        return (-self.scores[0], self.material_id, self.place)


Scores = Callable[[], Iterable[Scored]]
"""Gives the scores of all crystals; can be called again."""
Crystals = Callable[[Sequence[Place]], Sequence[Crystal]]
"""Gives crystals by their places."""


@dataclass
class Selection:
    """What was chosen.

    Args:
        kept: The best, in their order.
        duplicates: Place of a crystal -> the better one that it is the same as; only of those that would have been
            kept without it.
    """

    kept: list[Entry] = field(default_factory=list)
    duplicates: dict[Place, Entry] = field(default_factory=dict)


def select(scores: Scores, keep: int, same: Same | None = None, crystals: Crystals | None = None) -> Selection:
    """Return the best crystals, each once.

    In their order crystals are kept unless they are the same as one that is kept already, until there are enough. A
    pass over the scores gives the next ones of the order, so that nothing depends on how many are held.

    Args:
        scores: What is ranked by; of several properties Pareto fronts are taken one after another.
        keep: How many.
        same: When two count as the same; None where duplicates stay.
        crystals: Gives the crystals to compare.
    """
    chosen = Selection()
    by_formula: dict[str, list[tuple[Entry, Crystal | None]]] = defaultdict(list)
    for batch in _batches(scores, keep):
        for entry, crystal in _with_crystals(batch, crystals if same else None):
            if len(chosen.kept) == keep:
                return chosen
            twin = _twin(crystal, by_formula[entry.formula], same)
            if twin is not None:
                chosen.duplicates[entry.place] = twin
                continue
            chosen.kept.append(entry)
            by_formula[entry.formula].append((entry, crystal))
    return chosen


def _with_crystals(batch: Sequence[Entry], crystals: Crystals | None) -> Iterator[tuple[Entry, Crystal | None]]:
    """Yield entries with their crystals, which are fetched some at a time."""
    for first in range(0, len(batch), 256):
        part = batch[first : first + 256]
        found: Sequence[Crystal | None] = crystals([e.place for e in part]) if crystals else [None] * len(part)
        yield from zip(part, found, strict=True)


def _twin(crystal: Any, kept: Sequence[tuple[Entry, Crystal | None]], same: Same | None) -> Entry | None:
    if same is None:
        return None
    return next((entry for entry, other in kept if other is not None and same(crystal, other)), None)


def _batches(scores: Scores, keep: int) -> Iterator[list[Entry]]:
    """Yield all crystals in their order, a batch for each pass."""
    columns = next((part.scores.shape[1] for part in scores()), 1)
    return _pools(scores, max(POOL, 2 * keep)) if columns == 1 else _fronts(scores)


def _pools(scores: Scores, size: int) -> Iterator[list[Entry]]:
    last: Any = None
    while True:
        pool: list[Entry] = []
        for part in scores():
            pool += [entry for entry in _entries(part) if last is None or entry.key > last]
            if len(pool) > 2 * size:
                pool = sorted(pool, key=lambda entry: entry.key)[:size]
        is_whole = len(pool) > size
        pool = sorted(pool, key=lambda entry: entry.key)[:size]
        if pool:
            yield pool
            last = pool[-1].key
        if not is_whole and len(pool) < size:
            return


def _fronts(scores: Scores) -> Iterator[list[Entry]]:
    """Yield Pareto fronts; those of all passes before are left out."""
    done: set[Place] = set()
    while True:
        front: list[Entry] = []
        for part in scores():
            front = _front([*front, *(entry for entry in _entries(part) if entry.place not in done)])
        if not front:
            return
        yield front
        done |= {entry.place for entry in front}


def _front(entries: list[Entry]) -> list[Entry]:
    table = np.array([entry.scores for entry in entries], dtype=np.float64).reshape(len(entries), -1)
    return [entries[row] for row in ordered_front(table, [entry.material_id for entry in entries])]


def _entries(part: Scored) -> Iterator[Entry]:
    rows = zip(part.scores.tolist(), part.ids, part.rows.tolist(), part.formulas, strict=True)
    return (Entry(tuple(score), name, (part.number, row), formula) for score, name, row, formula in rows)
