"""Labels: columns of records turned into numbers by target, checked by id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cgnn.data.records import SetAside, Value
from cgnn.data.store import GraphStore
from cgnn.errors import DataError, unknown
from cgnn.targets import Target

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


def read_labels(store: GraphStore, targets: Sequence[Target]) -> Labels:
    """Return the labels of a store's crystals.

    Raises:
        DataError: A target's column does not exist, or no crystal has a usable label.
    """
    atom_ptr = store.arrays["atom_ptr"]
    sizes = {"crystal": len(store), "atom": int(atom_ptr[-1])}
    values = {target.name: np.full(sizes[target.level], np.nan) for target in targets}
    ids, rows, set_aside = [], [], []
    columns: set[str] = set()
    for row in range(len(store)):
        material_id, source, record = store.record(row)
        ids.append(material_id)
        columns.update(record)
        try:
            atoms = slice(int(atom_ptr[row]), int(atom_ptr[row + 1]))
            found = {target.name: label_of(target, record, atoms.stop - atoms.start) for target in targets}
        except DataError as error:
            set_aside.append(SetAside(material_id, source, "label", "bad_label", str(error)))
            continue
        if all(np.isnan(label).all() for label in found.values()):
            wanted = ", ".join(target.source for target in targets)
            set_aside.append(SetAside(material_id, source, "label", "no_label", f"no value of {wanted}"))
            continue
        rows.append(row)
        for target in targets:
            place = slice(row, row + 1) if target.level == "crystal" else atoms
            values[target.name][place] = found[target.name]
    _check_columns(targets, columns, store)
    if not rows:
        raise DataError(f"no crystal has a usable label; the first: {set_aside[0].reason}")
    found_labels = Labels(ids, np.array(rows), values, set_aside, [])
    found_labels.warnings.extend(_advice(targets, found_labels))
    return found_labels


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


def _check_columns(targets: Sequence[Target], columns: set[str], store: GraphStore) -> None:
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
