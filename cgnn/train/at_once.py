"""Heads that are fitted at once, in place of epochs: boosted trees and kernel ridge regression (``model.head``)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from cgnn.config import Config
from cgnn.data.dataset import CrystalDataset
from cgnn.errors import ConfigError, DataError, NumericsError
from cgnn.model import CrystalGNN
from cgnn.model.heads import Head, Regression
from cgnn.model.kernel_ridge import KernelRidge
from cgnn.model.trees import BoostedTrees
from cgnn.train.method import Indices, Method
from cgnn.train.trust.assess import features_part

SETTINGS: Mapping[str, Any] = {
    "learning_rate": 0.08,
    "min_samples_leaf": 10,
    "l2_regularization": 1.0,
    "max_features": 0.3,
    "early_stopping": False,
}
"""Of scikit-learn's trees, beside their number and leaves: those of the baseline in benchmarks/tabular_pu.py."""
LOSSES = {"mae": "absolute_error", "mse": "squared_error"}
"""``train.loss`` -> the loss of the trees of a number; that of yes or no is the cross entropy."""
AT_ONCE = 2000
CHECKED = 500
TOLERANCE = 1e-4
MOST = 10_000
"""Crystals that kernel ridge regression takes, of more a draw: the matrix has 0.8 GB, and it takes minutes."""
ROUNDS, KNEE = 3, 0.3
"""How often kernel ridge regression is solved for absolute errors, and below which share of the median of the errors
they count squared: at zero they would count infinitely."""


def check(config: Config, method: Method) -> None:
    """Check that heads that are fitted at once can do what the settings ask for.

    Raises:
        ConfigError: Names what they can't.
    """
    model, train = config.model, config.train
    refused = {
        "train.devices": train.devices * train.nodes > 1,
        "model.spread": model.spread,
        "model.remedy": model.remedy != "none",
        f"train.loss {train.loss}": train.loss not in LOSSES,
        "targets of atoms": any(target.level != "crystal" for target in config.targets),
        "targets of several classes": any(target.task == "multiclass" for target in config.targets),
        "targets of two classes": model.head == "kernel_ridge"
        and any(target.task == "binary" for target in config.targets),
        f"a way of learning in steps ({type(method).__name__})": method.needs_steps,
    }
    for what in (name for name, is_asked in refused.items() if is_asked):
        raise ConfigError(f"model.head {model.head}: not with {what}")
    if not model.depth and not model.descriptors and not model.hints:
        raise ConfigError(f"model.head {model.head}: needs model.descriptors, where model.depth is 0")
    if model.depth and config.transfer is None:
        raise ConfigError(
            f"model.head {model.head}: convolutions are not trained with it; set transfer.init_from, a network whose "
            "are, or model.depth 0 for descriptors alone"
        )


def fit_at_once(
    model: CrystalGNN, dataset: CrystalDataset, indices: Indices, method: Method, config: Config
) -> dict[str, Tensor]:
    """Fit all heads of a network over what they see of some crystals.

    Args:
        model: The network, with scaled heads.
        dataset: Crystals with labels.
        indices: The crystals to learn from.
        method: What a way of learning changes: how much crystals count.
        config: All settings.

    Returns:
        The raw outputs for these crystals, by target name.

    Raises:
        DataError: A target has no labels, or those of one class only.
    """
    features = features_part(model.eval(), dataset, indices).astype(np.float32)
    # drawn after the method has begun, so that members of an ensemble differ
    seed = int(torch.randint(2**31 - 1, (1,)))
    weights = method.weights(indices)
    with threadpool_limits(torch.get_num_threads()):
        for target in config.targets:
            labels = dataset.label(target, indices)
            known = np.isfinite(labels) & (True if weights is None else weights > 0)
            wanted = "labels of both classes" if target.task == "binary" else "a label at least"
            if len(np.unique(labels[known])) < (2 if target.task == "binary" else 1):
                raise DataError(f"target {target.name!r}: model.head {config.model.head} needs {wanted}")
            counts = None if weights is None else weights[known]
            known_ones = _Labelled(model.head(target.name), features[known], labels[known], counts)
            WAYS[config.model.head](known_ones, config, seed)
    return {target.name: _raw(model.head(target.name), features) for target in config.targets}


@dataclass(frozen=True)
class _Labelled:
    """What a head is fitted to: features (n, F) and labels (n,) of crystals, and how much each counts (n,)."""

    head: Head
    features: NDArray[np.float32]
    labels: NDArray[np.float64]
    counts: NDArray[np.float64] | None

    def scaled(self) -> NDArray[np.float64]:
        """Return the labels as raw outputs are to be (n,)."""
        assert isinstance(self.head, Regression)
        return self.head.scaled(torch.from_numpy(self.labels).to(self.head.mean.device)).cpu().numpy()

    def drawn(self, most: int, generator: np.random.Generator) -> _Labelled:
        """Return a draw of so many crystals, or all if they are not more."""
        if len(self.labels) <= most:
            return self
        name, number = self.head.target.name, len(self.labels)
        warnings.warn(f"target {name!r}: kernel ridge regression takes {most:,} of {number:,} crystals", stacklevel=2)
        some = np.sort(generator.permutation(number)[:most])
        counts = None if self.counts is None else self.counts[some]
        return _Labelled(self.head, self.features[some], self.labels[some], counts)

    def check_says(self, expected: NDArray[np.float64]) -> None:
        """Check that the head says of the first crystals what it was fitted to say (n,)."""
        found = _raw(self.head, self.features[: len(expected)])[:, 0].cpu().numpy()
        if np.abs(found - expected).max() > TOLERANCE * (1 + np.abs(expected).max()):
            name = self.head.target.name
            raise NumericsError(f"target {name!r}: the stored head does not say what scikit-learn's said")


def _grow(known: _Labelled, config: Config, seed: int) -> None:
    """Grow the trees of one head, and check that it says what they say."""
    # slow to import, and networks of layers never need it
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    trees = known.head.net
    assert isinstance(trees, BoostedTrees)
    common = {**SETTINGS, "max_iter": config.model.trees, "max_leaf_nodes": config.model.leaves, "random_state": seed}
    if known.head.target.task == "binary":
        grown = HistGradientBoostingClassifier(**common).fit(known.features, known.labels, known.counts)
        expected = grown.decision_function(known.features[:CHECKED])
    else:
        grown = HistGradientBoostingRegressor(loss=LOSSES[config.train.loss], **common)
        grown.fit(known.features, known.scaled(), known.counts)
        expected = grown.predict(known.features[:CHECKED])
    # scikit-learn has no public way to its nodes; that these are understood is checked right below
    trees.grow(float(np.ravel(grown._baseline_prediction)[0]), [step[0].nodes for step in grown._predictors])
    known.check_says(expected)


def _solve(known: _Labelled, config: Config, seed: int) -> None:
    r"""Solve the kernel ridge regression of one head.

    .. math:: (K + \lambda W^{-1})\,a = y, \quad W_{nn} = c_n / \max(|r_n| / \tilde r, 0.3)

    with the ridge :math:`\lambda`, the count of a crystal c, and for absolute errors its error r and their median, of
    the solution before; at first, and for squared errors, the denominator is 1. Of the features a share of
    ``model.dropout``, drawn by the seed, is not seen, so that members of an ensemble differ.

    Source: iteratively reweighted least squares, Holland and Welsch, Commun. Stat. A 6, 813 (1977).
    """
    from sklearn.kernel_ridge import KernelRidge as Solver

    net = known.head.net
    assert isinstance(net, KernelRidge)
    generator = np.random.default_rng(seed)
    seen = generator.random(known.features.shape[1]) >= config.model.dropout
    known = known.drawn(MOST, generator)
    net.learn_scale(known.features, config.model.length, seen)
    kernel, y = net.kernel(net.known).cpu().numpy(), known.scaled()
    counts = np.ones(len(y)) if known.counts is None else known.counts
    weights = counts
    for _ in range(ROUNDS if config.train.loss == "mae" else 1):
        solver = Solver(kernel="precomputed", alpha=config.model.ridge).fit(kernel, y, weights)
        error = np.abs(y - kernel @ solver.dual_coef_)
        weights = counts / np.maximum(error / max(float(np.median(error)), 1e-12), KNEE)
    net.solve(solver.dual_coef_)
    known.check_says(kernel[:CHECKED] @ solver.dual_coef_)


WAYS: dict[str, Callable[[_Labelled, Config, int], None]] = {"trees": _grow, "kernel_ridge": _solve}
"""``model.head`` -> how it is fitted."""


@torch.no_grad()
def _raw(head: Head, features: NDArray[np.float32]) -> Tensor:
    device = next(head.buffers()).device
    parts = [head(torch.from_numpy(part).to(device)) for part in np.array_split(features, len(features) // AT_ONCE + 1)]
    return torch.cat(parts)
