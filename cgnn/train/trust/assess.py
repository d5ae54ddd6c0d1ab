"""The end of a training: the model learns from its own crystals how far it can be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Batch

from cgnn.data.dataset import CrystalDataset, by_edges
from cgnn.model import CrystalGNN
from cgnn.model.members import Combined, combined
from cgnn.model.network import raw_outputs
from cgnn.targets import Target
from cgnn.train.checkpoint import ModelInfo
from cgnn.train.trust.calibration import FEWEST
from cgnn.train.trust.confidence import Confidence

Indices = NDArray[np.int64]
MOST = 5000
"""So many training crystals show at most where training lies."""


def assessed(
    members: Sequence[CrystalGNN], info: ModelInfo, dataset: CrystalDataset, parts: Mapping[str, Indices]
) -> ModelInfo:
    """Return what travels with the weights, with calibration and reference.

    The calibration is fitted on the validation part, the reference on the training part; the same crystals and
    weights give the same numbers.

    Args:
        members: The networks; a prediction is their mean.
        info: What travels with them.
        dataset: Crystals with labels.
        parts: Indices into the data set under ``train`` and ``val`` (may be empty).
    """
    targets, validation, seed = info.config.targets, parts["val"], info.config.train.seed
    usable = [target.name for target in targets if _labelled(dataset, target, validation) >= FEWEST]
    training = parts["train"]
    if len(training) > MOST:
        training = np.sort(np.random.default_rng([seed, 3]).choice(training, MOST, replace=False))
    confidence = Confidence.fit(
        targets,
        _learned(members, dataset, validation, usable) if usable else {},
        {target.name: dataset.label(target, validation) for target in targets},
        features_part(members[0], dataset, training),
        seed,
    )
    return replace(info, calibration=confidence.to_dict(), reference=confidence.to_tensors())


def combined_part(members: Sequence[CrystalGNN], dataset: CrystalDataset, indices: Indices) -> Combined:
    """Return what members say together of some crystals of a data set."""
    return combined(members, [raw_outputs(member, _batches(member, dataset, indices)) for member in members])


def _labelled(dataset: CrystalDataset, target: Target, indices: Indices) -> int:
    """Return the number of crystals with a label: the atoms of a few crystals are many but alike."""
    is_known = np.isfinite(dataset.label(target, indices))
    atoms = dataset.sizes()[0][indices] if target.level == "atom" else np.ones(len(indices), dtype=np.int64)
    return len(np.unique(np.repeat(np.arange(len(indices)), atoms)[is_known]))


def _learned(
    members: Sequence[CrystalGNN], dataset: CrystalDataset, indices: Indices, names: Sequence[str]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    found = combined_part(members, dataset, indices)
    return {name: learned.arrays() for name, learned in found.learned.items() if name in names}


@torch.no_grad()
def features_part(member: CrystalGNN, dataset: CrystalDataset, indices: Indices) -> NDArray[Any]:
    """Return what the heads of a network see of some crystals of a data set (n, F)."""
    parts = [member.features(batch)[1].cpu().numpy() for batch in _batches(member, dataset, indices)]
    return np.concatenate(parts)


def _batches(member: CrystalGNN, dataset: CrystalDataset, indices: Indices) -> Iterator[Batch]:
    device = next(member.parameters()).device
    return (dataset.batch(part).to(device) for part in by_edges(dataset, indices))
