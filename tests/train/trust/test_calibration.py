import json
import math

import numpy as np
import pytest
from scipy.stats import binom

from cgnn.errors import CheckpointError
from cgnn.targets import TRANSFORMS, Target
from cgnn.train.trust.calibration import FEW, FEWEST, Calibration, interval, std

BULK = Target(name="bulk_modulus", unit="GPa", transform="log10")
ENERGY = Target(name="formation_energy", unit="eV/atom")


def noisy(rng, number, tails=None):
    """Predictions whose errors follow 2 between + 0.5 within² + 1e-4, with normal or heavier tails."""
    within, between = rng.lognormal(-3, 0.7, number), rng.lognormal(-7, 1.5, number)
    sigma = np.sqrt(2 * between + 0.5 * within**2 + 1e-4)
    noise = rng.normal(size=number) if tails is None else rng.standard_t(tails, number) * np.sqrt((tails - 2) / tails)
    value = rng.normal(1.9, 0.3, number)
    return value, between, within, 10 ** (value + sigma * noise), sigma


@pytest.mark.parametrize("tails", [None, 4.0])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_coverage_of_known_noise_is_within_binomial_error(rng, tails, level):
    """Coverage over many calibrations: its mean within four standard errors of the level."""
    found = []
    for _ in range(60):
        value, between, within, truth, _ = noisy(rng, 300 + 500, tails)
        calibration = Calibration.fit(BULK, value[:300], between[:300], within[:300], truth[:300])
        sigma = calibration.sigma(between[300:], within[300:])
        lower, upper = interval(BULK, value[300:], sigma, calibration.half_width(level))
        found.append(np.mean((lower <= truth[300:]) & (truth[300:] <= upper)))
    # each coverage varies by its 300 calibration and its 500 test crystals
    error = np.sqrt(level * (1 - level) * (1 / 300 + 1 / 500) / len(found))
    assert abs(np.mean(found) - level) < 4 * error


def test_coefficients_of_known_noise_are_found(rng):
    value, between, within, truth, sigma = noisy(rng, 20_000)
    calibration = Calibration.fit(BULK, value, between, within, truth)
    assert calibration.sigma(between, within) == pytest.approx(sigma, rel=0.1)
    assert calibration.between == pytest.approx(2, rel=0.1)
    assert calibration.within == pytest.approx(0.5, rel=0.1)


def test_standardised_residuals_have_unit_variance(rng):
    value, between, within, truth, _ = noisy(rng, 500, tails=4.0)
    calibration = Calibration.fit(BULK, value, between, within, truth)
    scaled = (np.log10(truth) - value) / calibration.sigma(between, within)
    assert np.mean(scaled**2) == pytest.approx(1, rel=1e-9)


def test_intervals_are_narrower_than_constant_ones_where_noise_varies(rng):
    value, between, within, truth, _ = noisy(rng, 2000)
    calibration = Calibration.fit(BULK, value[:500], between[:500], within[:500], truth[:500])
    width = calibration.half_width(0.9) * calibration.sigma(between[500:], within[500:])
    assert width.mean() < 0.97 * calibration.constant
    inside = np.abs(np.log10(truth[500:]) - value[500:]) <= width
    assert binom.cdf(inside.sum(), 1500, 0.86) > 0.01  # as sure as the wider ones


def test_a_model_without_spread_gets_the_constant_width(rng):
    value, _, _, truth, _ = noisy(rng, 200)
    nothing = np.zeros(200)
    calibration = Calibration.fit(BULK, value, nothing, nothing, truth)
    assert (calibration.between, calibration.within) == (0, 0)
    residual = np.log10(truth) - value
    assert calibration.sigma(0.0, 0.0) == pytest.approx(np.sqrt(np.mean(residual**2)))
    assert calibration.half_width(0.9) * calibration.sigma(0.0, 0.0) == pytest.approx(calibration.constant)
    assert calibration.constant == np.sort(np.abs(residual))[181 - 1]  # ceil(201 * 0.9) = 181


def test_few_labels_give_one_width(rng):
    value, between, within, truth, _ = noisy(rng, FEW)
    truth[0] = np.nan
    calibration = Calibration.fit(BULK, value, between, within, truth)
    assert (calibration.between, calibration.within, calibration.count) == (0, 0, FEW - 1)


def test_quantiles_are_those_of_the_finite_sample():
    """Against numpy: the ceil((n + 1) q)-th smallest is its quantile of method "inverted_cdf" at (n + 1) q / n."""
    sizes = np.arange(1, 20) / 10  # 19 residuals
    calibration = Calibration.fit(ENERGY, np.zeros(19), np.zeros(19), np.zeros(19), sizes * (-1) ** np.arange(19))
    unit = calibration.sigma(0.0, 0.0)
    for percent in range(1, 96):
        wanted = np.quantile(
            sizes, (20 * percent - 0.5) / 1900, method="inverted_cdf"
        )  # half a per cent of a rank less
        assert calibration.half_width(percent / 100) * unit == pytest.approx(wanted)
    assert calibration.half_width(0.96) == math.inf  # 20 * 0.96 > 19: no finite interval is known to cover so much
    assert calibration.half_width(0.891) == calibration.half_width(0.9)
    assert len(calibration.quantiles) == 95


def test_fewest_labels_are_enough_for_the_interval_of_tables(rng):
    value, between, within, truth, _ = noisy(rng, FEWEST)
    assert math.isfinite(Calibration.fit(BULK, value, between, within, truth).half_width(0.9))
    truth[3] = np.nan
    with pytest.raises(ValueError, match=r"calibration of 'bulk_modulus': 9 labels, at least 10 wanted"):
        Calibration.fit(BULK, value, between, within, truth)


@pytest.mark.parametrize("level", [0.0, -0.5, 0.995, 1.0, math.nan])
def test_impossible_levels(rng, level):
    value, between, within, truth, _ = noisy(rng, 20)
    with pytest.raises(ValueError, match=r"expected a share above 0 and up to 0\.99"):
        Calibration.fit(BULK, value, between, within, truth).half_width(level)


def test_an_outlier_hardly_moves_the_weights(rng):
    value, between, within, truth, _ = noisy(rng, 2000)
    before = Calibration.fit(BULK, value, between, within, truth)
    truth[7] *= 1000
    after = Calibration.fit(BULK, value, between, within, truth)
    assert after.within / after.between == pytest.approx(before.within / before.between, rel=0.1)
    assert after.half_width(0.9) * after.sigma(1e-3, 0.05) == pytest.approx(
        before.half_width(0.9) * before.sigma(1e-3, 0.05), rel=0.05
    )


def test_perfect_predictions_have_a_width_above_zero():
    zeros = np.zeros(60)
    calibration = Calibration.fit(ENERGY, np.arange(60.0), zeros, np.ones(60), np.arange(60.0))
    assert 0 < calibration.sigma(0.0, 0.0) < 1e-9
    assert calibration.half_width(0.9) == 0
    assert Calibration.from_dict(calibration.to_dict()) == calibration


@pytest.mark.parametrize("transform", list(TRANSFORMS))
def test_std_is_in_the_targets_unit(transform):
    """Against the derivative of the transform, to second order in the width."""
    target = Target(name="y", unit="GPa", transform=transform)
    value, small = np.array([0.5, 1.0, 2.0]), 1e-4
    inverse = TRANSFORMS[transform].inverse
    slope = (inverse(value + 1e-6) - inverse(value - 1e-6)) / 2e-6
    assert std(target, value, np.full(3, small)) == pytest.approx(slope * small, rel=1e-6)


def test_std_of_a_logarithm_by_hand():
    """0.1 in log10 at 100 GPa: 100 sinh(0.1 ln 10) GPa, and an interval that is not symmetric."""
    assert std(BULK, [2.0], [0.1]) == pytest.approx([100 * math.sinh(0.1 * math.log(10))])
    lower, upper = interval(BULK, [2.0], [0.1], 2.0)
    assert (lower, upper) == (pytest.approx([10**1.8]), pytest.approx([10**2.2]))
    assert interval(BULK, [-3.0], [5.0], 1.6)[0] > 0


def test_widths_beyond_all_numbers_are_infinite():
    lower, upper = interval(BULK, [1e5], [1.0], 1.6)
    assert (lower, upper) == (math.inf, math.inf)


def test_calibration_survives_json(rng):
    value, between, within, truth, _ = noisy(rng, 80)
    calibration = Calibration.fit(BULK, value, between, within, truth)
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


GOOD = {
    "between": 1.0, "within": 0.0, "floor": 0.1, "quantiles": [0.1] * 90, "constant": 0.2, "count": 10,
}  # fmt: skip
HOSTILE = {
    "no mapping": [1, 2],
    "missing": {key: GOOD[key] for key in list(GOOD)[1:]},
    "additional": GOOD | {"__class__": "os.system"},
    "nan": GOOD | {"between": math.nan},
    "infinite": GOOD | {"constant": math.inf},
    "huge": GOOD | {"within": 10**400},
    "negative": GOOD | {"within": -1.0},
    "no floor": GOOD | {"floor": 0.0},
    "text": GOOD | {"floor": "0.1"},
    "bool": GOOD | {"between": True},
    "falling": GOOD | {"quantiles": [0.2] + [0.1] * 89},
    "too many": GOOD | {"quantiles": [0.1] * 100},
    "nested": GOOD | {"quantiles": [[0.1]] * 90},
    "no list": GOOD | {"quantiles": "0" * 90},
    "count": GOOD | {"count": 10.0},
    "few": GOOD | {"count": 3},
}


@pytest.mark.parametrize("values", HOSTILE.values(), ids=HOSTILE)
def test_hostile_calibrations_are_refused(values):
    with pytest.raises(CheckpointError, match=r"^calibration: expected"):
        Calibration.from_dict(values)
