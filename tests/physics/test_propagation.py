"""Errors of the moduli in what is derived from them."""

from __future__ import annotations

import numpy as np
import pytest

from cgnn.errors import ConfigError, DataError
from cgnn.physics import RELATIONS, derivable, derive, lognormal_samples
from cgnn.physics.propagation import QUANTILES

K, G, V, RHO, N = (np.array(column) for column in ([443.0, 98], [535.0, 66.5], [5.67, 20.02], [3.52, 2.33], [2.0, 2.0]))
Z16 = 0.9944578832  # of the standard normal distribution: a share of 16 % lies below -0.9945
Z5 = 1.6448536270


def spread_by_first_order(name: str, sigma: tuple[float, float], r: float) -> np.ndarray:
    """Return the relative spread of a property from its derivatives by both logarithms."""
    relation = RELATIONS[name]
    inputs = {"bulk": K, "shear": G, "volume_per_atom": V, "density": RHO, "atoms_per_cell": N}

    def value(dk: float, dg: float) -> np.ndarray:
        changed = {**inputs, "bulk": K * np.exp(dk), "shear": G * np.exp(dg)}
        return np.asarray(relation.function(*(changed[need] for need in relation.needs)))

    h = 1e-5
    a = (value(h, 0) - value(-h, 0)) / (2 * h) * sigma[0]
    b = (value(0, h) - value(0, -h)) / (2 * h) * sigma[1]
    return np.sqrt(a**2 + b**2 + 2 * r * a * b)


@pytest.mark.parametrize("r", [0.0, 0.8, -0.5])
def test_small_errors_go_through_as_first_order_says(r: float) -> None:
    sigma = (0.002, 0.003)
    samples = lognormal_samples(K, G, K * np.sinh(sigma[0]), G * np.sinh(sigma[1]), r, draws=4000)
    found = derive(K, G, V, RHO, N, samples=samples)
    for name in RELATIONS:
        spread = spread_by_first_order(name, sigma, r)
        # the points are even, not exact: a band of 4000 is good to about 1 %
        assert found[f"{name}_p84"] - found[f"{name}_p16"] == pytest.approx(2 * Z16 * spread, rel=0.03), name
        assert found[f"{name}_p95"] - found[f"{name}_p5"] == pytest.approx(2 * Z5 * spread, rel=0.03), name
        assert np.abs(found[f"{name}_p50"] - found[name]) == pytest.approx(0, abs=0.03 * spread.max()), name


def test_bands_are_quantiles_of_the_draws() -> None:
    random = np.random.default_rng(5)
    samples = (
        K[:, None] * np.exp(random.normal(0, 0.2, (2, 301))),
        G[:, None] * np.exp(random.normal(0, 0.3, (2, 301))),
    )
    found = derive(K, G, V, samples=samples, names=["hardness_chen", "toughness_mo"])
    assert list(found) == [f"{name}{end}" for name in ("hardness_chen", "toughness_mo") for end in ("", *QUANTILES)]
    drawn = np.asarray(RELATIONS["toughness_mo"].function(*samples, V[:, None]))
    for ending, level in QUANTILES.items():
        assert found[f"toughness_mo{ending}"] == pytest.approx(np.quantile(drawn, level, axis=1), rel=1e-12)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    bulk, shear = random.uniform(20, 400, (2, 57))
    samples = lognormal_samples(bulk, shear, 0.1 * bulk, 0.1 * shear, 0.5, draws=100)
    whole = derive(bulk, shear, 10.0, 5.0, 2, samples=samples)
    monkeypatch.setattr("cgnn.physics.propagation._AT_ONCE", 700)
    pieces = derive(bulk, shear, 10.0, 5.0, 2, samples=samples)
    assert all(np.array_equal(whole[name], pieces[name]) for name in whole)
    alone = derive(bulk[9], shear[9], 10.0, 5.0, 2, samples=(samples[0][9:10], samples[1][9:10]))
    assert all(whole[name][9] == alone[name][0] for name in whole)


def test_draws_that_are_no_moduli_are_left_out() -> None:
    bulk = np.array([[100.0, -5.0, 110.0, np.nan], [100.0, -1.0, -1.0, np.inf], [np.nan] * 4])
    shear = np.full((3, 4), 80.0)
    found = derive([100.0, 100.0, np.nan], 80.0, samples=(bulk, shear), names=["pugh_ratio"])
    assert found["pugh_ratio"] == pytest.approx([1.25, 1.25, np.nan], nan_ok=True)
    assert found["pugh_ratio_p50"] == pytest.approx([105 / 80, np.nan, np.nan], nan_ok=True)


def test_hardness_is_not_symmetric_where_errors_are_broad() -> None:
    found = derive(443, 535, samples=lognormal_samples([443.0], [535.0], [90.0], [110.0]), names=["hardness_chen"])
    up = found["hardness_chen_p95"] - found["hardness_chen_p50"]
    down = found["hardness_chen_p50"] - found["hardness_chen_p5"]
    assert up > 1.5 * down


def test_samples_have_the_stated_spread_and_correlation() -> None:
    bulk, shear = lognormal_samples([200.0], [100.0], [20.0], [15.0], 0.7, draws=20_000)
    logs = np.log([bulk[0], shear[0]])
    assert logs.std(axis=1) == pytest.approx(np.arcsinh([0.1, 0.15]), rel=0.01)
    assert np.corrcoef(logs)[0, 1] == pytest.approx(0.7, abs=0.01)
    assert np.median(bulk) == pytest.approx(200, rel=2e-3)


def test_what_can_be_derived_depends_on_the_inputs() -> None:
    assert "hardness_mo" in derivable(["bulk", "shear"])
    assert "toughness_mo" not in derivable(["bulk", "shear"])
    assert derivable(["bulk", "shear", "volume_per_atom", "density", "atoms_per_cell"]) == list(RELATIONS)
    assert set(derive(100, 50)) == set(derivable(["bulk", "shear"]))


@pytest.mark.parametrize(
    ("words", "options", "error", "message"),
    [
        ((-443, 535), {}, DataError, "^bulk modulus: expected a finite number above 0, got -443$"),
        (([1.0, 2.0], [3.0, 0.0]), {}, DataError, "^shear modulus at 1: expected a finite number above 0, got 0$"),
        ((100, 50, -1.0), {}, DataError, "^volume per atom: expected a finite number above 0, got -1$"),
        ((100, 50), {"names": ["hardness_mp"]}, ConfigError, r"unknown derived property 'hardness_mp'; did you mean"),
        ((100, 50), {"names": ["toughness_mo"]}, DataError, "^toughness_mo: needs volume_per_atom$"),
        ((100, 50), {"samples": ([[1.0]], [[1.0, 2.0]])}, DataError, r"expected two arrays \(1 crystals, draws\)"),
        ((100, 50), {"samples": ([[1.0], [2.0]], [[1.0], [2.0]])}, DataError, r"got \(2, 1\) and \(2, 1\)"),
    ],
)
def test_what_can_not_be_derived(words: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        derive(*words, **options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bulk_std": -1.0}, "bulk modulus: expected a standard deviation of 0 or more, got -1"),
        ({"correlation": 1.5}, "correlation: expected a number from -1 to 1, got 1.5"),
        ({"draws": 0}, "draws: expected at least 1, got 0"),
    ],
)
def test_what_can_not_be_drawn(changed: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        lognormal_samples(**{"bulk": 100.0, "shear": 50.0, "bulk_std": 5.0, "shear_std": 5.0, **changed})
