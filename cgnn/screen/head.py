"""The first stages of a screen, up to the first ranking: what a worker does with a block of crystals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cgnn.data.items import Block, Record, SetAside
from cgnn.graph.crystal import Crystal
from cgnn.screen.chunk import Chunk, Columns, Known, chunk_of
from cgnn.screen.rules import NUMBER
from cgnn.screen.settings import READ
from cgnn.screen.stages import Step


@dataclass
class Sifted:
    """What became of a block: all its crystals, in their order.

    Args:
        ids: Their ids.
        sources: Where they came from.
        digests: Digests of their records; empty where none could be read.
        stages: Stage at which each was dropped, ``""`` for those that go on.
        reasons: Why.
        flags: What to know of each.
        columns: Name -> values, unknown (``nan``, ``""``) from where a crystal was dropped.
        crystals: The crystals that go on; None for the others.
    """

    ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    columns: Columns = field(default_factory=dict)
    crystals: list[Crystal | None] = field(default_factory=list)

    def drop(self, row: int, stage: str, reason: str) -> None:
        """Note that a crystal goes no further."""
        self.stages[row], self.reasons[row], self.crystals[row] = stage, reason, None


class Head:
    """Reads a block and leads its crystals through the first stages.

    Args:
        steps: What is done with them.
        known: What is known of the columns after all of them.
        inputs: Name -> column of the input that is taken along.
    """

    def __init__(self, steps: Sequence[Step], known: Known, inputs: Mapping[str, str]) -> None:
        self.steps = tuple(steps)
        self.known = known
        self.inputs = dict(inputs)

    def __call__(self, block: Block) -> Sifted:
        """Return what became of the crystals of a block."""
        items = block.items()
        found = _begun(items, self.known)
        records = [(row, item) for row, item in enumerate(items) if isinstance(item, Record)]
        chunk, bad = chunk_of([record for _, record in records], [row for row, _ in records], self.inputs)
        for row, reason in bad.items():
            found.drop(int(chunk.rows[row]), READ, reason)
        chunk = chunk.without(bad)
        _place(chunk, found)
        for step in self.steps:
            if not len(chunk):
                break
            reasons = step.apply(chunk)
            _place(chunk, found)
            for row, reason in reasons.items():
                found.drop(int(chunk.rows[row]), step.name, reason)
            chunk = chunk.without(reasons)
        return found

    def join(self, parts: Sequence[Sifted]) -> Sifted:
        """Return the result of a block of those of its parts: a resumed screen counts blocks by their results."""
        whole = Sifted()
        for name in ("ids", "sources", "digests", "stages", "reasons", "flags", "crystals"):
            setattr(whole, name, [entry for part in parts for entry in getattr(part, name)])
        names = parts[0].columns
        whole.columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in names}
        return whole


def _begun(items: Sequence[Any], known: Known) -> Sifted:
    found = Sifted()
    for item in items:
        aside = isinstance(item, SetAside)
        found.ids.append(item.material_id)
        found.sources.append(item.source)
        found.digests.append(b"" if aside else item.digest)
        found.stages.append(READ if aside else "")
        found.reasons.append(item.reason if aside else "")
        found.flags.append("")
        found.crystals.append(None if aside else item.crystal)
    found.columns = {
        name: np.full(len(items), np.nan) if kind == NUMBER else np.full(len(items), "", dtype=object)
        for name, kind in known.kinds.items()
    }
    return found


def _place(chunk: Chunk, found: Sifted) -> None:
    """Write what is known of a chunk's crystals where they stand in the block."""
    for name, values in chunk.columns.items():
        found.columns[name][chunk.rows] = values
    for row, flag in zip(chunk.rows.tolist(), chunk.flags, strict=True):
        found.flags[row] = flag
