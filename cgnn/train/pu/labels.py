"""Which crystals are positive, and of which nothing is known: from the columns that exports have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cgnn.config import Config, PUConfig
from cgnn.data.dataset import CrystalDataset
from cgnn.data.items import SetAside, Value
from cgnn.data.labels import Labels
from cgnn.data.prepare import Watch, prepare
from cgnn.data.reading.documents import is_icsd
from cgnn.data.store import GraphStore
from cgnn.data.store.chunks import MISSING, NUMBER, ODD, Column
from cgnn.errors import ConfigError, DataError, choose, unknown
from cgnn.targets import Target
from cgnn.train.described import describe

_TRUE = {"true": True, "1": True, "false": False, "0": False}
_WORDS = _TRUE | {"positive": True, "unlabelled": False, "unlabeled": False, "-1": False}
_NOTHING = ("", "[]", "()", "{}", "nan", "none", "null", "<na>")
"""What stands for no entry where somebody wrote it as text."""


def _word(value: Value, words: dict[str, bool]) -> bool:
    text = str(value).strip().lower()
    if isinstance(value, float) and value.is_integer():
        text = str(int(value))
    return words[text]


def _theoretical(value: Value) -> bool | None:
    return None if _is_nothing(value) else not _word(value, _TRUE)


def _icsd(value: Value) -> bool | None:
    if isinstance(value, list):
        raise DataError("lists of ICSD ids were prepared by an older cgnn, which lost some; prepare the crystals again")
    if isinstance(value, bool):
        raise KeyError(value)
    return not _is_nothing(value)


def _explicit(value: Value) -> bool | None:
    return None if _is_nothing(value) else _word(value, _WORDS)


def _is_nothing(value: Value) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _NOTHING
    return value is None or value == [] or (isinstance(value, float) and math.isnan(value))


@dataclass(frozen=True)
class Kind:
    """A way in which a column tells what is positive.

    Args:
        read: Entry of the column -> whether the crystal is positive; None where that is not told. A KeyError means
            that the entry is no label.
        expected: What the entries must be, for people.
    """

    read: Callable[[Value], bool | None]
    expected: str


LABELS: dict[str, Kind] = {
    "theoretical": Kind(_theoretical, "true (unlabelled) or false (positive)"),
    "icsd": Kind(_icsd, "ICSD ids (positive) or nothing (unlabelled)"),
    "explicit": Kind(_explicit, "1, true, positive or 0, -1, false, unlabelled"),
}
"""How a column tells what is positive. ``theoretical`` is the flag of the Materials Project, ``icsd`` its lists of ids
(``database_IDs.icsd``), ``explicit`` any column of the user's own."""


def kind_of(pu: PUConfig) -> str:
    """Return the entry of `LABELS` that the settings ask for, or that the column's name tells."""
    if pu.labels != "auto":
        return pu.labels
    last = pu.column.rpartition(".")[2].lower()
    return "theoretical" if last == "theoretical" else "icsd" if is_icsd(pu.column) else "explicit"


@dataclass(frozen=True)
class Opening:
    """Opens the crystals of a run with 1 for positive and 0 for unlabelled as their labels.

    It can be pickled, so that other processes see the same.

    Args:
        pu: How the labels are told.
        described: File of the descriptors of the crystals, made once for all bags; None where each batch makes its own.
    """

    pu: PUConfig
    described: Path | None = None

    def __call__(self, config: Config, watch: Watch | None = None) -> CrystalDataset:
        """Return the crystals.

        Raises:
            ConfigError: There is no data file, or the settings do not ask for one yes-or-no target of crystals.
            DataError: The column does not exist, holds what are no labels, or tells one class only.
        """
        target = pu_target(config)
        if not config.data.path:
            raise ConfigError("data.path: not set; give the file, for example -o data.path=export.json.gz")
        store = prepare(config.data, config.graph, watch)
        labels = read_pu_labels(store, self.pu, target)
        labels.values[target.name][later_rows(store, self.pu, labels.values[target.name])] = 0.0
        dataset = CrystalDataset(store, (target,), labels=labels)
        if self.described is not None:
            describe(dataset, config, self.described)
        return dataset


def pu_target(config: Config) -> Target:
    """Return the one target of classifiers of positive and unlabelled crystals.

    Raises:
        ConfigError: There are others, or it is not a yes-or-no target of crystals.
    """
    if len(config.targets) != 1 or (config.targets[0].task, config.targets[0].level) != ("binary", "crystal"):
        raise ConfigError(
            "targets: learning from positive and unlabelled crystals has one target of crystals with task 'binary', "
            "such as {name: synthesizable, task: binary}; its labels are those of pu.column"
        )
    return config.targets[0]


def read_pu_labels(store: GraphStore, pu: PUConfig, target: Target) -> Labels:
    """Return the labels of a store's crystals: 1 for positive, 0 for unlabelled; crystals without one are set aside.

    Raises:
        ConfigError: There is no such kind of labels.
        DataError: The column does not exist, holds what are no labels, or tells one class only.
    """
    kind = choose(LABELS, kind_of(pu), "kind of labels")
    ids, where = store.ids(), f"pu.column {pu.column!r}"
    found: list[bool | None] = []
    bad: list[tuple[str, Value]] = []
    for material_id, value in zip(ids, column_values(store, pu.column, "pu.column"), strict=True):
        try:
            found.append(kind.read(value))
        except KeyError:
            bad.append((material_id, value))
            found.append(None)
    if bad:
        first = ", ".join(f"{name} is {str(value)[:40]!r}" for name, value in bad[:3])
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DataError(f"{where}: expected {kind.expected} (pu.labels: {kind_of(pu)}), but {first}{more}")
    values = np.array([np.nan if value is None else float(value) for value in found])
    _check_classes(values, where, kind)
    missing = np.flatnonzero(np.isnan(values)).tolist()
    sources = store.sources() if missing else []
    reason = f"no value of {pu.column}"
    aside = [SetAside(ids[row], sources[row], "label", "no_label", reason) for row in missing]
    return Labels(ids, np.flatnonzero(~np.isnan(values)), {target.name: values}, aside, [])


def later_rows(store: GraphStore, pu: PUConfig, positive: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the rows of positives that became known later (``pu.later``); none where no column is named.

    Args:
        store: The crystals.
        pu: The settings.
        positive: 1 for positive, 0 for unlabelled, of each row (n,).

    Raises:
        DataError: The column does not exist, holds anything else than yes or no, or leaves no positive.
    """
    if pu.later is None:
        return np.array([], dtype=np.int64)
    ids, rows = store.ids(), []
    for row, value in enumerate(column_values(store, pu.later, "pu.later")):
        try:
            is_later = not _is_nothing(value) and _word(value, _TRUE)
        except KeyError:
            raise DataError(
                f"pu.later {pu.later!r}: expected true or false, but {ids[row]} is {str(value)[:40]!r}"
            ) from None
        if is_later and positive[row] == 1:
            rows.append(row)
    if len(rows) == np.count_nonzero(positive == 1):
        raise DataError(f"pu.later {pu.later!r}: all positives became known later; none is left to learn from")
    return np.array(rows, dtype=np.int64)


def later_ids(store: GraphStore, pu: PUConfig, target: Target) -> list[str]:
    """Return the ids of positives that became known later, which count as unlabelled."""
    if pu.later is None:
        return []
    positive, ids = read_pu_labels(store, pu, target).values[target.name], store.ids()
    return [ids[row] for row in later_rows(store, pu, positive).tolist()]


def column_values(store: GraphStore, name: str, setting: str) -> Sequence[Value]:
    """Return the entries of a column of a store; None where there is none.

    Raises:
        DataError: There is no such column.
    """
    if name not in store.columns:
        raise DataError(f"{setting}: {unknown(name, sorted(store.columns), 'column')}")
    column = store.column(name)
    if column is None:  # one of very many columns: only the records hold it
        return [store.record(row)[2].get(name) for row in range(len(store))]
    values: list[Value] = [None if kind <= MISSING else value for kind, value in zip(*_lists(column), strict=True)]
    for row in np.flatnonzero(column.kinds > NUMBER).tolist():
        is_odd = column.kinds[row] == ODD
        values[row] = store.record(row)[2].get(name) if is_odd else bool(column.values[row])
    return values


def _lists(column: Column) -> tuple[list[int], list[float]]:
    return column.kinds.tolist(), column.values.tolist()


def _check_classes(values: NDArray[np.float64], where: str, kind: Kind) -> None:
    known = values[~np.isnan(values)]
    if not len(known):
        raise DataError(f"{where}: no crystal has a label; expected {kind.expected}")
    if known.min() == known.max():
        only = "positive" if known[0] else "unlabelled"
        raise DataError(f"{where}: all {len(known)} crystals are {only}; expected both: {kind.expected}")
