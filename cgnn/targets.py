"""What is asked of a model: named properties with unit, level, task and transform."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from cgnn.errors import DataError, unknown
from cgnn.strict import Strict

Label = float | int | str | bool | None


@dataclass(frozen=True)
class Transform:
    """A monotonic map of a label onto the scale on which it is learned, for numpy arrays and torch tensors alike."""

    forward: Callable[[Any], Any]
    inverse: Callable[[Any], Any]
    lower: float = -np.inf
    """Labels must lie above this for ``forward`` to exist."""
    keeps_scale: bool = False
    """Whether labels are learned as they are."""


def _elementwise(name: str) -> Callable[[Any], Any]:
    """Return a function that is a method of tensors and a function of numpy; labels stay on their device."""
    return lambda y: getattr(y, name)() if hasattr(y, name) else getattr(np, name)(y)


_BELOW_ZERO = -float(np.nextafter(0.0, 1.0))

TRANSFORMS: dict[str, Transform] = {
    "none": Transform(lambda y: y, lambda t: t, keeps_scale=True),
    # learned as it is; what a network says below zero, such as of the gap of a metal, is zero
    "nonnegative": Transform(lambda y: y, lambda t: t.clip(0.0), lower=_BELOW_ZERO, keeps_scale=True),
    "log10": Transform(_elementwise("log10"), lambda t: 10.0**t, lower=0.0),
    "log": Transform(_elementwise("log"), lambda t: np.e**t, lower=0.0),
    "sqrt": Transform(_elementwise("sqrt"), lambda t: t * abs(t), lower=_BELOW_ZERO),
}

RESERVED = ("material_id", "part", "flags", "novelty")
"""Columns that stand beside the targets in tables of predictions."""

ENDINGS = ("_std", "_lower", "_upper", "_true", "_spread")
"""What stands behind a target's name in columns of its own: standard deviation, ends of the interval, label, and
how far the members of an ensemble are apart."""


class Target(Strict):
    """One property to learn: where its labels stand and on which scale they are learned.

    Labels keep their physical unit everywhere outside the head; ``transform`` and scaling are applied
    inside it.
    """

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    column: str = ""
    """Source column, nested with dots (``bulk_modulus.vrh``); the target's name if empty."""
    unit: str = ""
    level: Literal["crystal", "atom"] = "crystal"
    task: Literal["regression", "binary", "multiclass"] = "regression"
    transform: str = "none"
    classes: tuple[str, ...] = ()
    """Names of the classes, for ``multiclass``; a label is one of them."""
    weight: float = Field(default=1.0, gt=0)
    """Factor of this target's loss in the sum over targets."""

    @model_validator(mode="after")
    def _fits(self) -> Target:
        if self.name in RESERVED:
            raise ValueError(f"the name {self.name!r} is taken by a column of the tables")
        if self.transform not in TRANSFORMS:
            raise ValueError(unknown(self.transform, TRANSFORMS, "transform"))
        if self.task != "regression" and self.transform != "none":
            raise ValueError(f"transform {self.transform!r} needs task 'regression'")
        if self.task == "multiclass" and len(set(self.classes)) < 2:
            raise ValueError("task 'multiclass' needs at least two different names in 'classes'")
        if self.task != "multiclass" and self.classes:
            raise ValueError("'classes' belongs to task 'multiclass'")
        return self

    @property
    def source(self) -> str:
        """The source column of the labels."""
        return self.column or self.name

    @property
    def field(self) -> str:
        """The name of the label's field in a graph."""
        return f"y_{self.name}"

    def beside(self) -> set[str]:
        """Return the names that columns of tables beside this target's own may have."""
        return {f"{self.name}{ending}" for ending in ENDINGS} | {f"{self.name}_p_{label}" for label in self.classes}

    def encode(self, label: Label) -> float:
        """Return one label as the number stored in a graph (``nan`` for a missing one).

        Regression keeps the physical value, binary gives 0 or 1, multiclass the class index.

        Raises:
            DataError: The label is not of the target's kind; the message says why.
        """
        if label is None or label == "":
            return float("nan")
        if self.task == "multiclass":
            return self._encode_class(label)
        if self.task == "binary":
            return self._encode_binary(label)
        return self._encode_number(label)

    def to_learned(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return physical values on the scale on which they are learned."""
        return TRANSFORMS[self.transform].forward(np.asarray(values, dtype=np.float64))

    def _encode_class(self, label: Label) -> float:
        if str(label) not in self.classes:
            raise DataError(f"{_shown(label)} is none of the classes {', '.join(self.classes)}")
        return float(self.classes.index(str(label)))

    def _encode_binary(self, label: Label) -> float:
        if isinstance(label, bool):
            return float(label)
        if isinstance(label, int | float) and label in (0, 1):
            return float(label)
        words = {"true": 1.0, "false": 0.0}
        if isinstance(label, str) and label.lower() in words:
            return words[label.lower()]
        raise DataError(f"{_shown(label)} is neither 0/1 nor true/false")

    def _encode_number(self, label: Label) -> float:
        if isinstance(label, bool) or not isinstance(label, int | float):
            raise DataError(f"{_shown(label)} is not a number")
        if not abs(label) < 1e30:  # also catches nan and integers beyond float64
            raise DataError(f"{_shown(label)} is not a finite number of a plausible size")
        if not label > TRANSFORMS[self.transform].lower:
            raise DataError(f"{_shown(label)} can't be learned as {self.transform}")
        return float(label)


def _shown(label: Any) -> str:
    """Return a label for a message: one line of bounded length."""
    if isinstance(label, int) and abs(label) >= 10**40:
        return "a whole number of more than 40 digits"
    return repr(label)[:80]
