"""Rankings against closed forms, and one contract for all."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from cgnn.physics.ashby import pareto_front
from cgnn.screen.ranking import RANKINGS, Aim, ordered_front

POINTS = norm.ppf((np.arange(20_000) + 0.5) / 20_000)
MIDDLE, WIDTH, AIM = np.array([20.0, 30.0]), np.array([8.0, 1.0]), Aim(quantile=0.16, threshold=28.0)
DRAWS = MIDDLE[:, None] + WIDTH[:, None] * POINTS
Z = (MIDDLE - AIM.threshold) / WIDTH
CLOSED = {
    "value": MIDDLE,
    "mean": MIDDLE,
    "lower_bound": MIDDLE + WIDTH * norm.ppf(0.16),
    "probability": norm.cdf(Z),
    "expected_improvement": WIDTH * (Z * norm.cdf(Z) + norm.pdf(Z)),
    "pareto": MIDDLE + WIDTH * norm.ppf(0.16),
}


@pytest.mark.parametrize("name", RANKINGS)
def test_normal_distributions(name: str) -> None:
    np.testing.assert_allclose(RANKINGS[name].score(DRAWS, AIM), CLOSED[name], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", RANKINGS)
def test_contract(name: str, rng: np.random.Generator) -> None:
    draws = rng.lognormal(3.0, 0.3, (5, 64))
    ranking = RANKINGS[name]
    scores = ranking.score(draws, AIM)
    assert scores.shape == (5,)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(ranking.score(draws[[3, 1]], AIM), scores[[3, 1]])  # no company changes a score
    assert (ranking.score(draws + 5, AIM) >= scores).all()  # better is never worse
    few, most = draws.copy(), draws.copy()
    few[0, :10], most[0, :40] = np.nan, np.nan
    assert np.isfinite(ranking.score(few, AIM)).all()
    assert np.isnan(ranking.score(most, AIM)).tolist() == [True, False, False, False, False]
    assert ranking.score(np.zeros((0, 1)), AIM).shape == (0,)


def test_front_is_the_pareto_front_with_its_ends_first(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(200, 2))
    rows = ordered_front(scores, [f"{row:03d}" for row in range(200)])
    assert sorted(rows) == sorted(pareto_front(list(scores.T)))
    ends = {int(scores[:, 0].argmax()), int(scores[:, 1].argmax())}
    assert set(rows[:2].tolist()) == ends
    assert ordered_front(np.zeros((0, 2)), []).tolist() == []
