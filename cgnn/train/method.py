"""What a way of learning may change in `cgnn.train.loop.fit`: the start, the rates, the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from cgnn.config import TrainConfig
from cgnn.model import CrystalGNN

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """What the loss of one step is made from.

    Args:
        model: The network.
        forward: Calls it on a batch as the engine wants it called (precision, several devices).
        averaged: Its copy with averaged weights, where there is one (``train.ema``).
        batch: Crystals with labels.
        settings: How the network is fitted.
        done: Share of all steps that lie behind.
        crystals: Indices of the batch's crystals in the data set (B,).
    """

    model: CrystalGNN
    forward: Callable[[Any], dict[str, Tensor]]
    averaged: CrystalGNN | None
    batch: Any
    settings: TrainConfig
    done: float
    crystals: Indices


class Method:
    """A way of learning. This one is the plain way: nothing changed."""

    key: str = ""
    """Tells one method with its settings from another: a state is only taken up by the same."""
    source: Mapping[str, str] = {}
    """What a model file remembers of the method beside where its crystals come from."""

    uses_labels: bool = True
    """Whether the network's own targets are learned; otherwise their labels may all be unknown."""
    needs_steps: bool = False
    """Whether what it changes happens in steps (its loss, the crystals it draws): heads fitted at once have none."""

    def begin(self, model: CrystalGNN) -> None:
        """Change a fresh network before the first step, its weights for example."""

    def extra(self) -> nn.Module | None:
        """Return what is trained beside the network and thrown away at the end."""
        return None

    def rate(self, name: str) -> float:
        """Return the factor on the learning rate of a parameter of the network; 0 keeps it as it is."""
        return 1.0

    def draw(self, indices: Indices, epoch: int, step: int) -> Indices:
        """Return the crystals of a step, given those of the training part whose turn it is.

        A function of the arguments only, or a resumed run ends with other bits than an unbroken one.
        """
        return indices

    def weights(self, indices: Indices) -> NDArray[np.float64] | None:
        """Return how much crystals count (n,) where the loss does not say it (trees); None for all the same."""
        return None

    def set_training(self, model: CrystalGNN) -> None:
        """Put a network into training mode."""
        model.train()

    def loss(self, step: Step) -> Tensor:
        """Return the loss of a step."""
        return step.model.loss(step.forward(step.batch), step.batch, step.settings.loss)

    def validate(self, model: CrystalGNN, batches: Iterable[Any]) -> dict[str, float] | None:
        """Return what a history row tells of the validation part, with ``val_score``; None for the usual scores.

        Args:
            model: The network that predicts, in evaluation mode.
            batches: The crystals of the validation part.
        """
        return None
