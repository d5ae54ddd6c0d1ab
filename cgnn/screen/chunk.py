"""Crystals on their way through a screen: some at a time, with what is known of them so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgnn.data.items import Record, Value
from cgnn.graph.crystal import Crystal
from cgnn.physics import is_metal
from cgnn.physics.elastic import DALTON
from cgnn.screen.rules import NUMBER, SET, TEXT

Array = NDArray[np.float64]
Columns = dict[str, Any]
Reasons = dict[int, str]
"""Row of a chunk -> why it goes no further."""

_DENSE = DALTON * 1e27  # mass in u and volume in Å³ to g/cm³

OF_CRYSTALS: dict[str, tuple[str, str]] = {
    "formula": (TEXT, ""),
    "chemical_system": (TEXT, ""),
    "elements": (SET, ""),
    "num_atoms": (NUMBER, ""),
    "num_elements": (NUMBER, ""),
    "volume_per_atom": (NUMBER, "Å³"),
    "density": (NUMBER, "g/cm³"),
    "metal": (NUMBER, ""),
}
"""Columns that every crystal has -> kind and unit; ``metal`` is what `cgnn.physics.is_metal` says of it."""
GAP = "band_gap"
"""Column of the input which, above zero, says that a crystal of metallic elements is no metal."""


@dataclass(frozen=True)
class Moduli:
    """How the moduli of crystals are drawn.

    Args:
        bulk: Column of the bulk modulus (GPa).
        shear: Column of the shear modulus (GPa).
        correlation: Of the errors of both logarithms.
        draws: Of each crystal.
    """

    bulk: str
    shear: str
    correlation: float
    draws: int


@dataclass(frozen=True)
class Known:
    """What is known of the columns at a place of a screen, before any crystal is read.

    Args:
        kinds: Column -> kind, as rules want it.
        units: Column -> unit.
        logarithmic: Predicted columns with errors -> whether these are those of the logarithm.
        correlations: Two of these columns -> correlation of their errors.
        moduli: Derived column -> how the moduli that it follows from are drawn; None where their errors are unknown.
    """

    kinds: dict[str, str]
    units: dict[str, str]
    logarithmic: dict[str, bool] = field(default_factory=dict)
    correlations: dict[tuple[str, str], float] = field(default_factory=dict)
    moduli: dict[str, tuple[str, str, Moduli | None]] = field(default_factory=dict)

    @classmethod
    def of_crystals(cls, columns: Mapping[str, str]) -> Known:
        """Return what is known of crystals as read, with columns of the input that are taken along."""
        kinds = {name: kind for name, (kind, _) in OF_CRYSTALS.items()} | dict.fromkeys(columns, NUMBER)
        units = {name: unit for name, (_, unit) in OF_CRYSTALS.items()} | dict.fromkeys(columns, "")
        return cls(kinds, units)

    def without_scores(self, start: str) -> Known:
        """Return the same without the columns whose names start so: those of an earlier ranking."""
        kept = {name: kind for name, kind in self.kinds.items() if not name.startswith(start)}
        return replace(self, kinds=kept, units={name: self.units[name] for name in kept})

    def having(self, units: Mapping[str, str], **more: Any) -> Known:
        """Return the same with further columns of numbers."""
        kinds = self.kinds | dict.fromkeys(units, NUMBER)
        merged = {name: getattr(self, name) | value for name, value in more.items()}
        return replace(self, kinds=kinds, units={**self.units, **units}, **merged)


@dataclass
class Chunk:
    """Some crystals and their columns.

    Args:
        rows: Where each stood in the block it came from (n,).
        ids: Their ids.
        crystals: The crystals.
        columns: Name -> values (n,).
        flags: What to know of each before believing its numbers.
    """

    rows: NDArray[np.int64]
    ids: list[str]
    crystals: list[Crystal]
    columns: Columns
    flags: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def taken(self, rows: Sequence[int] | NDArray[Any]) -> Chunk:
        """Return some of the crystals, in the order given."""
        places = np.asarray(rows, dtype=np.int64)
        columns = {name: values[places] for name, values in self.columns.items()}
        listed = places.tolist()
        return Chunk(
            self.rows[places],
            [self.ids[row] for row in listed],
            [self.crystals[row] for row in listed],
            columns,
            [self.flags[row] for row in listed],
        )

    def without(self, reasons: Reasons) -> Chunk:
        """Return the crystals that go on."""
        return self.taken([row for row in range(len(self)) if row not in reasons]) if reasons else self

    def flag(self, flags: Sequence[str]) -> None:
        """Add to what is to be known of each crystal."""
        self.flags = ["; ".join(filter(None, pair)) for pair in zip(self.flags, flags, strict=True)]


def chunk_of(records: Sequence[Record], rows: Sequence[int], columns: Mapping[str, str]) -> tuple[Chunk, Reasons]:
    """Return records as a chunk, and why some can't go on: text where a number is expected.

    Args:
        records: The crystals.
        rows: Where each stood.
        columns: Name -> column of the input.
    """
    reasons: Reasons = {}
    made: Columns = {
        name: np.array([_number(record, source, row, reasons) for row, record in enumerate(records)], dtype=np.float64)
        for name, source in columns.items()
    }
    made |= _described(records, made.get(GAP))
    chunk = Chunk(
        np.asarray(rows, dtype=np.int64),
        [record.material_id for record in records],
        [record.crystal for record in records],
        made,
        [""] * len(records),
    )
    return chunk, reasons


def _number(record: Record, source: str, row: int, reasons: Reasons) -> float:
    value: Value = record.values.get(source)
    if value is None or value == "":
        return np.nan
    if isinstance(value, bool | int | float):
        return float(value)
    reasons.setdefault(row, f"column {source!r}: expected a number, got {str(value)[:40]!r}")
    return np.nan


def _described(records: Sequence[Record], gaps: Array | None) -> Columns:
    """Return the columns of `OF_CRYSTALS`."""
    size = len(records)
    found: Columns = {
        name: np.empty(size, dtype=object if kind != NUMBER else np.float64) for name, (kind, _) in OF_CRYSTALS.items()
    }
    for row, record in enumerate(records):
        crystal = record.crystal
        symbols, formula, mass = _chemistry(tuple(sorted(Counter(crystal.z.tolist()).items())))
        volume = abs(float(np.linalg.det(crystal.lattice)))
        gap = None if gaps is None else float(gaps[row])
        values = {
            "formula": formula,
            "chemical_system": "-".join(symbols),
            "elements": frozenset(symbols),
            "num_atoms": len(crystal),
            "num_elements": len(symbols),
            "volume_per_atom": volume / len(crystal),
            "density": mass * _DENSE / volume,
            "metal": is_metal(symbols, gap),
        }
        for name, value in values.items():
            found[name][row] = value
    return found


@lru_cache(maxsize=10_000)
def _chemistry(counts: tuple[tuple[int, int], ...]) -> tuple[tuple[str, ...], str, float]:
    """Return the elements in alphabetical order, the reduced formula and the mass (u) of a cell."""
    from pymatgen.core import Composition, Element

    composition = Composition({Element.from_Z(z): count for z, count in counts})
    symbols = sorted(Element.from_Z(z).symbol for z, _ in counts)
    return tuple(symbols), composition.reduced_formula, float(composition.weight)
