import numpy as np
import pytest
from scipy.stats import beta

from cgnn.errors import ConfigError, DataError
from cgnn.train.pu.prior import (
    CALIBRATIONS,
    DELTA,
    GAMMA,
    PRIORS,
    best_bin,
    calibrated,
    elkan_noto,
    labelled_share,
    prior_error,
    threshold_for,
)


def mixture(rng, alpha, *, sharpness=8, ratio=1.0, numbers=(4000, 8000)):
    """Scores of the ideal classifier of a mixture of beta densities, and the truth about the unlabelled."""
    positive, negative = beta(sharpness, 2), beta(2, sharpness)
    truth = rng.random(numbers[1]) < alpha
    drawn = np.where(truth, positive.rvs(numbers[1], random_state=rng), negative.rvs(numbers[1], random_state=rng))
    known = positive.rvs(numbers[0], random_state=rng)

    def density_ratio(x):
        return positive.pdf(x) / (alpha * positive.pdf(x) + (1 - alpha) * negative.pdf(x))

    scores = [density_ratio(x) / (density_ratio(x) + ratio) for x in (known, drawn)]
    return *scores, truth, alpha * density_ratio(drawn)


@pytest.mark.parametrize("way", PRIORS)
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 0.6])
def test_priors_of_known_mixtures(way, alpha, rng):
    known, others, _, _ = mixture(rng, alpha)
    assert PRIORS[way](known, others) == pytest.approx(alpha, abs=0.05)


@pytest.mark.parametrize("way", PRIORS)
def test_a_prior_is_a_share(way, rng):
    for known, others in (([1.0], [0.0]), ([0.0], [1.0]), ([0.5], [0.5]), (rng.random(7), rng.random(3))):
        assert 0 <= PRIORS[way](known, others) <= 1
    assert PRIORS[way](known, others) == PRIORS[way](np.append(known, np.nan), np.append(others, np.nan))


@pytest.mark.parametrize("way", PRIORS)
@pytest.mark.parametrize(
    ("known", "others", "message"),
    [
        ([], [0.5], "held-out positives: none has a score"),
        ([0.5], [np.nan], "unlabelled crystals: none has a score"),
        ([0.5], [0.2, 1.5, -1.0], "unlabelled crystals: 2 scores are no probabilities, the first is 1.5"),
    ],
)
def test_what_is_no_score(way, known, others, message):
    with pytest.raises(DataError, match=message):
        PRIORS[way](known, others)


def test_elkan_noto_written_out_again():
    assert elkan_noto([0.9, 0.7], [0.1]) == pytest.approx((1 - 0.8) / 0.8, abs=1e-12)
    assert elkan_noto([0.9, 0.7], [0.1], ratio=2.0) == pytest.approx((1 - 0.8) / (2 * 0.8), abs=1e-12)


def test_elkan_noto_knows_the_ratio_of_the_draw(rng):
    known, others, _, _ = mixture(rng, 0.3, ratio=3.0, sharpness=20)
    assert elkan_noto(known, others, ratio=3.0) == pytest.approx(0.3, abs=0.03)
    assert elkan_noto(known, others) > 0.8  # each draw of three for one looks like more positives


def test_overlap_raises_elkan_noto_but_not_best_bin(rng):
    known, others, _, _ = mixture(rng, 0.3, sharpness=4)
    assert elkan_noto(known, others) > 0.4
    assert best_bin(known, others) == pytest.approx(0.3, abs=0.06)


def test_best_bin_written_out_again(rng):
    known, others = rng.beta(5, 2, 60), rng.beta(2, 3, 90)
    best, alpha = np.inf, None
    for z in known:
        above_known, above_others = (known >= z).mean(), (others >= z).mean()
        bound = np.sqrt(np.log(4 / DELTA) / (2 * 90)) + np.sqrt(np.log(4 / DELTA) / (2 * 60))
        value = above_others / above_known + (1 + GAMMA) / above_known * bound
        if value < best:
            best, alpha = value, above_others / above_known
    assert best_bin(known, others) == pytest.approx(min(alpha, 1.0), abs=1e-12)
    assert best_bin(known**3, others**3) == best_bin(known, others)


def test_error_of_a_prior(rng):
    draws = [mixture(rng, 0.3, numbers=(300, 600))[:2] for _ in range(60)]
    true_error = np.std([elkan_noto(*draw) for draw in draws], ddof=1)
    stated = np.mean([prior_error("elkan_noto", *draw) for draw in draws[:10]])
    assert stated == pytest.approx(true_error, rel=0.4)
    assert prior_error("best_bin", *draws[0], seed=3) == prior_error("best_bin", *draws[0], seed=3)
    with pytest.raises(ConfigError, match="unknown prior 'best_bim'; did you mean 'best_bin'"):
        prior_error("best_bim", *draws[0])


def test_labelled_share_agrees_with_elkan_noto():
    alpha = elkan_noto([0.8], [0.1], ratio=2.0)
    assert labelled_share(alpha, 100, 200) == pytest.approx(0.8, abs=1e-12)  # c is the mean score of positives


@pytest.mark.parametrize("way", CALIBRATIONS)
def test_calibrated_scores_are_probabilities(way, rng):
    known, others, truth, exact = mixture(rng, 0.3, sharpness=3)
    found = calibrated(others, 0.3, known, others, way=way)
    # isotonic steps wobble where few crystals are; the others have one or no coefficient to fit
    assert np.abs(found - exact).mean() < (0.02 if way == "isotonic" else 0.01)
    for low, high in ((0.0, 0.2), (0.2, 0.5), (0.5, 1.0001)):
        here = (found >= low) & (found < high)
        assert truth[here].mean() == pytest.approx(found[here].mean(), abs=0.06)  # of some hundreds in each


@pytest.mark.parametrize("way", CALIBRATIONS)
def test_calibration_keeps_order_and_gaps(way, rng):
    known, others, _, _ = mixture(rng, 0.2, numbers=(200, 400))
    scores = np.array([0.9, np.nan, 0.0, 0.5, 1.0])
    found = calibrated(scores, 0.2, known, others, way=way)
    assert np.isnan(found).tolist() == [False, True, False, False, False]
    assert (np.diff(found[[2, 3, 0, 4]]) >= 0).all()
    assert ((found[[0, 2, 3, 4]] >= 0) & (found[[0, 2, 3, 4]] <= 1)).all()
    assert calibrated(scores, 0.0, known, others, way=way)[[0, 2, 3, 4]].tolist() == [0.0] * 4


def test_squeezed_scores_are_stretched_again(rng):
    known, others, _, exact = mixture(rng, 0.3, sharpness=3)
    squeezed = [0.35 + 0.3 * scores for scores in (known, others)]  # as the mean of many bags does
    assert np.abs(calibrated(squeezed[1], 0.3, *squeezed) - exact).mean() < 0.02
    assert np.abs(calibrated(squeezed[1], 0.3, *squeezed, way="odds") - exact).mean() > 0.1


def test_odds_written_out_again():
    found = calibrated([0.2, 0.5, 0.9, 1.0], 0.25, [0.9], [0.1], way="odds", ratio=2.0)
    assert found == pytest.approx([0.25 * 2 * 0.2 / 0.8, 0.25 * 2, 1.0, 1.0], abs=1e-12)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, np.nan])
def test_calibration_wants_a_share(alpha):
    with pytest.raises(DataError, match=r"share of positives .*: expected a number from 0 to 1"):
        calibrated([0.5], alpha, [0.9], [0.1])


def test_threshold_for_a_recall(rng):
    scores = rng.random(50)
    for recall in (0.02, 0.5, 0.9, 0.91, 1.0):
        threshold = threshold_for(recall, scores)
        assert (scores >= threshold).mean() >= recall - 1e-12
        assert (scores > threshold).mean() < recall - 1e-12
    assert threshold_for(0.5, [0.1, 0.4, np.nan]) == 0.4
    with pytest.raises(DataError, match="recall 0: expected a share above 0 and up to 1"):
        threshold_for(0, scores)
