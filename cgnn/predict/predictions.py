"""What a model says of several crystals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from cgnn.data.records import SetAside

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Predictions:
    """Predictions of several crystals, in the order in which they were given.

    Args:
        ids: Their ids (n,).
        columns: Column name -> values (n,); for atom-level targets a list of arrays (N,).
        units: Column name -> unit.
        flags: What to know about each crystal before believing its row, ``""`` for nothing (n,).
        set_aside: Crystals that can't be predicted, and why.
    """

    ids: list[str] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, column: str) -> Any:
        return self.columns[column]

    def table(self) -> dict[str, Any]:
        """Return the columns of a table: ``material_id``, the predictions, ``flags``."""
        return {"material_id": self.ids, **self.columns, "flags": self.flags}

    def flagged(self) -> dict[str, list[str]]:
        """Return each flag with the ids of the crystals that have it."""
        found: dict[str, list[str]] = {}
        if any(self.flags):
            for material_id, flag in zip(self.ids, self.flags, strict=True):
                if flag:
                    found.setdefault(flag, []).append(material_id)
        return found

    def to_frame(self) -> pd.DataFrame:
        """Return a table with a row per crystal; ``attrs["units"]`` holds the units."""
        import pandas as pd

        frame = pd.DataFrame(self.table())
        frame.attrs["units"] = dict(self.units)
        return frame


@dataclass(frozen=True)
class Evaluation:
    """Scores on crystals with labels.

    Args:
        metrics: Target -> score -> value, physical units, beside the training mean's.
        predictions: One row per scored crystal.
        truth: Target -> labels, as the columns of ``predictions``.
    """

    metrics: dict[str, dict[str, float | int]]
    predictions: Predictions
    truth: dict[str, Any]


def joined(pieces: Iterable[Predictions], units: Mapping[str, str]) -> Predictions:
    """Return several predictions as one."""
    parts = list(pieces)
    full = [part for part in parts if len(part)]
    return Predictions(
        ids=[entry for part in full for entry in part.ids],
        columns=joined_columns([part.columns for part in full]),
        units=dict(units),
        flags=[entry for part in full for entry in part.flags],
        set_aside=[entry for part in parts for entry in part.set_aside],
    )


def joined_columns(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return columns one after another; arrays are joined, lists of arrays chained."""
    columns: dict[str, Any] = {}
    for name in parts[0] if parts else ():
        values = [part[name] for part in parts]
        columns[name] = list(chain(*values)) if isinstance(values[0], list) else np.concatenate(values)
    return columns
