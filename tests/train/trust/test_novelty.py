import numpy as np
import pytest
import torch

from cgnn.errors import CheckpointError
from cgnn.train.trust.novelty import DIRECTIONS, FEWEST, POINTS, Novelty


def features(rng, number, width=8, shift=0.0):
    """Features that live in three directions of very different spread, with noise in all."""
    hidden = rng.normal(size=(number, 3)) * [3.0, 1.0, 0.2]
    mixing = np.random.default_rng(1).normal(size=(3, width))
    return hidden @ mixing + 0.05 * rng.normal(size=(number, width)) + shift


def test_what_is_like_training_is_near(rng):
    novelty = Novelty.fit(features(rng, 800))
    found = novelty.relative(features(rng, 4000))
    assert np.mean(found > 1) == pytest.approx(0.01, abs=0.01)
    assert (found >= 0).all()


def test_what_is_unlike_training_is_far(rng):
    novelty = Novelty.fit(features(rng, 400))
    away = np.zeros(8)
    away[2] = 1.0  # small beside the spread of the features, large beside that across their three directions
    assert (novelty.relative(features(rng, 100, shift=away)) > 1).mean() > 0.95


def test_distance_by_hand():
    novelty = Novelty(np.array([1.0, 0.0]), np.diag([2.0, 1.0]), np.array([[0.0, 0.0], [4.0, 0.0]]), 0.5)
    # whitened: (4, 3), nearest is (4, 0): 3 / 0.5
    assert novelty.relative([[3.0, 3.0], [1.0, 0.0]]) == pytest.approx([6, 0])


def test_the_scale_of_a_feature_does_not_matter(rng):
    scale = np.array([1.0, 10.0, 0.1, 1.0, 5.0, 1.0, 1.0, 2.0])
    train, test = features(rng, 300), features(rng, 50)
    plain, scaled = Novelty.fit(train), Novelty.fit(train * scale)
    assert scaled.relative(test * scale) == pytest.approx(plain.relative(test), rel=1e-3)


def test_the_stored_part_stays_small(rng):
    novelty = Novelty.fit(rng.normal(size=(POINTS * 2 + 400, 256)))
    assert novelty.points.shape == (POINTS, DIRECTIONS)
    assert sum(tensor.nbytes for tensor in novelty.to_tensors().values()) < 200_000


def test_stored_and_read_it_says_the_same(rng):
    novelty = Novelty.fit(features(rng, 160))
    again = Novelty.from_tensors(novelty.to_tensors(), 8)
    test = features(rng, 20)
    assert np.array_equal(again.relative(test), novelty.relative(test))
    assert Novelty.from_tensors({}, 8) is None


def test_flat_directions_are_left_out(rng):
    train = features(rng, 100)
    train[:, 5] = 2.0
    novelty = Novelty.fit(train)
    assert novelty.points.shape[1] == 7
    assert np.isfinite(novelty.relative(train)).all()


@pytest.mark.parametrize("train", [np.zeros((0, 4)), np.ones((500, 4)), np.eye(FEWEST - 1)])
def test_too_few_crystals_give_no_reference(train):
    assert Novelty.fit(train) is None


def test_the_fewest_crystals_do():
    novelty = Novelty.fit(np.eye(FEWEST))
    assert np.isfinite(novelty.relative(np.eye(FEWEST))).all()


def hostile():
    good = Novelty.fit(np.random.default_rng(0).normal(size=(120, 3))).to_tensors()
    bad = torch.full_like(good["points"], float("nan"))
    return {
        "missing": ({"mean": good["mean"]}, "expected mean, points, threshold, whitening"),
        "width": (good | {"mean": torch.zeros(4)}, "shapes do not fit a network of width 3"),
        "whitening": (good | {"whitening": torch.zeros(3, 2)}, "shapes do not fit"),
        "no points": (good | {"points": torch.zeros(0, 3)}, "shapes do not fit"),
        "flat points": (good | {"points": torch.zeros(3)}, "shapes do not fit"),
        "threshold": (good | {"threshold": torch.zeros(2)}, "shapes do not fit"),
        "nan": (good | {"points": bad}, "expected finite numbers"),
        "zero": (good | {"threshold": torch.zeros(1)}, "a threshold above zero"),
        "negative": (good | {"threshold": torch.full((1,), -1.0)}, "a threshold above zero"),
    }


@pytest.mark.parametrize("name", hostile())
def test_hostile_references_are_refused(name):
    tensors, match = hostile()[name]
    with pytest.raises(CheckpointError, match=match):
        Novelty.from_tensors(tensors, 3)
