"""What a model knows of its own errors: it is learned at the end of a training and travels in the model file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cgnn.errors import CheckpointError
from cgnn.targets import Target
from cgnn.train.trust.calibration import FEWEST, LEVEL, Calibration, interval, std
from cgnn.train.trust.draws import Correlation, draws
from cgnn.train.trust.novelty import Novelty
from cgnn.train.trust.reliability import reliability

Array = NDArray[np.float64]
Learned = Mapping[str, ArrayLike]
"""``value``, ``variance_between`` and ``scale_within`` (n,) of a regression target (`cgnn.model.members.Learned`)."""

PART = "val"
"""The part of the crystals on which a model is calibrated. The best epoch was chosen on it too, which flatters a
little; the training part would flatter much more, and the test part is for the scores."""


@dataclass(frozen=True)
class Confidence:
    """Calibrations of the regression targets, the correlation of their errors, and the distance from training.

    Args:
        targets: Regression targets that are calibrated; the others had too few labels in the validation part.
        calibrations: By name of these targets.
        correlation: Of the errors of those that belong to whole crystals.
        novelty: Distance from training; None where training crystals were too few.
    """

    targets: tuple[Target, ...]
    calibrations: dict[str, Calibration]
    correlation: Correlation
    novelty: Novelty | None

    @classmethod
    def fit(
        cls,
        targets: Sequence[Target],
        learned: Mapping[str, Learned],
        truth: Mapping[str, ArrayLike],
        features: ArrayLike,
        seed: int = 0,
    ) -> Confidence:
        """Learn it from crystals that were not trained on, and from the features of those that were.

        Args:
            targets: All targets of the model.
            learned: By name of the regression targets, predictions of the validation part.
            truth: By target name, its labels in the target's unit (n,), ``nan`` = unknown.
            features: What the heads of the first member see of training crystals (m, F).
            seed: Of `Novelty.fit`.
        """
        usable = tuple(t for t in targets if t.name in learned and np.isfinite(truth[t.name]).sum() >= FEWEST)
        calibrations = {
            t.name: Calibration.fit(
                t,
                learned[t.name]["value"],
                learned[t.name]["variance_between"],
                learned[t.name]["scale_within"],
                truth[t.name],
            )
            for t in usable
        }
        fitted = cls(usable, calibrations, Correlation.fit({}), None)
        residuals = {
            t.name: (t.to_learned(truth[t.name]) - np.asarray(learned[t.name]["value"]))
            / fitted.sigma(t.name, learned[t.name])
            for t in usable
            if t.level == "crystal"
        }
        return cls(usable, calibrations, Correlation.fit(residuals), Novelty.fit(features, seed))

    def sigma(self, name: str, learned: Learned) -> Array:
        """Return calibrated standard deviations of a target on its learned scale (n,)."""
        return self.calibrations[name].sigma(learned["variance_between"], learned["scale_within"])

    def columns(self, target: Target, learned: Learned) -> dict[str, Array]:
        """Return the columns beside a target's own: standard deviation and 90 % interval in its unit, each (n,).

        Args:
            target: Any target; there are none beside one that is not calibrated.
            learned: Its predictions on the learned scale.
        """
        if target.name not in self.calibrations:
            return {}
        sigma = self.sigma(target.name, learned)
        lower, upper = interval(target, learned["value"], sigma, self.calibrations[target.name].half_width(LEVEL))
        spread = std(target, learned["value"], sigma)
        return {f"{target.name}_std": spread, f"{target.name}_lower": lower, f"{target.name}_upper": upper}

    def scores(self, name: str, truth: ArrayLike, learned: Learned) -> dict[str, float]:
        """Return how true the stated errors of a calibrated target are (`cgnn.train.trust.reliability.reliability`)."""
        (target,) = (target for target in self.targets if target.name == name)
        return reliability(target, truth, learned["value"], self.sigma(name, learned), self.calibrations[name])

    def units(self) -> dict[str, str]:
        """Return the units of all columns that `columns` gives."""
        return {f"{t.name}{ending}": t.unit for t in self.targets for ending in ("_std", "_lower", "_upper")}

    def draws(self, learned: Mapping[str, Learned], number: int, seed: int = 0) -> dict[str, Array]:
        """Return joint draws (n, number) in the target's unit, by name of calibrated targets of whole crystals."""
        targets = [target for target in self.targets if target.level == "crystal"]
        value = {target.name: learned[target.name]["value"] for target in targets}
        sigma = {target.name: self.sigma(target.name, learned[target.name]) for target in targets}
        return draws(targets, value, sigma, self.correlation, number, seed)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the JSON part of a model file; empty where nothing is calibrated."""
        if not self.targets:
            return {}
        calibrations = {name: calibration.to_dict() for name, calibration in self.calibrations.items()}
        return {"part": PART, "targets": calibrations, "correlation": self.correlation.to_dict()}

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a model file holds beside the weights."""
        return self.novelty.to_tensors() if self.novelty else {}

    @classmethod
    def from_stored(
        cls, values: Any, tensors: Mapping[str, Tensor], targets: Sequence[Target], width: int
    ) -> Confidence:
        """Return what `to_dict` and `to_tensors` described.

        Args:
            values: Of a model file.
            tensors: Likewise.
            targets: All targets of the model.
            width: Features of its network.

        Raises:
            CheckpointError: They do not belong to such a model, or hold what no calibration has.
        """
        novelty = Novelty.from_tensors(tensors, width)
        if values == {}:
            return cls((), {}, Correlation.fit({}), novelty)
        if not isinstance(values, Mapping) or set(values) != {"part", "targets", "correlation"}:
            raise CheckpointError(f"calibration: expected part, targets, correlation, got {values!r:.100}")
        if values["part"] != PART or not isinstance(values["targets"], Mapping):
            raise CheckpointError(f"calibration: expected targets of part {PART!r}, got {values!r:.100}")
        known = tuple(t for t in targets if t.name in values["targets"] and t.task == "regression")
        correlation = Correlation.from_dict(values["correlation"])
        crystals = {target.name for target in known if target.level == "crystal"}
        if len(known) != len(values["targets"]) or crystals != set(correlation.names):
            raise CheckpointError(f"calibration: not of this model's targets: {', '.join(map(str, values['targets']))}")
        calibrations = {target.name: Calibration.from_dict(values["targets"][target.name]) for target in known}
        return cls(known, calibrations, correlation, novelty)
