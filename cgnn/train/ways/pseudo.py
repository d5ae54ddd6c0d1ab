"""Pseudo-labels: what trained networks are sure of in crystals without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgnn.data.dataset import CrystalDataset, by_edges
from cgnn.errors import CheckpointError
from cgnn.model import CrystalGNN
from cgnn.model.heads import Head
from cgnn.model.network import raw_outputs
from cgnn.targets import TRANSFORMS
from cgnn.train.checkpoint import read_tensors, write_tensors
from cgnn.train.method import Indices

Labels = dict[str, NDArray[np.float64]]
"""By target name, labels as `CrystalDataset.label` gives them; ``nan`` = unknown."""


def pseudo_labels(
    models: Sequence[CrystalGNN], dataset: CrystalDataset, indices: Indices, share: float
) -> tuple[Indices, Labels]:
    """Return what networks agree on about some crystals: for each target the share of the labels that is surest.

    Args:
        models: Networks of the same targets.
        dataset: Crystals, whose labels are not looked at.
        indices: Which of them are predicted.
        share: Share of the predictions that become labels, for each target.

    Returns:
        The crystals with at least one such label, and these labels for the whole data set.
    """
    parts = by_edges(dataset, indices)
    # the data set may lie on a device since it was fitted on, the networks do not
    raws = [raw_outputs(model, (dataset.batch(part).to("cpu") for part in parts)) for model in models]
    owners = {"crystal": indices, "atom": np.repeat(indices, dataset.sizes()[0][indices])}
    chosen: list[Indices] = []
    labels: Labels = {}
    for target in models[0].targets:
        pairs = [(model.head(target.name), raw[target.name]) for model, raw in zip(models, raws, strict=True)]
        values, doubts = (tensor.numpy() for tensor in _GUESSES[target.task](pairs))
        surest = np.argsort(doubts, kind="stable")[: round(share * len(doubts))]
        kept = np.full(len(values), np.nan)
        kept[surest] = values[surest]
        labels[target.name] = np.full(len(dataset.label(target)), np.nan)
        labels[target.name][_places(dataset, indices, target.level)] = kept
        chosen.append(owners[target.level][np.isfinite(kept)])
    return np.unique(np.concatenate(chosen)), labels


def stored(path: Path, key: str, make: Callable[[], tuple[Indices, Labels]], resume: bool) -> tuple[Indices, Labels]:
    """Return the pseudo-labels of a file, or make and write them.

    Args:
        path: The file.
        key: What they are made from.
        make: Makes them.
        resume: Take them from the file where there is one.

    Raises:
        CheckpointError: The file is damaged or was made from something else.
    """
    if resume and path.exists():
        tensors, content = read_tensors(path)
        if content != {"kind": "pseudo_labels", "key": key}:
            raise CheckpointError(f"{path}: can't resume with pseudo-labels of other data or settings")
        return tensors.pop("pool").numpy(), {name[2:]: tensor.numpy() for name, tensor in tensors.items()}
    pool, labels = make()
    tensors = {"pool": torch.from_numpy(pool)} | {f"y_{name}": torch.from_numpy(v) for name, v in labels.items()}
    write_tensors(path, tensors, {"kind": "pseudo_labels", "key": key})
    return pool, labels


def _places(dataset: CrystalDataset, indices: Indices, level: str) -> Indices:
    """Return where the labels of some crystals stand among those of all."""
    if level == "crystal":
        return indices
    atoms = dataset.sizes()[0]
    first = np.cumsum(atoms) - atoms
    return np.concatenate([np.arange(first[index], first[index] + atoms[index]) for index in indices])


_Pairs = list[tuple[Head, Tensor]]
"""The head of a target and its raw output, for each network."""


def _regression(pairs: _Pairs) -> tuple[Tensor, Tensor]:
    r"""Return values in the target's unit and their doubt on the learned scale, each (n,).

    .. math:: \sigma^2 = \mathrm{mean}_m b_m^2 + \mathrm{var}_m y_m

    over the networks m, with the scale b of the error where the head learns it.
    """
    found = [learned for head, raw in pairs if (learned := head.learned(raw)) is not None]
    values, scales = (torch.stack(column) for column in zip(*found, strict=True))
    transform = TRANSFORMS[pairs[0][0].target.transform]
    label = transform.inverse(values.mean(0))
    doubt = (scales.square().mean(0) + values.var(0, correction=0)).sqrt()
    return torch.where(label > transform.lower, label, torch.nan), doubt


def _classes(pairs: _Pairs) -> tuple[Tensor, Tensor]:
    """Return the likeliest classes and how likely another one is, each (n,)."""
    mean = torch.stack([head.decode(raw) for head, raw in pairs]).mean(0)
    each = torch.stack([1 - mean, mean], dim=1) if mean.ndim == 1 else mean
    likeliest = each.max(dim=1)
    return likeliest.indices.double(), 1 - likeliest.values


_GUESSES: dict[str, Callable[[_Pairs], tuple[Tensor, Tensor]]] = {
    "regression": _regression,
    "binary": _classes,
    "multiclass": _classes,
}
