"""Scores in physical units, beside what the mean (or commonest class) of the training labels would reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgnn.errors import CheckpointError, DataError
from cgnn.targets import TRANSFORMS, Target

Array = NDArray[np.float64]
Scores = dict[str, float | int]


@dataclass(frozen=True)
class Baseline:
    """What can be predicted without looking at a crystal, learned from the training labels.

    Args:
        value: Mean label in the target's unit, or the index of the commonest class.
        learned: Mean label on the scale on which the target is learned; ``value`` for classes.
    """

    value: float
    learned: float

    @classmethod
    def fit(cls, target: Target, labels: ArrayLike) -> Baseline:
        """Learn the baseline of a target from its training labels (``nan`` = unknown).

        Raises:
            DataError: All labels are unknown.
        """
        known = np.asarray(labels, dtype=np.float64).ravel()
        known = known[np.isfinite(known)]
        if not known.size:
            raise DataError(f"target {target.name!r}: no training crystal has a label")
        if target.task == "regression":
            return cls(float(known.mean()), float(target.to_learned(known).mean()))
        commonest = float(np.bincount(known.astype(np.int64)).argmax())
        return cls(commonest, commonest)

    def to_dict(self) -> dict[str, float]:
        """Return plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Baseline:
        """Return the baseline that `to_dict` described.

        Raises:
            CheckpointError: Other keys, or values that are not finite numbers.
        """
        numbers = [number for number in values.values() if isinstance(number, int | float)]
        if set(values) != {"value", "learned"} or len(numbers) != 2 or not np.isfinite(numbers).all():
            raise CheckpointError(f"baseline: expected numbers 'value' and 'learned', got {dict(values)!r}")
        return cls(float(values["value"]), float(values["learned"]))


def evaluate(
    targets: Sequence[Target],
    truth: Mapping[str, ArrayLike],
    prediction: Mapping[str, ArrayLike],
    baseline: Mapping[str, Baseline],
) -> dict[str, Scores]:
    """Score predictions where the truth is known.

    Args:
        targets: What was predicted.
        truth: By target name, labels (n,) as `Target.encode` gives them; ``nan`` is unknown and left out.
        prediction: By target name: physical values (n,), the probability of class 1 (n,), or the
            probabilities of all classes (n, C). Atom-level targets are flat, one entry per atom.
        baseline: By target name; a target without one gets no ``baseline_`` scores.

    Returns:
        By target name: ``n`` and, in the target's unit, ``mae``, ``rmse``, ``r2``, ``baseline_mae``; the same
        with the transform's name behind (``mae_log10``) on the learned scale; for classes ``accuracy``,
        ``log_loss``, ``baseline_accuracy`` and ``f1``, ``roc_auc`` (binary) or ``f1_macro`` over the classes
        that occur. A score that is not defined (no labels, a constant truth, one class only) is left out.
    """
    return {
        target.name: _evaluate(target, truth[target.name], prediction[target.name], baseline.get(target.name))
        for target in targets
    }


def _evaluate(target: Target, truth: ArrayLike, prediction: ArrayLike, baseline: Baseline | None) -> Scores:
    labels = np.asarray(truth, dtype=np.float64)
    known = np.isfinite(labels)
    labels, guesses = labels[known], np.asarray(prediction, dtype=np.float64)[known]
    scores: Scores = {"n": len(labels)}
    if not len(labels):
        return scores
    if target.task == "regression":
        return scores | _regression(target, labels, guesses, baseline)
    if target.task == "binary":
        return scores | _binary(labels.astype(np.int64), guesses, baseline)
    return scores | _multiclass(labels.astype(np.int64), guesses, baseline)


def _regression(target: Target, truth: Array, prediction: Array, baseline: Baseline | None) -> Scores:
    scores = _errors(truth, prediction, baseline.value if baseline else None)
    if TRANSFORMS[target.transform].keeps_scale:
        return scores
    learned = _errors(
        target.to_learned(truth),
        target.to_learned(_inside(target, prediction)),
        baseline.learned if baseline else None,
    )
    return scores | {f"{name}_{target.transform}": value for name, value in learned.items()}


def _inside(target: Target, prediction: Array) -> Array:
    """Lift predictions below the domain of the transform to its edge: scored as bad, not as ``nan``."""
    if np.isneginf(TRANSFORMS[target.transform].lower):
        return prediction
    return np.maximum(prediction, np.finfo(np.float64).tiny)


def _errors(truth: Array, prediction: Array, mean: float | None) -> Scores:
    r"""Return MAE, RMSE and, with :math:`\bar y` the mean of the truth,

    .. math:: R^2 = 1 - \sum_i (y_i - p_i)^2 / \sum_i (y_i - \bar y)^2.
    """
    error = prediction - truth
    scores: Scores = {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt(np.square(error).mean()))}
    if truth.min() < truth.max():
        scores["r2"] = float(1 - np.square(error).sum() / np.square(truth - truth.mean()).sum())
    if mean is not None:
        scores["baseline_mae"] = float(np.abs(truth - mean).mean())
    return scores


def _binary(truth: NDArray[np.int64], prediction: Array, baseline: Baseline | None) -> Scores:
    from sklearn.metrics import f1_score, roc_auc_score

    called = (prediction >= 0.5).astype(np.int64)
    scores = _classes(truth, np.stack([1 - prediction, prediction], axis=1), called, baseline)
    scores["f1"] = float(f1_score(truth, called, zero_division=0))
    if truth.min() < truth.max():
        scores["roc_auc"] = float(roc_auc_score(truth, prediction))
    return scores


def _multiclass(truth: NDArray[np.int64], prediction: Array, baseline: Baseline | None) -> Scores:
    from sklearn.metrics import f1_score

    called = prediction.argmax(axis=1)
    scores = _classes(truth, prediction, called, baseline)
    scores["f1_macro"] = float(f1_score(truth, called, average="macro", zero_division=0))
    return scores


def _classes(
    truth: NDArray[np.int64], probabilities: Array, called: NDArray[np.int64], baseline: Baseline | None
) -> Scores:
    right = probabilities[np.arange(len(truth)), truth]
    least = np.finfo(np.float64).eps  # a certain but wrong answer costs much, not infinitely much
    scores: Scores = {
        "accuracy": float((called == truth).mean()),
        "log_loss": float(-np.log(np.clip(right, least, 1)).mean()),
    }
    if baseline is not None:
        scores["baseline_accuracy"] = float((truth == int(baseline.value)).mean())
    return scores


def learned_unit(target: Target) -> str:
    """Return the unit of the learned scale: ``log10(GPa)``, or the target's unit without a transform."""
    if target.transform == "none":
        return target.unit
    return f"{target.transform}({target.unit})" if target.unit else target.transform


COLUMNS = ("target", "score", "value", "baseline", "unit")
_TITLES = {
    "n": "labels", "mae": "MAE", "rmse": "RMSE", "r2": "R²", "accuracy": "accuracy", "log_loss": "log loss",
    "f1": "F1", "f1_macro": "F1 (macro)", "roc_auc": "ROC AUC", "coverage_90": "90 % coverage",
    "miscalibration_area": "miscalibration", "width_90": "90 % width", "interval_score_90": "90 % score",
    "spread_error": "ENCE", "spread_rank": "spread rank", "retention_gain": "retention",
}  # fmt: skip
_WITH_UNIT = ("mae", "rmse", "width_90", "interval_score_90")


def table(metrics: Mapping[str, Mapping[str, float | int]], targets: Sequence[Target]) -> list[tuple[str, ...]]:
    """Return the scores as rows of text under `COLUMNS`, each beside the baseline's and with its unit."""
    rows: list[tuple[str, ...]] = []
    for target in targets:
        scores = metrics[target.name]
        for key, value in scores.items():
            if key.startswith("baseline_"):
                continue
            title, unit = _title(key, target)
            beside = scores.get(f"baseline_{key}")
            rows.append((target.name, title, _number(value), "" if beside is None else _number(beside), unit))
    return rows


def to_text(metrics: Mapping[str, Mapping[str, float | int]], targets: Sequence[Target]) -> str:
    """Return `table` as aligned plain text with a header."""
    rows = [COLUMNS, *table(metrics, targets)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join("  ".join(_align(row, widths)).rstrip() for row in rows)


def _align(row: tuple[str, ...], widths: list[int]) -> list[str]:
    numbers = (COLUMNS.index("value"), COLUMNS.index("baseline"))
    return [
        text.rjust(width) if column in numbers else text.ljust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    ]


def _title(key: str, target: Target) -> tuple[str, str]:
    """Return a score's name for people and its unit: both tell the learned scale from the physical one."""
    suffix = f"_{target.transform}"
    if target.transform != "none" and key.endswith(suffix):
        name, unit, scale = key.removesuffix(suffix), learned_unit(target), f" ({target.transform})"
    else:
        name, unit, scale = key, target.unit, ""
    return _TITLES[name] + scale, unit if name in _WITH_UNIT else ""


def _number(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
