"""Noisy nodes: a network that also learns where moved atoms belong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from cgnn.config import Config
from cgnn.errors import ConfigError
from cgnn.model import CrystalGNN
from cgnn.model.remedies import strength_of
from cgnn.train.method import Indices, Method, Step
from cgnn.train.ways.perturb import moved
from cgnn.train.ways.pretrain import NoiseHead

NOISE = 0.02
"""Standard deviation of a coordinate as a share of the cube root of the volume per atom (some 2.5 Å)."""


class Around(Method):
    """A way of learning around another, which it changes nothing of.

    Args:
        way: The other.
    """

    def __init__(self, way: Method) -> None:
        self.way = way
        self.key, self.source = way.key, way.source
        self.uses_labels, self.needs_steps = way.uses_labels, way.needs_steps

    def begin(self, model: CrystalGNN) -> None:
        """Change a fresh network as the other does."""
        self.way.begin(model)

    def extra(self) -> nn.Module | None:
        """Return what the other trains beside the network."""
        return self.way.extra()

    def rate(self, name: str) -> float:
        """Return the other's factor on a learning rate."""
        return self.way.rate(name)

    def draw(self, indices: Indices, epoch: int, step: int) -> Indices:
        """Return the crystals that the other draws."""
        return self.way.draw(indices, epoch, step)

    def set_training(self, model: CrystalGNN) -> None:
        """Put a network into training mode as the other does."""
        self.way.set_training(model)

    def loss(self, step: Step) -> Tensor:
        """Return the other's loss of a step."""
        return self.way.loss(step)

    def validate(self, model: CrystalGNN, batches: Iterable[Any]) -> dict[str, float] | None:
        """Return what the other tells of the validation part."""
        return self.way.validate(model, batches)


class NoisyNodes(Around):
    r"""Atoms of the training crystals are moved by noise; the loss is that of the labels and that of the noise.

    .. math:: L = L_y + \frac{s}{N} \sum_i \tfrac13 \lVert v_i - \epsilon_i \rVert^2

    with the guess v of the noise :math:`\epsilon` in units of its standard deviation. Every atom has its own noise to
    tell, so their features must not become alike.

    Source: Godwin et al., Simple GNN regularisation for 3D molecular property prediction and beyond, ICLR 2022,
        arXiv:2106.07971.

    Args:
        config: Settings of the fit.
        way: The way of learning from the labels.
    """

    def __init__(self, config: Config, way: Method) -> None:
        super().__init__(way)
        self.config, self.strength = config, strength_of(config.model)
        self.key = f"NoisyNodes {NOISE} {way.key}"
        self.head: NoiseHead | None = None

    def extra(self) -> nn.Module:
        """Return the head that guesses the noise."""
        if self.way.extra() is not None:
            raise ConfigError("model.remedy: 'noisy_nodes' can't be joined to a way that trains a part of its own")
        self.head = NoiseHead(self.config.model.width, self.config.model.gaussians)
        return self.head

    def loss(self, step: Step) -> Tensor:
        """Return the sum of both losses, of one pass through the network."""
        assert self.head is not None
        changed, noise = moved(step.batch, NOISE)
        h, crystals = step.model.features(changed)
        labels = step.model.loss(step.model.outputs(h, crystals), step.batch, step.settings.loss)
        found = self.head(h, changed, step.model.basis)
        return labels + self.strength * (found - noise.to(found.dtype)).square().mean()


def noisy(config: Config, way: Method) -> Method:
    """Return a way of learning, with noisy nodes where the settings ask for them.

    Raises:
        ConfigError: The settings ask for what noisy nodes can't be joined to.
    """
    if config.model.remedy != "noisy_nodes" or strength_of(config.model) == 0:
        return way
    train = config.train
    if train.devices * train.nodes > 1 or train.precision != "32-true" or train.compile:
        raise ConfigError("model.remedy: 'noisy_nodes' is for one device, precision 32-true and no train.compile")
    return NoisyNodes(config, way)
