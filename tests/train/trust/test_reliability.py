import math

import numpy as np
import pytest
from scipy.stats import norm

from cgnn.targets import Target
from cgnn.train.trust.calibration import Calibration
from cgnn.train.trust.reliability import (
    calibration_error,
    coverage,
    coverage_curve,
    interval_score,
    miscalibration_area,
    rank_correlation,
    reliability,
    retention,
    spread_bins,
)

BULK = Target(name="bulk_modulus", unit="GPa", transform="log10")
ENERGY = Target(name="formation_energy", unit="eV/atom")


def test_coverage_and_interval_score_by_hand():
    residual, half = [0.5, -2.0, 3.0, 0.0], [1.0, 1.0, 2.0, 0.0]
    assert coverage(residual, half) == 0.5
    # widths 2, 2, 4, 0; two misses of 1 each, weighed by 2 / 0.1
    assert interval_score(residual, half, 0.9) == pytest.approx((8 + 2 * 20) / 4)


def test_the_interval_score_is_smallest_at_the_quantile(rng):
    residual = rng.normal(size=20_000)
    halves = np.linspace(0.5, 3, 51)
    best = halves[np.argmin([interval_score(residual, half, 0.9) for half in halves])]
    assert best == pytest.approx(norm.ppf(0.95), abs=0.1)


def test_miscalibration_area_by_hand():
    levels = np.linspace(0, 1, 11)[1:-1]
    assert miscalibration_area(levels, levels) == 0
    assert miscalibration_area([0.5], [1.0]) == pytest.approx(0.25)  # a triangle of height 0.5
    dense = np.linspace(0, 1, 2001)[1:-1]
    assert miscalibration_area(dense, np.ones_like(dense)) == pytest.approx(0.5, abs=1e-3)
    assert miscalibration_area(dense, dense**2) == pytest.approx(1 / 6, abs=1e-6)
    # gaps of +0.1 and -0.1: the curve crosses the diagonal half way, and half of each trapezoid is on either side
    assert miscalibration_area([0.4, 0.6], [0.5, 0.5]) == pytest.approx(0.4 * 0.1 / 2 * 2 + 2 * 0.1 * 0.1 / 2)


def test_spread_bins_of_true_spreads(rng):
    sigma = rng.lognormal(0, 1, 50_000)
    bins = spread_bins(sigma * rng.normal(size=50_000), sigma)
    assert bins.counts.tolist() == [5000] * 10
    assert (np.diff(bins.stated) > 0).all()
    assert bins.found == pytest.approx(bins.stated, rel=0.1)
    assert calibration_error(bins) < 0.05
    twice = spread_bins(2 * sigma * rng.normal(size=50_000), sigma)
    assert calibration_error(twice) == pytest.approx(1, abs=0.05)  # |s - 2 s| / s


def test_spread_bins_of_few_crystals():
    assert spread_bins(np.ones(25), np.arange(1.0, 26)).counts.tolist() == [13, 12]
    assert spread_bins(np.ones(25), np.ones(25)).counts.tolist() == [25]
    assert spread_bins([2.0], [1.0]).found == pytest.approx([2])


def test_rank_correlation_ends(rng):
    error = rng.normal(size=100)
    assert rank_correlation(error, np.abs(error)) == pytest.approx(1)
    assert rank_correlation(error, -np.abs(error)) == pytest.approx(-1)
    assert math.isnan(rank_correlation(error, np.ones(100)))


def test_retention_by_hand():
    curve = retention([-1.0, 4.0, 2.0, 1.0], [0.1, 0.2, 0.3, 0.4])
    assert curve.dropped == pytest.approx([0, 0.25, 0.5, 0.75])
    assert curve.by_spread == pytest.approx([2, 7 / 3, 2.5, 1])
    assert curve.by_error == pytest.approx([2, 4 / 3, 1, 1])
    assert curve.at_random == pytest.approx([2, 2, 2, 2])
    assert curve.gain == pytest.approx((0 - 1 / 3 - 0.5 + 1) / (0 + 2 / 3 + 1 + 1))


def test_retention_ends(rng):
    error = rng.normal(size=200)
    assert retention(error, np.abs(error)).gain == pytest.approx(1)
    assert retention(error, np.ones(200)).gain == pytest.approx(0, abs=1e-9)
    assert retention(error, -np.abs(error)).gain < -0.5
    assert retention(np.zeros(5), np.arange(5.0)).gain == 0


def calibrated(rng, number=4000, target=BULK):
    within = rng.lognormal(-3, 0.7, number)
    value = rng.normal(1.9, 0.3, number)
    learned = value + within * rng.normal(size=number)
    truth = 10**learned if target is BULK else learned
    half = number // 2
    fitted = Calibration.fit(target, value[:half], np.zeros(half), within[:half], truth[:half])
    return fitted, value[half:], fitted.sigma(np.zeros(half), within[half:]), truth[half:]


def test_scores_of_a_true_model(rng):
    calibration, value, sigma, truth = calibrated(rng)
    truth[:10] = np.nan
    scores = reliability(BULK, truth, value, sigma, calibration)
    assert scores["coverage_90"] == pytest.approx(0.9, abs=0.03)
    assert scores["miscalibration_area"] < 0.03
    assert scores["width_90_log10"] < 0.95 * scores["baseline_width_90_log10"]
    assert scores["interval_score_90_log10"] < scores["baseline_interval_score_90_log10"]
    assert scores["spread_rank"] > 0.3
    assert 0.2 < scores["retention_gain"] < 1
    assert scores["spread_error"] < 0.2
    half = calibration.half_width(0.9) * sigma[10:]
    width = np.mean(10 ** (value[10:] + half) - 10 ** (value[10:] - half))
    assert scores["width_90"] == pytest.approx(width)


def test_coverage_curve_of_a_true_model(rng):
    calibration, value, sigma, truth = calibrated(rng, target=ENERGY)
    levels, found = coverage_curve(truth - value, sigma, calibration)
    assert levels[[0, -1]] == pytest.approx([0.05, 0.95])
    assert found == pytest.approx(levels, abs=0.05)


def test_scores_without_a_transform_and_with_one_width(rng):
    calibration, value, sigma, truth = calibrated(rng, target=ENERGY)
    scores = reliability(ENERGY, truth, value, np.full_like(sigma, 0.1), calibration)
    assert "spread_rank" not in scores
    assert not any(key.endswith("none") for key in scores)
    assert scores["width_90"] == pytest.approx(0.2 * calibration.half_width(0.9))
    assert scores["baseline_width_90"] == pytest.approx(2 * calibration.constant)


def test_no_labels_no_scores(rng):
    calibration, value, sigma, truth = calibrated(rng)
    assert reliability(BULK, np.full_like(truth, np.nan), value, sigma, calibration) == {}
