"""How far a crystal lies from those that a network was trained on, in the network's own features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

from cgnn.errors import CheckpointError

Array = NDArray[np.float64]

POINTS, DIRECTIONS = 500, 64
"""So many reference points and directions are stored at most: below 200 kB."""
FEWEST = 100
"""Different crystals below which there is no reference: half of them must show where `SHARE` of them end."""
SHARE = 0.99
"""Share of the training crystals that lies below the threshold."""
_FLAT = 1e-4
"""Directions in which training crystals spread less than this share of the widest one are left out."""


@dataclass(frozen=True)
class Novelty:
    r"""Distance to the nearest of some points that stand for the training crystals.

    .. math:: d(x) = \min_r \lVert W^\top (x - \bar x) - p_r \rVert

    Args:
        mean: Mean features of the training crystals (F,).
        whitening: Their directions of unit variance, W (F, D).
        points: Points p in these directions (R, D).
        threshold: Distance below which `SHARE` of the training crystals lie that are none of the points.
    """

    mean: Array
    whitening: Array
    points: Array
    threshold: float

    @classmethod
    def fit(cls, features: ArrayLike, seed: int = 0) -> Novelty | None:
        """Take the reference from the features of training crystals (n, F); None for fewer than `FEWEST` different.

        Half of the crystals, and at most `POINTS`, are drawn as points; the others give the threshold: a crystal is no
        measure of its own distance. On moduli, with halides or oxides kept from training, the areas under the ROC curve
        that tells them from other unseen crystals are 0.93 and 0.86; for Mahalanobis distances with a shrunk
        covariance 0.89 and 0.72; for k-means centres of all crystals, none of which is left for the threshold, 0.94
        and 0.90 (``python benchmarks/novelty.py``).

        Args:
            features: What the heads see of each crystal.
            seed: Of what is drawn.
        """
        given = np.asarray(features, dtype=np.float64)
        unique = given[np.sort(np.unique(given, axis=0, return_index=True)[1])]
        if len(unique) < FEWEST:
            return None
        mean = unique.mean(axis=0)
        _, spread, directions = np.linalg.svd(unique - mean, full_matrices=False)
        used = (spread > _FLAT * spread[0]) & (np.arange(len(spread)) < DIRECTIONS)
        whitening = directions[used].T * (np.sqrt(len(unique)) / spread[used])
        order = np.random.default_rng(seed).permutation(len(unique))
        white = (unique[order] - mean) @ whitening
        number = min(POINTS, len(white) // 2)
        points, others = white[:number], white[number:]
        threshold = float(np.quantile(cdist(others, points).min(axis=1), SHARE))
        return cls(_single(mean), _single(whitening), _single(points), float(np.float32(threshold)))

    def relative(self, features: ArrayLike) -> Array:
        """Return distances in units of the threshold (n,) of features (n, F): above one is far from training."""
        white = (np.asarray(features, dtype=np.float64) - self.mean) @ self.whitening
        return cdist(white, self.points).min(axis=1) / self.threshold

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what a model file holds of it, in single precision."""
        threshold = np.array([self.threshold])
        stored = {"mean": self.mean, "whitening": self.whitening, "points": self.points, "threshold": threshold}
        return {name: torch.from_numpy(values.astype(np.float32)) for name, values in stored.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], width: int) -> Novelty | None:
        """Return what `to_tensors` described; None where a model holds nothing.

        Args:
            tensors: As stored.
            width: Features F of the network.

        Raises:
            CheckpointError: Other tensors, shapes or numbers.
        """
        if not tensors:
            return None
        if set(tensors) != {"mean", "whitening", "points", "threshold"}:
            raise CheckpointError(f"reference: expected mean, points, threshold, whitening, got {', '.join(tensors)}")
        mean, whitening, points, threshold = (
            tensors[name].detach().cpu().double().numpy() for name in ("mean", "whitening", "points", "threshold")
        )
        has_shapes = points.ndim == 2 and mean.shape == (width,) and whitening.shape == (width, points.shape[1])
        if not has_shapes or not points.size or threshold.shape != (1,):
            raise CheckpointError(f"reference: shapes do not fit a network of width {width}")
        if not all(np.isfinite(values).all() for values in (mean, whitening, points)) or not 0 < threshold[0] < 1e30:
            raise CheckpointError("reference: expected finite numbers and a threshold above zero")
        return cls(mean, whitening, points, float(threshold[0]))


def _single(values: Array) -> Array:
    """Return the numbers as they are stored, so that a model says the same before and after."""
    return values.astype(np.float32).astype(np.float64)
