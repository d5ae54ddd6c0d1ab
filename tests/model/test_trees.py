"""Boosted trees as tensors: they say what scikit-learn's say."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingRegressor

from cgnn.model import trees
from cgnn.model.trees import BoostedTrees


@pytest.fixture(scope="module")
def grown():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 40, size=(600, 5)).astype(np.float32) / 7  # many values lie on or beside a threshold
    y = np.sin(x[:, 0]) + x[:, 1] * x[:, 2]
    theirs = HistGradientBoostingRegressor(max_iter=30, max_leaf_nodes=12, random_state=0).fit(x, y)
    ours = BoostedTrees(30, 12)
    ours.grow(float(np.ravel(theirs._baseline_prediction)[0]), [step[0].nodes for step in theirs._predictors])
    return theirs, ours, x


def test_trees_say_what_those_of_scikit_learn_say(grown):
    theirs, ours, x = grown
    np.testing.assert_allclose(ours(torch.from_numpy(x))[:, 0], theirs.predict(x), rtol=1e-5, atol=1e-5)


def test_a_feature_on_a_threshold_goes_to_the_left():
    nodes = np.zeros(3, dtype=[("value", "f8"), ("feature_idx", "i8"), ("num_threshold", "f8"),
                               ("left", "i8"), ("right", "i8"), ("is_leaf", "u1")])  # fmt: skip
    nodes["num_threshold"][0], nodes["left"][0], nodes["right"][0] = 0.1, 1, 2
    nodes["value"], nodes["is_leaf"] = [0, -1, 1], [0, 1, 1]
    ours = BoostedTrees(1, 2)
    ours.grow(0.5, [nodes])
    below, above = np.nextafter(np.float32(0.1), np.float32(0)), np.float32(0.1)
    assert float(below) <= 0.1 < float(above)
    assert ours(torch.tensor([[below], [above]]))[:, 0].tolist() == [-0.5, 1.5]


@pytest.mark.skipif(trees.kernel() is None, reason="not built")
@pytest.mark.parametrize("crystals", [0, 1, 15, 16, 17, 600])
def test_the_compiled_way_gives_the_same_numbers(grown, monkeypatch, crystals):
    _, ours, x = grown
    given = torch.from_numpy(x[:crystals])
    given[::7, 1] = torch.nan
    compiled = ours(given)
    monkeypatch.setattr(trees, "kernel", lambda: None)
    torch.testing.assert_close(compiled, ours(given), rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(compiled, ours(given.double()).float(), rtol=1e-6, atol=1e-6)


def test_none_are_grown_yet():
    assert BoostedTrees(3, 4)(torch.ones(2, 7)).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("number", [1e9, -3.0, 0.0, 1.0, float("nan")])
def test_damaged_numbers_lead_nowhere_else(grown, number):
    _, ours, x = grown
    broken = BoostedTrees(30, 12)
    broken.load_state_dict({name: torch.full_like(tensor, number) for name, tensor in ours.state_dict().items()})
    assert broken(torch.from_numpy(x[:4])).shape == (4, 1)
