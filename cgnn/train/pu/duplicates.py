"""Unlabelled crystals that are a positive under another id, or share its formula."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from cgnn.data.summary import CrystalSummary, duplicate_groups, reduced_formula
from cgnn.data.tables import TableWriter

SAME_CRYSTAL, SAME_FORMULA = "same_crystal", "same_formula"


class Duplicate(NamedTuple):
    """An unlabelled crystal like a positive.

    Args:
        material_id: Its id.
        kind: ``same_crystal`` (formula, volume per atom and nearest distances agree) or ``same_formula`` (a polymorph).
        positive: The first of the positives that it is like.
        formula: Their reduced formula.
    """

    material_id: str
    kind: str
    positive: str
    formula: str


def find_duplicates(crystals: Sequence[CrystalSummary], positives: Collection[str]) -> list[Duplicate]:
    """Return the unlabelled crystals that are like a positive, by id; the stronger kind counts."""
    positive = frozenset(positives)
    formulas = {crystal.material_id: reduced_formula(crystal) for crystal in crystals}
    by_formula: dict[str, str] = {}
    for name in sorted(positive):
        by_formula.setdefault(formulas[name], name)
    same = {
        name: min(known)
        for group in duplicate_groups(crystals)
        if (known := positive.intersection(group))
        for name in group
    }
    found = []
    for name in sorted(formulas.keys() - positive):
        formula = formulas[name]
        if name in same:
            found.append(Duplicate(name, SAME_CRYSTAL, same[name], formula))
        elif formula in by_formula:
            found.append(Duplicate(name, SAME_FORMULA, by_formula[formula], formula))
    return found


def write_duplicates(path: Path, duplicates: Sequence[Duplicate]) -> None:
    """Write them as CSV."""
    with TableWriter(path, {}) as table:
        table.add({name: [getattr(entry, name) for entry in duplicates] for name in Duplicate._fields})
