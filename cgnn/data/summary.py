"""What a split needs to know of crystals, and which of them are the same crystal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import gcd

from cgnn.data.items import Value

SAME = 1e-3
"""Relative difference up to which volume and shells count as equal."""


Group = tuple[str, ...]
"""Ids that stay on one side."""


@dataclass(frozen=True)
class CrystalSummary:
    """What a split needs to know of a crystal.

    Args:
        material_id: Opaque identifier, unique within a data set.
        composition: Element -> count in the cell.
        volume_per_atom: In Å³.
        shells: Positive invariants of the crystal (Å), such as the mean distance of nearest neighbours; up to
            rounding the same in every cell, orientation and order of the sites.
        prototype: Name of the crystal's prototype (`cgnn.data.prototype`), where the split asks for it.
        value: What stands in the column that the split asks for, if it asks for one; None = unknown.
    """

    material_id: str
    composition: dict[str, int]
    volume_per_atom: float
    shells: tuple[float, ...]
    prototype: str | None = None
    value: Value = None


def reduced_formula(crystal: CrystalSummary) -> str:
    """Return the formula with the smallest whole numbers, elements in alphabetical order (``Al1Ni3``)."""
    return "".join(f"{element}{count}" for element, count in reduced_counts(crystal))


def chemical_system(crystal: CrystalSummary) -> str:
    """Return the elements of a crystal in alphabetical order (``Al-Ni``)."""
    return "-".join(element for element, _ in reduced_counts(crystal))


def stoichiometry(crystal: CrystalSummary) -> str:
    """Return the reduced formula without names of elements (``1:3`` for every AB3)."""
    return ":".join(str(count) for count in sorted(count for _, count in reduced_counts(crystal)))


def duplicate_groups(crystals: Sequence[CrystalSummary]) -> list[Group]:
    """Group the same crystal under several ids or in several cells.

    Two crystals of one reduced formula whose volume per atom and shells all agree within a relative `SAME`
    are never parted, nor are those linked through a third. A formula's crystals are sorted by one quantity
    after another and parted where it jumps, until no quantity parts any group: O(n log n) a pass.
    """
    by_formula: dict[tuple[str, int], list[CrystalSummary]] = defaultdict(list)
    for crystal in crystals:
        by_formula[reduced_formula(crystal), len(crystal.shells)].append(crystal)
    groups = [group for same_formula in by_formula.values() for group in _alike(same_formula)]
    return [tuple(sorted(crystal.material_id for crystal in group)) for group in groups]


def namesakes(ids: Iterable[str]) -> list[Group]:
    """Group what several files call by one id: ``ID`` and ``ID@FILE`` (`cgnn.data.merge`); only groups of several."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in ids:
        groups[name.rpartition("@")[0] or name].append(name)
    return [tuple(sorted(group)) for group in groups.values() if len(group) > 1]


def _alike(crystals: list[CrystalSummary]) -> list[list[CrystalSummary]]:
    groups, before = [crystals], 0
    while len(groups) > before:
        before = len(groups)
        for quantity in range(1 + len(crystals[0].shells)):
            groups = [piece for group in groups for piece in _part_at_jumps(group, quantity)]
    return groups


def _part_at_jumps(crystals: list[CrystalSummary], quantity: int) -> list[list[CrystalSummary]]:
    def value(crystal: CrystalSummary) -> float:
        return (crystal.volume_per_atom, *crystal.shells)[quantity]

    ordered = sorted(crystals, key=value)
    pieces = [[ordered[0]]]
    for lower, upper in pairwise(ordered):
        if value(upper) > value(lower) * (1 + SAME):
            pieces.append([])
        pieces[-1].append(upper)
    return pieces


def reduced_counts(crystal: CrystalSummary) -> list[tuple[str, int]]:
    """Return the elements in alphabetical order with the smallest whole numbers."""
    present = sorted((element, count) for element, count in crystal.composition.items() if count)
    divisor = reduce(gcd, (count for _, count in present), 0)
    return [(element, count // divisor) for element, count in present]
