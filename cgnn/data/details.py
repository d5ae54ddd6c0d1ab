"""What only some ways of dividing need to know of crystals: costly to find, so found where a split asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cgnn.config import SplitConfig
from cgnn.data.items import Value
from cgnn.data.prototype import prototype
from cgnn.data.store import GraphStore
from cgnn.data.store.chunks import ABSENT, MISSING, NUMBER
from cgnn.data.summary import CrystalSummary
from cgnn.errors import DataError, unknown
from cgnn.targets import Target

Ints = NDArray[np.int64]


def with_details(
    crystals: Sequence[CrystalSummary], config: SplitConfig, store: GraphStore, rows: Ints, targets: Sequence[Target]
) -> list[CrystalSummary]:
    """Return crystals with what the split's method needs besides (prototype, or a column's value).

    Args:
        crystals: One for each row.
        config: The settings of the split.
        store: Where the crystals lie.
        rows: Their rows there (n,).
        targets: A column may be named by its target.

    Raises:
        DataError: The column does not exist.
    """
    if config.method == "prototype":
        return [
            replace(c, prototype=prototype(store.graph(row))) for c, row in zip(crystals, rows.tolist(), strict=True)
        ]
    if config.method == "column":
        values: Iterable[Value] = _column(store, str(config.column), rows)
    elif config.method == "extrapolation":
        sources = {target.name: target.source for target in targets if target.level == "crystal"}
        values = _column(store, sources.get(str(config.target), str(config.target)), rows)
    else:
        return list(crystals)
    return [replace(crystal, value=value) for crystal, value in zip(crystals, values, strict=True)]


def _column(store: GraphStore, name: str, rows: Ints) -> Iterable[Value]:
    if name not in store.columns:
        raise DataError(f"split: {unknown(name, sorted(store.columns), 'column')}")
    column = store.column(name)
    if column is not None and np.isin(column.kinds[rows], (ABSENT, MISSING, NUMBER)).all():
        return [None if np.isnan(value) else value for value in column.values[rows].tolist()]
    return [store.record(row)[2].get(name) for row in rows.tolist()]
