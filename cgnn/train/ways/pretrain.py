"""Learning from crystals without labels: where atoms belong, and which element sits where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cgnn.config import Config
from cgnn.data.dataset import CrystalDataset
from cgnn.errors import ConfigError
from cgnn.graph.fields import vectors
from cgnn.model import CrystalGNN
from cgnn.model.embed import MAX_Z, envelope
from cgnn.train.loop import Fitted, fit
from cgnn.train.method import Indices, Method, Step
from cgnn.train.ways.companions import check_apart
from cgnn.train.ways.perturb import moved, same_draws, without_elements

Report = Callable[[dict[str, float]], None]


class Guess(NamedTuple):
    """What was guessed of one batch.

    Args:
        losses: Loss of each atom that counts (n,).
        right: Which guesses are right (n,), where there is such a thing.
    """

    losses: Tensor
    right: Tensor | None = None


class NoiseHead(nn.Module):
    r"""A vector per atom from the edges into it.

    .. math:: v_i = \sum_j w_{ij}\, s(h_i, h_j, e(d_{ij}))\, \hat r_{ij}

    with a small network s and the unit vector from target i to source j. The vectors turn with the crystal;
    invariant under translation, equivariant under permutation.

    Args:
        width: Features per atom F.
        gaussians: Features per edge K.
    """

    def __init__(self, width: int, gaussians: int) -> None:
        super().__init__()
        self.target = nn.Linear(width, width)
        self.source = nn.Linear(width, width, bias=False)
        self.edge = nn.Linear(gaussians, width, bias=False)
        self.out = nn.Linear(width, 1)

    def forward(self, h: Tensor, graph: Any, basis: nn.Module) -> Tensor:
        """Return a vector per atom (N, 3).

        Args:
            h: Features of the atoms (N, F).
            graph: The crystals.
            basis: Turns distances (E,) into features (E, K).
        """
        source, target = graph.edge_index
        vector = vectors(graph)
        distance = vector.norm(dim=1)
        weight = envelope(distance, graph.reach.index_select(0, target))
        pair = self.target(h).index_select(0, target) + self.source(h).index_select(0, source)
        size = self.out(functional.silu(pair + self.edge(basis(distance.to(h.dtype)))))
        # two atoms on one spot have no direction: the smallest length keeps them from dividing by zero
        along = (vector * (weight / distance.clamp(min=1e-6))[:, None]).to(h.dtype)
        return h.new_zeros(len(h), 3).index_add(0, target, size * along)


class SelfSupervised(Method):
    """Learns a task that the crystals themselves give; the heads of the network's targets are left as they start.

    Args:
        config: Settings of the fit.
        strength: How much of a crystal is changed.
    """

    uses_labels = False
    needs_steps = True

    def __init__(self, config: Config, strength: float) -> None:
        self.config, self.strength = config, strength
        self.key = f"{type(self).__name__} {strength!r}"
        self.head: nn.Module | None = None

    def extra(self) -> nn.Module:
        """Return the head of the task."""
        self.head = self.task_head()
        return self.head

    def task_head(self) -> nn.Module:
        """Return a fresh head of the task."""
        raise NotImplementedError

    def guess(self, model: CrystalGNN, batch: Any) -> Guess:
        """Change crystals and return what the network guesses of the change."""
        raise NotImplementedError

    def loss(self, step: Step) -> Tensor:
        """Return the mean loss over the atoms that count."""
        return self.guess(step.model, step.batch).losses.mean()

    @torch.no_grad()
    def validate(self, model: CrystalGNN, batches: Iterable[Any]) -> dict[str, float]:
        """Return the loss on held-out crystals, which are changed alike in every epoch, and the share guessed right."""
        with same_draws(self.config.train.seed):
            guesses = [self.guess(model, batch) for batch in batches]
        row = {"val_score": float(torch.cat([guess.losses for guess in guesses]).mean())}
        right = [guess.right for guess in guesses if guess.right is not None]
        return row | ({"val_right": float(torch.cat(right).double().mean())} if right else {})


class Denoising(SelfSupervised):
    r"""Atoms are moved by noise, which is guessed as a vector per atom; the loss is the mean squared difference.

    Source: Zaidi et al., Pre-training via denoising for molecular property prediction, ICLR 2023, arXiv:2206.00133.
    """

    def task_head(self) -> nn.Module:
        """Return the head that guesses vectors."""
        return NoiseHead(self.config.model.width, self.config.model.gaussians)

    def guess(self, model: CrystalGNN, batch: Any) -> Guess:
        """Return the loss of each atom (N,), in units of the variance of a coordinate."""
        assert self.head is not None
        changed, shift = moved(batch, self.strength)
        found = self.head(model.atom_features(changed), changed, model.basis)
        return Guess((found - shift.to(found.dtype)).square().mean(dim=1))


class MaskedElements(SelfSupervised):
    """Elements of some atoms are hidden and guessed from the atom's features; the loss is the cross entropy.

    Source: Hu et al., Strategies for pre-training graph neural networks, ICLR 2020, arXiv:1905.12265.
    """

    def task_head(self) -> nn.Module:
        """Return the head that guesses elements."""
        width = self.config.model.width
        return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, MAX_Z + 1))

    def guess(self, model: CrystalGNN, batch: Any) -> Guess:
        """Return loss and success of each hidden atom (n,)."""
        assert self.head is not None
        changed, is_hidden = without_elements(batch, self.strength)
        found = self.head(model.atom_features(changed)[is_hidden])
        wanted = batch.z[is_hidden]
        return Guess(functional.cross_entropy(found, wanted, reduction="none"), found.argmax(dim=1) == wanted)


def pretrain_denoising(
    config: Config,
    dataset: CrystalDataset,
    parts: Mapping[str, Indices],
    unlabelled: Indices,
    folder: str | Path,
    resume: bool = False,
    report: Report | None = None,
    noise: float = 0.02,
) -> Fitted:
    """Learn where atoms belong, without labels, and leave a model file to start from.

    Only ``embed`` and ``convs`` of the network are learned. No label is looked at; each row of the history holds the
    loss on the validation part, for which a network that guesses nothing has about 1, less what centring takes.

    Args:
        config: Settings of the fit; targets are kept for the model file.
        dataset: Crystals.
        parts: Indices under ``train`` and ``val``; the second is held out.
        unlabelled: Indices of crystals that join the training part.
        folder: Run folder.
        resume: Go on from where an earlier call stopped.
        report: Called with each epoch's row of the history.
        noise: Standard deviation of a coordinate as a share of the cube root of the volume per atom (some 2.5 Å).

    Raises:
        ConfigError: The noise is not above 0, or there is more than one device.
    """
    if not noise > 0:
        raise ConfigError(f"noise: expected a number above 0, got {noise!r}")
    return _pretrained(Denoising(config, noise), dataset, parts, unlabelled, folder, resume, report)


def pretrain_masked_elements(
    config: Config,
    dataset: CrystalDataset,
    parts: Mapping[str, Indices],
    unlabelled: Indices,
    folder: str | Path,
    resume: bool = False,
    report: Report | None = None,
    share: float = 0.15,
) -> Fitted:
    """Learn which element sits where, without labels, and leave a model file to start from.

    As `pretrain_denoising`; rows of the history also hold ``val_right``, the share of elements guessed right.

    Args:
        config: Settings of the fit; targets are kept for the model file.
        dataset: Crystals.
        parts: Indices under ``train`` and ``val``; the second is held out.
        unlabelled: Indices of crystals that join the training part.
        folder: Run folder.
        resume: Go on from where an earlier call stopped.
        report: Called with each epoch's row of the history.
        share: Share of the atoms whose element is hidden.

    Raises:
        ConfigError: The share does not lie between 0 and 1, or there is more than one device.
    """
    if not 0 < share < 1:
        raise ConfigError(f"share: expected a number between 0 and 1, got {share!r}")
    return _pretrained(MaskedElements(config, share), dataset, parts, unlabelled, folder, resume, report)


def _pretrained(
    method: SelfSupervised,
    dataset: CrystalDataset,
    parts: Mapping[str, Indices],
    unlabelled: Indices,
    folder: str | Path,
    resume: bool,
    report: Report | None,
) -> Fitted:
    train = method.config.train
    if train.devices * train.nodes > 1:
        raise ConfigError("train.devices, train.nodes: a self-supervised task is learned on one device")
    check_apart({"val": parts["val"]}, unlabelled, dataset)
    everything = {"train": np.union1d(parts["train"], unlabelled), "val": parts["val"]}
    bare = dataset.hidden(np.arange(len(dataset)))
    return fit(method.config, bare, everything, folder, resume, report, method)
