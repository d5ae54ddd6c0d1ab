"""Unlabelled crystals beside the labelled ones of a step."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgnn.config import Config
from cgnn.data.dataset import CrystalDataset
from cgnn.errors import ConfigError, DataError
from cgnn.targets import Target
from cgnn.train.method import Indices, Method, Step


class Companions(Method):
    """Draws crystals of a pool beside the labelled ones, over which steps and epochs are counted.

    So every batch holds labelled crystals, and a fit takes as many steps as one without the pool.

    Args:
        config: Settings of the fit.
        pool: Indices of the crystals that are drawn.
        ratio: How many are drawn for each labelled one.
        key: Tells the method and its settings from others.

    Raises:
        ConfigError: The ratio is not above 0.
        DataError: The pool is empty.
    """

    needs_steps = True

    def __init__(self, config: Config, pool: Indices, ratio: float, key: str) -> None:
        if not ratio > 0:
            raise ConfigError(f"ratio: expected a number above 0, got {ratio!r}")
        if not len(pool):
            raise DataError("no unlabelled crystals to learn from")
        self.config, self.pool, self.ratio = config, pool, ratio
        self.key = f"{key} {ratio!r} {digest(pool)}"

    def draw(self, indices: Indices, epoch: int, step: int) -> Indices:
        """Return the labelled crystals of a step and, behind them, others of the pool."""
        count = min(math.ceil(self.ratio * len(indices)), len(self.pool))
        random = np.random.default_rng([self.config.train.seed, 2, epoch, step])
        return np.concatenate([indices, random.choice(self.pool, count, replace=False)])

    def is_companion(self, step: Step) -> Tensor:
        """Return which crystals of a batch are drawn from the pool (B,)."""
        return torch.from_numpy(np.isin(step.crystals, self.pool)).to(step.batch.z.device)


def check_apart(parts: Mapping[str, Indices], unlabelled: Indices, dataset: CrystalDataset) -> None:
    """Check that unlabelled crystals are in no other part.

    Raises:
        DataError: One is also trained, validated or tested on with its label.
    """
    for name, indices in parts.items():
        both = np.intersect1d(indices, unlabelled)
        if len(both):
            raise DataError(f"{len(both)} unlabelled crystals are in part {name!r} too, such as {dataset.ids[both[0]]}")


def only(batch: Any, targets: tuple[Target, ...], keep: Tensor) -> Any:
    """Return a batch in which only some crystals ``keep (B,)`` have labels."""
    changed = copy.copy(batch)
    for target in targets:
        kept = keep if target.level == "crystal" else keep.index_select(0, batch.batch)
        changed[target.field] = batch[target.field].masked_fill(~kept, math.nan)
    return changed


def digest(*arrays: NDArray[Any]) -> str:
    """Return SHA-256 of some arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape} ".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
