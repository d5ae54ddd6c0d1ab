"""Descriptors of the crystals of a data set, made once for all networks that see the same ones; in single precision."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cgnn.config import Config
from cgnn.data.dataset import CrystalDataset, by_edges
from cgnn.errors import CheckpointError
from cgnn.model.descriptors import VERSION, CrystalDescriptors, field_of
from cgnn.train.checkpoint import read_tensors, write_tensors


def describe(dataset: CrystalDataset, config: Config, path: Path) -> None:
    """Give the batches of a data set the descriptors that networks of some settings would make of them again and again.

    Args:
        dataset: The crystals.
        config: All settings; nothing is done where ``model.descriptors`` is empty.
        path: File of the descriptors: read where it holds them, else written.
    """
    names = config.model.descriptors
    if not names:
        return
    content = {"kind": "descriptors", "version": VERSION, "names": list(names), "crystals": _key(dataset)}
    values = _stored(path, content)
    if values is None:
        values = _made(dataset, CrystalDescriptors(names, None))
        write_tensors(path, {"descriptors": values}, content)
    dataset.give(field_of(names), values)


def _stored(path: Path, content: dict[str, object]) -> Tensor | None:
    if not path.exists():
        return None
    try:
        tensors, found = read_tensors(path)
    except CheckpointError as error:
        warnings.warn(f"{error}; it is made again", stacklevel=4)
        return None
    return tensors.get("descriptors") if found == content else None


@torch.no_grad()
def _made(dataset: CrystalDataset, descriptors: CrystalDescriptors) -> Tensor:
    parts = by_edges(dataset, np.arange(len(dataset)))
    return torch.cat([descriptors(dataset.batch(part)).float() for part in parts])


def _key(dataset: CrystalDataset) -> str:
    return hashlib.sha256(dataset.store.key.encode() + dataset.rows.tobytes()).hexdigest()
