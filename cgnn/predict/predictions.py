"""What a model says of several crystals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cgnn.data.records import SetAside
from cgnn.errors import DataError
from cgnn.predict.forward import SEPARATOR
from cgnn.train.trust.confidence import Confidence

if TYPE_CHECKING:
    import pandas as pd


_NOTHING: dict[str, Any] = {"value": [], "variance_between": [], "scale_within": []}


@dataclass
class Predictions:
    """Predictions of several crystals, in the order in which they were given.

    Args:
        ids: Their ids (n,).
        columns: Column name -> values (n,); for atom-level targets a list of arrays (N,).
        units: Column name -> unit.
        flags: What to know about each crystal before believing its row, ``""`` for nothing (n,); several stand
            one after another with `SEPARATOR` between them.
        set_aside: Crystals that can't be predicted, and why.
        learned: Name of a regression target -> ``value``, ``variance_between`` and ``scale_within`` on its learned
            scale (n,); for atom-level targets lists of arrays (N,).
        confidence: What the model knows of its errors.
    """

    ids: list[str] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    learned: dict[str, dict[str, Any]] = field(default_factory=dict)
    confidence: Confidence | None = None

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
                for single in filter(None, flag.split(SEPARATOR)):
                    found.setdefault(single, []).append(material_id)
        return found

    def flat(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Return ``learned`` of the calibrated targets with one entry per label: per crystal, or per atom."""
        names = [target.name for target in self.confidence.targets] if self.confidence and len(self) else []
        return {
            name: {key: np.concatenate(v) if isinstance(v, list) else v for key, v in self.learned[name].items()}
            for name in names
        }

    def draws(self, number: int, seed: int = 0) -> dict[str, NDArray[np.float64]]:
        """Draw values of all calibrated targets together, so that what is computed from them carries their error.

        They are normal on the learned scale, with the correlation that the errors of the targets had on the crystals
        of the calibration. Targets of atoms are left out.

        Args:
            number: How many draws of each crystal.
            seed: The same seed gives the same draws.

        Returns:
            By target name, values in its unit (n, number); column i of all targets is one joint draw.

        Raises:
            DataError: The model is not calibrated.
        """
        if self.confidence is None or not any(target.level == "crystal" for target in self.confidence.targets):
            raise DataError("no draws: the model has no calibrated targets of whole crystals")
        learned = self.learned if len(self) else {t.name: _NOTHING for t in self.confidence.targets}
        return self.confidence.draws(learned, number, seed)

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


def joined(
    pieces: Iterable[Predictions], units: Mapping[str, str], confidence: Confidence | None = None
) -> Predictions:
    """Return several predictions of one model as one."""
    parts = list(pieces)
    full = [part for part in parts if len(part)]
    names = full[0].learned if full else ()
    return Predictions(
        ids=[entry for part in full for entry in part.ids],
        columns=joined_columns([part.columns for part in full]),
        units=dict(units),
        flags=[entry for part in full for entry in part.flags],
        set_aside=[entry for part in parts for entry in part.set_aside],
        learned={name: joined_columns([part.learned[name] for part in full]) for name in names},
        confidence=confidence,
    )


def joined_columns(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return columns one after another; arrays are joined, lists of arrays chained."""
    columns: dict[str, Any] = {}
    for name in parts[0] if parts else ():
        values = [part[name] for part in parts]
        columns[name] = list(chain(*values)) if isinstance(values[0], list) else np.concatenate(values)
    return columns
