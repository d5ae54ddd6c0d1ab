"""A bag: a classifier of positives against drawn unlabelled crystals, which then scores what it did not see."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cgnn.config import Config, PUConfig
from cgnn.data.dataset import CrystalDataset
from cgnn.errors import CheckpointError
from cgnn.train.checkpoint import MODEL_FILE, load_model, read_tensors, write_tensors
from cgnn.train.engine import engine, reproducible
from cgnn.train.ensembles.member import Counts, Member
from cgnn.train.loop import Indices
from cgnn.train.method import Method
from cgnn.train.trust.assess import combined_part

VOTES_FILE = "votes.safetensors"


class Bag(Member):
    """A member of an ensemble with training and validation crystals of its own.

    Args:
        number: Its number, from 0.
        seed: Seed of the weights.
        parts: Indices into the data set under ``train`` and ``val``.
        outside: Indices of the crystals that it scores: none of them is in its parts.
        pu: How it learns.
        way: What is changed in the fit.
        counts: 1 for each of its training crystals and 0 for others (n,), where the training part is one for
            several bags.
    """

    def __init__(
        self,
        number: int,
        seed: int,
        parts: dict[str, Indices],
        outside: Indices,
        pu: PUConfig,
        way: Method | None = None,
        counts: Counts | None = None,
    ) -> None:
        super().__init__(number, seed, counts, way, parts)
        self.outside, self.pu = outside, pu


def vote(config: Config, dataset: CrystalDataset, folder: Path, bag: Bag) -> None:
    """Let the best epoch's network of a bag score the crystals outside it; leave ``votes.safetensors``."""
    path = folder / VOTES_FILE
    key = votes_key(dataset, bag.outside)
    if path.exists() and read_tensors(path)[1].get("key") == key:
        return
    (network,) = load_model(folder / "best" / MODEL_FILE).members
    with reproducible(config.train):
        device = engine(config.train).device
        target = config.targets[0].name
        found = combined_part([network.folded().to(device)], dataset, bag.outside).decoded[target]
    write_tensors(path, {"probability": found.double().cpu()}, {"kind": "votes", "bag": bag.number, "key": key})


def read_votes(dataset: CrystalDataset, folder: Path, bag: Bag) -> NDArray[np.float64]:
    """Return the probabilities of the crystals outside a bag (n,).

    Raises:
        CheckpointError: The file is missing, damaged, or tells of other crystals.
    """
    path = folder / VOTES_FILE
    tensors, content = read_tensors(path)
    found = tensors.get("probability", torch.empty(0))
    if content.get("key") != votes_key(dataset, bag.outside) or found.shape != bag.outside.shape:
        raise CheckpointError(f"{path}: holds the votes on other crystals; remove it, and --resume makes it again")
    return found.numpy()


def votes_key(dataset: CrystalDataset, outside: Indices) -> str:
    """Return a key of the crystals that a bag scores, and of their order."""
    return hashlib.sha256("\n".join(_ids(dataset, outside)).encode()).hexdigest()


def _ids(dataset: CrystalDataset, indices: Indices) -> Sequence[str]:
    return [dataset.ids[index] for index in indices.tolist()]
