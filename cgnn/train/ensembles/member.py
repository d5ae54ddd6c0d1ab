"""One member of an ensemble: its own first weights, and how much each crystal counts for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cgnn.errors import ConfigError
from cgnn.model import CrystalGNN
from cgnn.train.engine import seed as start_random
from cgnn.train.loop import Indices
from cgnn.train.method import Method, Step

Counts = NDArray[np.float32]


def _by_seed(seed: int, number: int, training: Indices, crystals: int) -> Counts | None:
    return None


def _by_bootstrap(seed: int, number: int, training: Indices, crystals: int) -> Counts | None:
    """Draw as many training crystals as there are, with replacement; say how often each was drawn."""
    drawn = np.random.default_rng([seed, number, 2]).choice(training, len(training))
    return np.bincount(drawn, minlength=crystals).astype(np.float32)


ENSEMBLES: dict[str, Callable[[int, int, Indices, int], Counts | None]] = {
    "seed": _by_seed,
    "bootstrap": _by_bootstrap,
}
"""What makes members differ, beside their first weights. A function of the seed, the member's number, the training
crystals and the number of all crystals; returns how much each of these counts (n,), None for all the same."""


class Member(Method):
    """Learns as one member of an ensemble: other first weights, the same order of batches.

    The order of the crystals and the random numbers of a step (dropout) are those of every other member. So
    members can be fitted over shared batches (`cgnn.train.ensembles.batched`) with the same result as one by one.

    Args:
        number: Its number, from 0.
        seed: Seed of the ensemble.
        counts: How much each crystal of the data set counts in its loss (n,), such as how often a bootstrap drew
            it; crystals that count nothing still shape the statistics of batch normalisations. None for one each.
        way: The way of learning that all members share, such as a transfer; by default the plain one.
        parts: What it is fitted on, where that is not what the others are: indices under ``train`` and ``val``. Members
            that are fitted at once (batched) have the same ``train``, from which their counts choose.
    """

    def __init__(
        self,
        number: int,
        seed: int,
        counts: Counts | None = None,
        way: Method | None = None,
        parts: dict[str, Indices] | None = None,
    ) -> None:
        self.number, self.seed, self.counts, self.way, self.parts = number, seed, counts, way or Method(), parts
        drawn = "" if counts is None else hashlib.sha256(counts.tobytes()).hexdigest()
        if parts is not None:
            drawn += " " + " ".join(hashlib.sha256(parts[name].tobytes()).hexdigest() for name in sorted(parts))
        self.key = f"member {number} {drawn} {self.way.key}"
        self.source = self.way.source
        self.needs_steps = self.way.needs_steps

    def begin(self, model: CrystalGNN) -> None:
        """Draw its first weights, of which the shared way may take others; tables and scaling stay."""
        start_random(self.seed, "member", self.number)
        fresh = CrystalGNN(model.config, model.targets)
        model.load_state_dict({**fresh.state_dict(), **dict(model.named_buffers())})
        self.way.begin(model)

    def extra(self) -> nn.Module | None:
        """Return what the shared way trains beside the network.

        Raises:
            ConfigError: Such a way does not know how much crystals count.
        """
        found = self.way.extra()
        if found is not None and self.counts is not None:
            raise ConfigError("model.remedy: 'noisy_nodes' is not for members whose crystals count differently")
        return found

    def rate(self, name: str) -> float:
        """Return the factor on the learning rate of a parameter, that of the shared way."""
        return self.way.rate(name)

    def weights(self, indices: Indices) -> NDArray[np.float64] | None:
        """Return how often crystals were drawn (n,)."""
        return None if self.counts is None else self.counts[indices].astype(np.float64)

    def set_training(self, model: CrystalGNN) -> None:
        """Put a network into training mode as the shared way does."""
        self.way.set_training(model)

    def loss(self, step: Step) -> Tensor:
        """Return the loss of a step, in which crystals count as they were drawn."""
        if self.counts is None:
            return self.way.loss(step)
        weights = torch.from_numpy(self.counts[step.crystals]).to(step.batch.z.device)
        return step.model.loss(step.forward(step.batch), step.batch, step.settings.loss, weights)

    def validate(self, model: CrystalGNN, batches: Iterable[Any]) -> dict[str, float] | None:
        """Return what the shared way tells of the validation part."""
        return self.way.validate(model, batches)
