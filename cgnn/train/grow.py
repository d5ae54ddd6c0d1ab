"""Growing boosted trees where the heads of a network are such (``model.head: trees``), in place of epochs."""

from __future__ import annotations

from collections.abc import Mapping
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
from cgnn.model.trees import BoostedTrees
from cgnn.targets import Target
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


def check(config: Config, method: Method) -> None:
    """Check that trees can do what the settings ask for.

    Raises:
        ConfigError: Names what they can't.
    """
    model, train = config.model, config.train
    refused = {
        "train.compile": train.compile,
        "train.devices": train.devices * train.nodes > 1,
        "model.spread": model.spread,
        "model.remedy": model.remedy != "none",
        f"train.loss {train.loss}": train.loss not in LOSSES,
        "targets of atoms": any(target.level != "crystal" for target in config.targets),
        "targets of several classes": any(target.task == "multiclass" for target in config.targets),
        f"a way of learning in steps ({type(method).__name__})": method.needs_steps,
    }
    for what in (name for name, is_asked in refused.items() if is_asked):
        raise ConfigError(f"model.head trees: not with {what}")
    if not model.depth and not model.descriptors:
        raise ConfigError("model.head trees: needs model.descriptors, where model.depth is 0")
    if model.depth and config.transfer is None:
        raise ConfigError(
            "model.head trees: convolutions are not trained with them; set transfer.init_from, a network whose are, or "
            "model.depth 0 for trees over descriptors alone"
        )


def grow(
    model: CrystalGNN, dataset: CrystalDataset, indices: Indices, method: Method, config: Config
) -> dict[str, Tensor]:
    """Grow the trees of all heads of a network over what they see of some crystals.

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
    # drawn after the method has begun, so members of an ensemble grow other trees
    seed = int(torch.randint(2**31 - 1, (1,)))
    with threadpool_limits(torch.get_num_threads()):
        for target in config.targets:
            _grow(model, target, features, dataset.label(target, indices), method.weights(indices), config, seed)
    return {target.name: _raw(model, target, features) for target in config.targets}


def _grow(
    model: CrystalGNN,
    target: Target,
    features: NDArray[np.float32],
    labels: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
    config: Config,
    seed: int,
) -> None:
    """Grow the trees of one head, and check that it says what they say."""
    # slow to import, and networks of layers never need it
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    head = model.head(target.name)
    trees = head.net
    assert isinstance(trees, BoostedTrees)
    known = np.isfinite(labels) & (True if weights is None else weights > 0)
    count = None if weights is None else weights[known]
    common = {**SETTINGS, "max_iter": config.model.trees, "max_leaf_nodes": config.model.leaves, "random_state": seed}
    if len(np.unique(labels[known])) < (2 if target.task == "binary" else 1):
        wanted = "labels of both classes" if target.task == "binary" else "a label at least"
        raise DataError(f"target {target.name!r}: trees need {wanted}")
    if target.task == "binary":
        grown = HistGradientBoostingClassifier(**common).fit(features[known], labels[known], count)
        expected = grown.decision_function(features[known][:CHECKED])
    else:
        grown = HistGradientBoostingRegressor(loss=LOSSES[config.train.loss], **common)
        grown.fit(features[known], _scaled(head, labels[known]), count)
        expected = grown.predict(features[known][:CHECKED])
    # scikit-learn has no public way to its nodes; that these are understood is checked right below
    trees.grow(float(np.ravel(grown._baseline_prediction)[0]), [step[0].nodes for step in grown._predictors])
    found = _raw(model, target, features[known][:CHECKED])[:, 0].cpu().numpy()
    if np.abs(found - expected).max() > TOLERANCE * (1 + np.abs(expected).max()):
        raise NumericsError(f"target {target.name!r}: the stored trees do not say what scikit-learn's said")


def _scaled(head: Head, labels: NDArray[np.float64]) -> NDArray[np.float64]:
    assert isinstance(head, Regression)
    return head.scaled(torch.from_numpy(labels).to(head.mean.device)).cpu().numpy()


@torch.no_grad()
def _raw(model: CrystalGNN, target: Target, features: NDArray[np.float32]) -> Tensor:
    head = model.head(target.name)
    device = next(head.buffers()).device
    parts = [head(torch.from_numpy(part).to(device)) for part in np.array_split(features, len(features) // AT_ONCE + 1)]
    return torch.cat(parts)
