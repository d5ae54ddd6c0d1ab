"""Heads: from features to a target, with its scaling, loss and inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cgnn.config import ModelConfig
from cgnn.errors import ConfigError, choose
from cgnn.model.conv import ACTIVATIONS
from cgnn.model.descriptors import DESCRIPTORS
from cgnn.model.kernel_ridge import KernelRidge
from cgnn.model.trees import BoostedTrees
from cgnn.targets import TRANSFORMS, Target

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "mae": lambda x, y: (x - y).abs(),
    "mse": lambda x, y: (x - y) ** 2,
    "huber": lambda x, y: functional.huber_loss(x, y, reduction="none"),
}
"""Losses per label on the scaled values, for regression."""


def _layers(config: ModelConfig, outputs: int) -> nn.Module:
    layers: list[nn.Module] = [choose(ACTIVATIONS, config.activation, "activation")()]
    width = config.width
    for _ in range(config.head_depth):
        layers += [nn.Linear(width, config.head_width), ACTIVATIONS[config.activation]()]
        layers += [nn.Dropout(config.dropout)] if config.dropout else []
        width = config.head_width
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _trees(config: ModelConfig, outputs: int) -> nn.Module:
    if outputs > 1:
        raise ConfigError("model.head trees: not for targets of several classes")
    return BoostedTrees(config.trees, config.leaves)


def _kernel_ridge(config: ModelConfig, outputs: int) -> nn.Module:
    if outputs > 1:
        raise ConfigError("model.head kernel_ridge: not for targets of several classes")
    return KernelRidge(_parts(config))


NETS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "layers": _layers,
    "trees": _trees,
    "kernel_ridge": _kernel_ridge,
}
"""From features to raw outputs: layers that are trained, or what is fitted at once over pooled features and
descriptors beside each other, boosted trees or kernel ridge regression."""


def crystal_width(config: ModelConfig) -> int:
    """Return the number of features of a crystal that the heads of a network see."""
    return sum(_parts(config)) if config.is_fitted_at_once else config.width


def _parts(config: ModelConfig) -> list[int]:
    """Return how many features the heads that are fitted at once see of each kind, one after another."""
    pooled = [config.width] if config.depth else []
    hints = [crystal_width(config.hints.model)] if config.hints else []
    return [*pooled, *hints, *(choose(DESCRIPTORS, name, "descriptor")().outputs for name in config.descriptors)]


class Head(nn.Module):
    """From pooled (or, for an atom-level target, atom) features to one target.

    Args:
        target: What is predicted.
        config: Width, hidden layers, activation and dropout.
    """

    outputs: int = 1

    def __init__(self, target: Target, config: ModelConfig) -> None:
        super().__init__()
        self.target = target
        self.net = choose(NETS, config.head, "head")(config, self.outputs)

    def forward(self, h: Tensor) -> Tensor:
        """Return raw outputs (n, outputs) of features (n, F)."""
        return self.net(h)

    def fit_scaling(self, labels: NDArray[np.float64]) -> None:
        """Take the scaling from training labels (physical units, ``nan`` = unknown)."""

    def losses(self, raw: Tensor, labels: Tensor, loss: str) -> Tensor:
        """Return the loss of each label (n,); all labels known, physical units or class numbers."""
        raise NotImplementedError

    def scores(self, raw: Tensor, labels: Tensor, loss: str) -> Tensor:
        """Return what tells a good epoch (n,): the loss of the predictions alone."""
        return self.losses(raw, labels, loss)

    def decode(self, raw: Tensor) -> Tensor:
        """Return predictions in physical units, or probabilities, of raw outputs."""
        raise NotImplementedError

    def learned(self, raw: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return value and scale of the error (n,) on the learned scale of raw outputs; None for classes.

        The scale is zero where the head does not learn it.
        """
        return None

    def columns(self, decoded: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        """Return decoded predictions as named columns of a table (n,); the first has the target's name."""
        return {self.target.name: decoded}


class Regression(Head):
    r"""One number; ``decode(raw) = inverse(mean + std raw)`` in the target's unit, shape (n,).

    With ``spread`` a second small network over the same features gives the scale :math:`b` of a crystal's error
    :math:`r` by the likelihood of a Laplace distribution, :math:`|r| / b + \ln b`, weighted by :math:`b` (held
    fixed). It learns beside the first without touching it: its gradient ends at the features.

    Source: the weight is the beta = 1 of Seitzer et al., ICLR 2022, arXiv:2203.09168.
    """

    mean: Tensor
    std: Tensor
    _SMALLEST = 0.01

    def __init__(self, target: Target, config: ModelConfig) -> None:
        super().__init__(target, config)
        self.spread = _layers(config, 1) if config.spread else None
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))

    def forward(self, h: Tensor) -> Tensor:
        """Return raw outputs (n, 1), or (n, 2) with the spread, of features (n, F)."""
        return self.net(h) if self.spread is None else torch.cat([self.net(h), self.spread(h.detach())], dim=1)

    def fit_scaling(self, labels: NDArray[np.float64]) -> None:
        """Take mean and standard deviation of the known labels on the learned scale."""
        learned = self.target.to_learned(labels[np.isfinite(labels)])
        mean, spread = (float(learned.mean()), float(learned.std())) if len(learned) else (0.0, 0.0)
        self.mean.fill_(mean)
        self.std.fill_(spread if spread > 1e-12 * abs(mean) else 1.0)  # below, equal labels but for rounding

    def losses(self, raw: Tensor, labels: Tensor, loss: str) -> Tensor:
        """Return the loss between raw outputs and scaled labels, each (n,)."""
        losses = self.scores(raw, labels, loss)
        if self.spread is None:
            return losses
        error, scale = (raw[:, 0] - self.scaled(labels).to(raw.dtype)).detach().abs(), self._scale(raw)
        return losses + scale.detach() * (error / scale + scale.log())

    def scores(self, raw: Tensor, labels: Tensor, loss: str) -> Tensor:
        """Return the loss of the values alone (n,)."""
        return choose(LOSSES, loss, "loss")(raw[:, 0], self.scaled(labels).to(raw.dtype))

    def scaled(self, labels: Tensor) -> Tensor:
        """Return labels as raw outputs are to be (n,)."""
        return (TRANSFORMS[self.target.transform].forward(labels) - self.mean) / self.std

    def _scale(self, raw: Tensor) -> Tensor:
        return functional.softplus(raw[:, 1]) + self._SMALLEST

    def decode(self, raw: Tensor) -> Tensor:
        """Return values in the target's unit (n,)."""
        return TRANSFORMS[self.target.transform].inverse(self.learned(raw)[0])

    def learned(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and scale of the error (n,) on the learned scale of raw outputs."""
        value = self.mean.double() + self.std.double() * raw[:, 0].double()
        if self.spread is None:
            return value, torch.zeros_like(value)
        return value, self.std.double() * self._scale(raw).double()


class Binary(Head):
    """Probability of class 1, shape (n,)."""

    def losses(self, raw: Tensor, labels: Tensor, loss: str) -> Tensor:
        """Return the cross entropy of each label (n,)."""
        return functional.binary_cross_entropy_with_logits(raw[:, 0], labels.to(raw.dtype), reduction="none")

    def decode(self, raw: Tensor) -> Tensor:
        """Return probabilities (n,)."""
        return torch.sigmoid(raw[:, 0].double())


class Multiclass(Head):
    """Probabilities of the classes, shape (n, C)."""

    def __init__(self, target: Target, config: ModelConfig) -> None:
        self.outputs = len(target.classes)
        super().__init__(target, config)

    def losses(self, raw: Tensor, labels: Tensor, loss: str) -> Tensor:
        """Return the cross entropy of each label (n,)."""
        return functional.cross_entropy(raw, labels.long(), reduction="none")

    def decode(self, raw: Tensor) -> Tensor:
        """Return probabilities (n, C)."""
        return torch.softmax(raw.double(), dim=1)

    def columns(self, decoded: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        """Return the likeliest class and, as ``<target>_p_<class>``, the probability of each."""
        name, classes = self.target.name, self.target.classes
        likeliest = np.array(classes, dtype=object)[decoded.argmax(axis=1)]
        return {name: likeliest} | {f"{name}_p_{label}": decoded[:, i] for i, label in enumerate(classes)}


HEADS: dict[str, type[Head]] = {"regression": Regression, "binary": Binary, "multiclass": Multiclass}
