"""Votes added up, what is known after some bags, and the table."""

import numpy as np
import pytest

from cgnn.errors import DataError
from cgnn.train.pu.scores import Scores, Tally, is_good_enough, standing

IDS = ["d", "b", "a", "c", "e"]


def test_mean_spread_and_votes(rng):
    tally, votes = Tally(5), [[] for _ in IDS]
    for _ in range(7):
        indices = np.sort(rng.choice(4, 2, replace=False))
        said = rng.random(2)
        tally.add(indices, said)
        for index, probability in zip(indices, said, strict=True):
            votes[index].append(probability)
    scores = tally.scores(np.arange(5), IDS)
    assert scores.ids == ("a", "b", "c", "d", "e")
    for name, score, spread, number in zip(scores.ids, scores.clscore, scores.clscore_std, scores.votes, strict=True):
        mine = votes[IDS.index(name)]
        assert number == len(mine)
        assert score == pytest.approx(np.mean(mine) if mine else np.nan, abs=1e-14, nan_ok=True)
        assert spread == pytest.approx(np.std(mine, ddof=1) if len(mine) > 1 else np.nan, abs=1e-14, nan_ok=True)
    assert tally.bags == 7


def test_what_is_known_after_some_bags():
    r"""Errors written out again: s / sqrt(n) in the mean, sqrt(r (1 - r) / P)."""
    unlabelled = Scores(
        ("a", "b", "c", "d"),
        np.array([0.2, 0.6, 0.9, np.nan]),
        np.array([0.1, 0.3, np.nan, np.nan]),
        np.array([4, 9, 1, 0]),
    )
    heldout = Scores(("p", "q", "r", "s"), np.array([0.5, 0.4, 0.8, 0.95]), np.zeros(4), np.full(4, 9))
    tally = Tally(1)
    tally.bags = 9
    row = standing(tally, unlabelled, heldout)
    assert row["bags"] == 9
    assert row["undecided"] == 2
    assert row["score_error"] == pytest.approx((0.1 / 2 + 0.3 / 3) / 2)
    assert row["recall"] == 0.75
    assert row["recall_error"] == pytest.approx(np.sqrt(0.75 * 0.25 / 4))
    assert row["flagged"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("row", "stop_when", "enough"),
    [
        ({"undecided": 0, "score_error": 0.01}, 0.01, True),
        ({"undecided": 0, "score_error": 0.011}, 0.01, False),
        ({"undecided": 1, "score_error": 0.001}, 0.01, False),
        ({"undecided": 0}, 0.01, False),
        ({"undecided": 0, "score_error": 0.0}, None, False),
    ],
)
def test_when_to_stop(row, stop_when, enough):
    assert is_good_enough(row, stop_when) is enough


def test_the_table(tmp_path):
    scores = Scores(
        ("a", "b", "c"), np.array([0.123456789, 0.5, np.nan]), np.array([0.1, np.nan, np.nan]), np.array([3, 1, 0])
    )
    scores.write(tmp_path / "scores.csv")
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines == ["material_id,clscore,clscore_std,votes", "a,0.1234568,0.1,3", "b,0.5,,1", "c,,,0"]
    again = Scores.read(tmp_path / "scores.csv")
    assert again.ids == scores.ids
    np.testing.assert_allclose(again.clscore, scores.clscore, rtol=1e-6)
    np.testing.assert_array_equal(again.votes, scores.votes)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"other\.csv: no table of scores"):
        Scores.read(tmp_path / "other.csv")
