"""Labels: columns of records turned into numbers by target, checked by id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cgnn.data.items import SetAside, Value
from cgnn.data.store import GraphStore
from cgnn.data.store.chunks import ABSENT, BOOLEAN, MISSING, NUMBER, Column
from cgnn.errors import DataError, unknown
from cgnn.targets import TRANSFORMS, Target

PLAUSIBLE: dict[str, tuple[float, float]] = {
    "GPa": (0.01, 2000.0),
    "eV/atom": (-12.0, 12.0),
    "eV": (-20.0, 20.0),
}
"""Unit -> range outside of which a value is more likely a slip of the unit."""


@dataclass(frozen=True)
class Labels:
    """Labels of all crystals of a store.

    Args:
        ids: Id of every row of the store.
        rows: The rows with at least one usable label.
        values: Target name -> labels of all rows (n,), or of all atoms for an atom-level target; ``nan`` =
            unknown.
        set_aside: Rows without a usable label.
        warnings: What looks like a mistake but may be none.
    """

    ids: list[str]
    rows: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]
    set_aside: list[SetAside]
    warnings: list[str]

    def with_unlabelled(self) -> Labels:
        """Return the same with the rows that have no label at all; those with a bad one stay aside."""
        bare = {aside.material_id for aside in self.set_aside if aside.code == "no_label"}
        found = [row for row, material_id in enumerate(self.ids) if material_id in bare]
        kept = [aside for aside in self.set_aside if aside.material_id not in bare]
        return replace(self, rows=np.union1d(self.rows, np.array(found, dtype=np.int64)), set_aside=kept)


def read_labels(store: GraphStore, targets: Sequence[Target]) -> Labels:
    """Return the labels of a store's crystals.

    Raises:
        DataError: A target's column does not exist, or no crystal has a usable label.
    """
    _check_columns(targets, store.columns)
    values, is_read = _from_columns(store, targets)
    has_label = np.zeros(len(store), dtype=bool)
    for target in targets:
        if target.level == "crystal":
            has_label |= ~np.isnan(values[target.name])
    ids = store.ids()
    aside = _from_records(store, targets, np.flatnonzero(~is_read), values, has_label)
    missing = np.flatnonzero(is_read & ~has_label).tolist()
    if missing:
        sources, reason = store.sources(), _no_value(targets)
        for row in missing:
            aside[row] = SetAside(ids[row], sources[row], "label", "no_label", reason)
    if not has_label.any():
        raise DataError(f"no crystal has a usable label; the first: {aside[0].reason}")
    set_aside = [aside[row] for row in sorted(aside)]
    labels = Labels(ids, np.flatnonzero(has_label), values, set_aside, [])
    labels.warnings.extend(_advice(targets, labels))
    return labels


def _from_columns(
    store: GraphStore, targets: Sequence[Target]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_]]:
    """Return the labels that columns of numbers tell, and in which rows they tell all there is."""
    sizes = {"crystal": len(store), "atom": store.num_atoms}
    values = {target.name: np.full(sizes[target.level], np.nan) for target in targets}
    is_read = np.ones(len(store), dtype=bool)
    for target in targets:
        column = store.column(target.source)
        if column is None:
            is_read[:] = False
            continue
        is_known = _is_plain(target, column)
        is_read &= is_known | (column.kinds == ABSENT) | (column.kinds == MISSING)
        if target.level == "crystal":
            values[target.name][is_known] = column.values[is_known]
    return values, is_read


def _is_plain(target: Target, column: Column) -> NDArray[np.bool_]:
    """Return where an entry of a column is the label itself, as `Target.encode` would say of it."""
    number = column.kinds == NUMBER
    if target.level == "atom" or target.task == "multiclass":
        return np.zeros(len(number), dtype=bool)
    if target.task == "binary":
        return (column.kinds == BOOLEAN) | (number & ((column.values == 0) | (column.values == 1)))
    return number & (np.abs(column.values) < 1e30) & (column.values > TRANSFORMS[target.transform].lower)


def _from_records(
    store: GraphStore,
    targets: Sequence[Target],
    rows: NDArray[np.int64],
    values: dict[str, NDArray[np.float64]],
    has_label: NDArray[np.bool_],
) -> dict[int, SetAside]:
    """Read the labels of some rows one by one, and return why some of them have none."""
    aside: dict[int, SetAside] = {}
    if not len(rows):
        return aside
    atom_ptr = store.arrays["atom_ptr"]
    for row in rows.tolist():
        material_id, source, record = store.record(row)
        atoms = slice(int(atom_ptr[row]), int(atom_ptr[row + 1]))
        places = {target.name: slice(row, row + 1) if target.level == "crystal" else atoms for target in targets}
        has_label[row] = False
        try:
            found = {target.name: label_of(target, record, atoms.stop - atoms.start) for target in targets}
        except DataError as error:
            aside[row] = SetAside(material_id, source, "label", "bad_label", str(error))
            found = dict.fromkeys(values, np.array(np.nan))
        else:
            has_label[row] = not all(np.isnan(label).all() for label in found.values())
            if not has_label[row]:
                aside[row] = SetAside(material_id, source, "label", "no_label", _no_value(targets))
        for name, label in found.items():
            values[name][places[name]] = label
    return aside


def _no_value(targets: Sequence[Target]) -> str:
    return f"no value of {', '.join(target.source for target in targets)}"


def label_of(target: Target, values: dict[str, Value], atoms: int) -> NDArray[np.float64]:
    """Return a crystal's label (1,), or one per atom (N,); ``nan`` = unknown.

    Raises:
        DataError: The value is not of the target's kind; names the column.
    """
    value = values.get(target.source)
    try:
        if target.level == "atom":
            if value is None:
                return np.full(atoms, np.nan)
            if not isinstance(value, list) or len(value) != atoms:
                raise DataError(f"expected a list of {atoms} values, one per atom")
            return np.array([target.encode(entry) for entry in value])
        if isinstance(value, list):
            raise DataError(f"{value!r} is a list, expected one value")
        return np.array([target.encode(value)])
    except DataError as error:
        raise DataError(f"column {target.source!r}: {error}") from None


def _check_columns(targets: Sequence[Target], columns: Sequence[str]) -> None:
    for target in targets:
        if target.source not in columns:
            raise DataError(f"target {target.name!r}: {unknown(target.source, sorted(columns), 'column')}")


def _advice(targets: Sequence[Target], labels: Labels) -> Iterator[str]:
    for target in targets:
        known = labels.values[target.name]
        known = known[np.isfinite(known)]
        if target.task != "regression" or not len(known):
            continue
        yield from _unit_slips(target, labels)
        low, high = np.quantile(known, [0.05, 0.95])
        if target.transform == "none" and known.min() > 0 and high > 10 * low:
            yield (
                f"target {target.name!r} is positive and spans {low:.3g} to {high:.3g} {target.unit}: "
                "'transform: log10' usually learns it much better"
            )
        if np.ptp(known) == 0:
            yield f"target {target.name!r} has the same value for all crystals: there is nothing to learn"


def _unit_slips(target: Target, labels: Labels) -> Iterator[str]:
    if target.unit not in PLAUSIBLE or target.level != "crystal":
        return
    low, high = PLAUSIBLE[target.unit]
    values = labels.values[target.name]
    odd = np.flatnonzero((values < low) | (values > high))
    if len(odd):
        first = ", ".join(f"{labels.ids[row]} ({values[row]:.4g})" for row in odd[:5])
        yield (
            f"target {target.name!r}: {len(odd)} values lie outside {low:g} to {high:g} {target.unit}, "
            f"perhaps in another unit: {first}"
        )
