"""The end of a screen: the best of all are looked up on disk, and pass through the stages after the first ranking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cgnn.screen.chunk import Chunk, Known, Reasons
from cgnn.screen.sameness import SAMENESS
from cgnn.screen.selection import Entry, Place, Scored, Selection, select
from cgnn.screen.shelf import Shelf
from cgnn.screen.stages import Score


@dataclass(frozen=True)
class Bound:
    """A stage that fits where it stands.

    Args:
        settings: Of the stage.
        step: What it does; None for ``unique``.
        known: What is known of the columns after it.
    """

    settings: Any
    step: Any
    known: Known


@dataclass
class Count:
    """How many crystals a stage let pass.

    Args:
        stage: Its name.
        kind: Its kind.
        before: Crystals that reached it.
        after: Crystals that went on.
    """

    stage: str
    kind: str
    before: int
    after: int


Cut = Callable[[Place, dict[str, Any]], tuple[str, str] | None]


@dataclass
class Ended:
    """What a screen found.

    Args:
        chunk: The finalists, the best first.
        fates: Place of a crystal that was kept by the first ranking and dropped later -> stage and reason.
        cut: Says of a crystal that reached the first ranking, by its place and its block's table, why it was not kept
            (stage, reason); None of those that were.
        counts: By stage.
        places: Places of the finalists.
    """

    chunk: Chunk
    fates: dict[Place, tuple[str, str]]
    cut: Cut
    counts: list[Count]
    places: list[Place] = field(default_factory=list)


class Ending:
    """What is done after the first stages.

    Args:
        first: The first ranking.
        unique: The ``unique`` right before it, if there is one.
        rest: The stages after it.
    """

    def __init__(self, first: Bound, unique: Sequence[Bound], rest: Sequence[Bound]) -> None:
        self._first, self._unique, self._rest = first, unique, rest

    def run(self, shelf: Shelf, before: Sequence[tuple[str, str]]) -> Ended:
        """Choose the best of all on the shelf and lead them through the other stages.

        Args:
            shelf: Results of the stages before.
            before: Names and kinds of these stages.
        """
        score: Score = self._first.step
        counts = _counts(shelf, before)
        same = SAMENESS[self._unique[0].settings.by] if self._unique else None
        chosen = select(
            lambda: _scored(shelf, score), score.settings.keep, same, lambda places: shelf.chunk(places).crystals
        )
        reached = counts[-1].after
        if self._unique:
            counts.append(Count(self._unique[0].settings.name, "unique", reached, reached - len(chosen.duplicates)))
            reached = counts[-1].after
        counts.append(Count(score.name, "rank", reached, len(chosen.kept)))
        places = [entry.place for entry in chosen.kept]
        ended = Ended(shelf.chunk(places), {}, self._cut(chosen, score), counts, places)
        for bound in self._rest:
            self._pass(bound, ended)
        return ended

    def _cut(self, chosen: Selection, score: Score) -> Cut:
        kept = {entry.place for entry in chosen.kept}
        last = chosen.kept[-1] if chosen.kept else None

        def cut(place: Place, table: dict[str, Any]) -> tuple[str, str] | None:
            if place in kept:
                return None
            mine = score.shown({name: table[f"c.{name}"] for name in score.columns}, place[1])
            twin = chosen.duplicates.get(place)
            if twin is not None:
                return self._unique[0].settings.name, f"the same as {twin.material_id}, which ranks better ({mine})"
            return score.name, _too_low(mine, len(chosen.kept), last, score)

        return cut

    def _pass(self, bound: Bound, ended: Ended) -> None:
        """Lead the crystals that are left through one stage."""
        chunk = ended.chunk
        if bound.step is None:
            reasons, order = _repeated(chunk, bound.settings.by), None
        else:
            reasons = bound.step.apply(chunk) if len(chunk) else {}
            order = _ordered(chunk, bound.step, reasons) if isinstance(bound.step, Score) else None
        for row, reason in reasons.items():
            ended.fates[ended.places[row]] = (bound.settings.name, reason)
        kept = order if order is not None else [row for row in range(len(chunk)) if row not in reasons]
        ended.counts.append(Count(bound.settings.name, bound.settings.kind, len(chunk), len(kept)))
        ended.chunk, ended.places = chunk.taken(kept), [ended.places[row] for row in kept]


def _too_low(mine: str, kept: int, last: Entry | None, score: Score) -> str:
    if last is None:
        return mine
    theirs = score.shown({name: [value] for name, value in zip(score.columns, last.scores, strict=True)}, 0)
    return f"{mine}; the last of the {kept} kept, {last.material_id}, has {theirs}"


def _counts(shelf: Shelf, stages: Sequence[tuple[str, str]]) -> list[Count]:
    """Return how many passed each of the first stages."""
    dropped: Counter[str] = Counter()
    left = 0
    for number in shelf.numbers():
        fates = shelf.read(number, ["stage"])["stage"]
        left += len(fates)
        dropped.update(fates)
    counts = []
    for name, kind in stages:
        counts.append(Count(name, kind, left, left - dropped[name]))
        left -= dropped[name]
    return counts


def _scored(shelf: Shelf, score: Score) -> Iterator[Scored]:
    names = [f"c.{name}" for name in score.columns]
    for number in shelf.numbers():
        table = shelf.read(number, ["stage", "material_id", "c.formula", *names])
        rows = np.array([row for row, stage in enumerate(table["stage"]) if not stage], dtype=np.int64)
        scores = np.stack([table[name][rows] for name in names], axis=1)
        listed = rows.tolist()
        ids, formulas = table["material_id"], table["c.formula"]
        yield Scored(number, rows, [ids[row] for row in listed], [formulas[row] for row in listed], scores)


def _repeated(chunk: Chunk, by: str) -> Reasons:
    """Return why crystals are the same as one that stands before them."""
    same, reasons, kept = SAMENESS[by], Reasons(), list[int]()
    formulas = chunk.columns["formula"].tolist()
    for row, crystal in enumerate(chunk.crystals):
        twin = next((k for k in kept if formulas[k] == formulas[row] and same(crystal, chunk.crystals[k])), None)
        if twin is None:
            kept.append(row)
        else:
            reasons[row] = f"the same as {chunk.ids[twin]}, which ranks better"
    return reasons


def _ordered(chunk: Chunk, score: Score, reasons: Reasons) -> list[int]:
    """Return the rows that a ranking keeps, the best first; say of the others why not."""
    rows = np.array([row for row in range(len(chunk)) if row not in reasons], dtype=np.int64)
    table = np.stack([chunk.columns[name][rows] for name in score.columns], axis=1)
    ids, formulas = [chunk.ids[row] for row in rows], [chunk.columns["formula"][row] for row in rows]
    chosen = select(lambda: [Scored(0, rows, ids, formulas, table)], score.settings.keep)
    kept = [entry.place[1] for entry in chosen.kept]
    last = chosen.kept[-1] if chosen.kept else None
    for row in set(rows.tolist()).difference(kept):
        reasons[row] = _too_low(score.shown(chunk.columns, row), len(kept), last, score)
    return kept
